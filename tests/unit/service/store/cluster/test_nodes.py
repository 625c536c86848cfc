"""Which node of a cluster serves a cell, as its nodes tell."""

import pytest
from redis.exceptions import ConnectionError as ConnectionFailed

from service.store.cluster.nodes import Address, Nodes

A, B, C, D = (("a", 1), ("b", 1), ("c", 1), ("d", 1))


def search(nodes: Nodes, say: dict[Address, Address | None]) -> list[Address]:
    """Ask as connections do; whom it asked."""
    asked = []
    for address in nodes.to_ask():
        asked.append(address)
        nodes.told(address, say.get(address))
    return asked


def test_it_asks_until_a_node_names_itself_and_then_no_more():
    nodes = Nodes([A, B, C])

    assert search(nodes, {A: C, C: C}) == [A, C]
    assert nodes.primary == C
    assert search(nodes, {}) == []


def test_a_node_that_others_name_and_nobody_else_did_is_asked_and_remembered():
    nodes = Nodes([A, B])
    assert search(nodes, {A: D, D: D}) == [A, D]

    nodes.lost(A)
    nodes.told(A, None)
    assert nodes.primary == D


def test_while_they_name_one_that_is_gone_there_is_no_primary_and_each_is_asked_once():
    nodes = Nodes([A, B, C])

    assert search(nodes, {A: D, B: D, C: D}) == [A, D, B, C]
    with pytest.raises(ConnectionFailed, match="no node"):
        _ = nodes.primary


def test_two_that_name_each_other_are_asked_once():
    assert search(Nodes([A, B]), {A: B, B: A}) == [A, B]


def test_one_that_was_lost_is_asked_last_and_forgotten_if_the_operator_did_not_name_it():
    nodes = Nodes([A, B])
    search(nodes, {A: D, D: D})

    nodes.lost(D)
    nodes.lost(A)

    assert search(nodes, {}) == [B, A]


def test_who_is_lost_is_no_longer_the_primary_and_another_one_still_is():
    nodes = Nodes([A, B])
    search(nodes, {A: A})

    nodes.lost(B)
    assert nodes.primary == A
    nodes.lost(A)
    with pytest.raises(ConnectionFailed):
        _ = nodes.primary

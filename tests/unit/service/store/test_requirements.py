"""The rules about Redis, on what it says."""

import ssl

import pytest
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as ConnectionFailed

from service.errors import StoreUnavailable
from service.store.connection import redis_errors
from service.store.requirements import FULL_COVERAGE, UNSAFE, UNUSABLE, refusal, report

SAFE = {
    "redis_mode": "standalone",
    "redis_version": "7.2.4",
    "role": "master",
    "cluster_enabled": 0,
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
}
CLUSTERED = {"cluster_enabled": 1, "redis_mode": "cluster"}
ALWAYS = {"appendfsync": "always"}


def causes(*, appendfsync: str = "always", **info: object) -> list[str]:
    return [problem.cause for problem in report(SAFE | info, {"appendfsync": appendfsync}).problems]


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, []),
        ({"maxmemory": 1, "maxmemory_policy": "noeviction"}, []),
        ({"maxmemory": 0, "maxmemory_policy": "allkeys-lru"}, []),  # nothing is ever evicted
        ({"maxmemory": 1, "maxmemory_policy": "allkeys-lru"}, ["eviction"]),
        ({"maxmemory": 1, "maxmemory_policy": "volatile-ttl"}, ["eviction"]),
        ({"aof_enabled": 0}, ["persistence"]),
        ({"appendfsync": "everysec"}, ["fsync"]),
        ({"appendfsync": "no"}, ["fsync"]),
        ({"appendfsync": "everysec", "aof_enabled": 0}, ["persistence"]),
        ({"role": "slave"}, ["replica"]),
        ({"cluster_enabled": 1}, ["cluster"]),
        ({"redis_mode": "cluster"}, ["cluster"]),
        ({"redis_mode": "sentinel", "aof_enabled": 0}, ["sentinel"]),
        ({"redis_version": "6.2.0"}, []),
        ({"redis_version": "6.0.20"}, ["version"]),
        ({"redis_version": "5.0.14"}, ["version"]),
        ({"redis_version": "10.0.0"}, []),
        ({"redis_version": "255.255.255"}, []),  # of an unstable branch
        ({"role": "slave", "maxmemory": 1, "maxmemory_policy": "allkeys-lfu"}, ["replica", "eviction"]),
    ],
)
def test_what_is_wrong_is_named_by_its_cause(info, expected):
    assert causes(**info) == expected


@pytest.mark.parametrize(
    ("info", "wanted", "expected"),
    [
        (CLUSTERED, {"cluster": True}, []),
        ({}, {"cluster": True}, ["cluster"]),
        ({"connected_slaves": 1}, {"replicas": 1}, []),
        ({"connected_slaves": 1}, {"replicas": 2}, ["replicas"]),
        ({}, {"replicas": 1}, ["replicas"]),
        (CLUSTERED, {"cluster": True, "cells": 3, "settings": ALWAYS | {FULL_COVERAGE: "no"}}, []),
        (CLUSTERED, {"cluster": True, "cells": 3, "settings": ALWAYS | {FULL_COVERAGE: "yes"}}, ["coverage"]),
        (CLUSTERED, {"cluster": True, "settings": ALWAYS | {FULL_COVERAGE: "yes"}}, []),
    ],
)
def test_a_cluster_and_replicas_that_the_settings_name_have_to_be_there(info, wanted, expected):
    assert [problem.cause for problem in report(SAFE | info, **({"settings": ALWAYS} | wanted)).problems] == expected


def test_what_nothing_works_on_is_unusable_and_what_may_lose_notes_is_not():
    assert report(SAFE | {"maxmemory": 1, "maxmemory_policy": "allkeys-lru"}, ALWAYS).unusable == ""
    assert "replica" in report(SAFE | {"role": "slave"}, ALWAYS).unusable
    assert set(UNUSABLE).isdisjoint(UNSAFE)


def test_what_may_not_be_asked_is_unknown_and_no_problem():
    silent = report(None, None)

    assert (silent.problems, silent.unusable) == ((), "")
    assert silent.unknown >= set(UNSAFE)
    assert report(SAFE, None).unknown == {"fsync"}
    assert report(SAFE, ALWAYS).unknown == set()
    assert report(SAFE, ALWAYS, cells=3).unknown == {"coverage"}
    assert report(SAFE, None, cells=3).unknown == {"fsync", "coverage"}


def test_figures_that_a_relative_of_redis_leaves_out_are_no_problem():
    assert report({}, ALWAYS).problems == ()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (AuthenticationError("invalid username-password pair or user is disabled."), "password"),
        (AuthenticationError("Authentication required."), "password"),
        (ResponseError("DB index is out of range"), "database"),
        (ResponseError("SELECT is not allowed in cluster mode"), "cluster"),
        (ResponseError("unknown command 'SELECT', with args beginning with: '1'"), "sentinel"),
        (InvalidResponse("Protocol Error: b'TTP/1.1 400 Bad Request'"), "protocol"),
        (MovedError("3999 127.0.0.1:6381"), "cluster"),
        (ClusterDownError("CLUSTERDOWN Hash slot not served"), "cluster"),
        (ReadOnlyError("You can't write against a read only replica."), "replica"),
        (MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."), "replica"),
        (NoPermissionError("this user has no permissions to run the 'get' command"), "right"),
    ],
)
def test_an_answer_that_will_not_change_by_itself_is_named(error, cause):
    with pytest.raises(StoreUnavailable) as refused, redis_errors():
        raise error

    assert refused.value.cause == cause


@pytest.mark.parametrize(
    "error",
    [ConnectionFailed("Error 111 connecting"), OSError("reset"), ResponseError("LOADING Redis is loading"),
     NoScriptError("No matching script."), ReadOnlyError("a restore is not finished"),
     ResponseError("MISCONF Errors writing to the AOF file")],
)  # fmt: skip
def test_what_passes_by_itself_has_no_cause(error):
    with pytest.raises(StoreUnavailable) as refused, redis_errors():
        raise error

    assert refused.value.cause == ""


def chained(reason: ssl.SSLError) -> ConnectionFailed:
    try:
        raise reason
    except ssl.SSLError:
        try:
            raise ConnectionFailed("Error 1 connecting")  # noqa: TRY301
        except ConnectionFailed as error:
            return error


def test_a_certificate_that_is_not_trusted_is_told_from_a_connection_that_was_cut():
    untrusted = ssl.SSLCertVerificationError()
    untrusted.verify_message = "self-signed certificate"

    found = refusal(chained(untrusted))

    assert found
    assert (found.cause, "self-signed" in found.line) == ("certificate", True)
    assert refusal(chained(ssl.SSLEOFError("EOF occurred"))) is None


def test_no_line_quotes_what_redis_said():
    text = "'SET' 'secret'"
    for error in (AuthenticationError(text), NoPermissionError(text), MovedError("1 secret:1")):
        found = refusal(error)
        assert found
        assert "secret" not in found.line
        assert "\n" not in found.line


def test_errors_of_ours_pass_through():
    with pytest.raises(RuntimeError, match="ours"), redis_errors():
        raise RuntimeError("ours")
    with pytest.raises(ResponseError, match="WRONGTYPE"), redis_errors():
        raise ResponseError("WRONGTYPE Operation against a key")

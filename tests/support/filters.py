"""Filters and fields for tests, and what the contract says of them in a few lines of its own."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from indexer.filters.expression import And, Exists, Expression, Not, OneOf, Or, Ordered

NAMES = ("city", "price", "sale", "tags", "created_at")
TEXTS = ("a", "b", "é \"'\\")
NUMBERS = (-1.0, 0.0, 0.5, 1.0, 1e9)


def fields() -> st.SearchStrategy[dict[str, Any]]:
    """Fields of which each may have any type, so that no comparison is spared one of another."""
    texts, numbers = st.sampled_from(TEXTS), st.sampled_from(NUMBERS)
    lists = st.lists(texts, max_size=3).map(tuple)
    return st.dictionaries(st.sampled_from(NAMES), texts | numbers | st.booleans() | lists)


def expressions(depth: int = 3) -> st.SearchStrategy[Expression]:
    """Expressions over the names and values of `fields`."""
    names = st.sampled_from([name for name in NAMES if name != "created_at"])
    numbers = st.sampled_from(NUMBERS)
    values = st.sampled_from(TEXTS) | numbers | st.booleans()
    conditions = (
        st.builds(lambda name, several: OneOf(name, tuple(several)), names, st.lists(values, min_size=1, max_size=3))
        | st.builds(lambda several: OneOf("created_at", tuple(several)), st.lists(numbers, min_size=1, max_size=3))
        | st.builds(Ordered, st.sampled_from(NAMES), st.sampled_from(["<", "<=", ">", ">="]), numbers)
        | st.builds(Exists, st.sampled_from(NAMES))
    )
    return st.recursive(
        conditions,
        lambda inner: (
            st.builds(Not, inner)
            | st.builds(lambda several: And(tuple(several)), st.lists(inner, min_size=2, max_size=3))
            | st.builds(lambda several: Or(tuple(several)), st.lists(inner, min_size=2, max_size=3))
        ),
        max_leaves=2**depth,
    )


def holds(expression: Expression, fields: Mapping[str, Any]) -> bool:
    """Whether a filter lets these fields pass, written again: with sets of values that know their types."""
    match expression:
        case Not(operand):
            return not holds(operand, fields)
        case And(several):
            return False not in [holds(operand, fields) for operand in several]
        case Or(several):
            return True in [holds(operand, fields) for operand in several]
    value = fields.get(expression.name)
    elements = [] if value is None else list(value) if isinstance(value, tuple) else [value]
    match expression:
        case OneOf(_, values):
            return bool({(type(one), one) for one in elements} & {(type(one), one) for one in values})
        case Ordered(_, order, bound):
            sides = {"<": {-1}, "<=": {-1, 0}, ">": {1}, ">=": {0, 1}}
            return type(value) is float and type(bound) is float and (value > bound) - (value < bound) in sides[order]
        case Exists(_):
            return bool(elements)
    raise AssertionError(expression)

"""Filters and fields for tests, and what the contract says of them in a few lines of its own."""

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

"""What a filter says of the fields of one id: a tree of conditions, and how each holds.

A list matches when one of its elements does. What is missing, an empty list too, matches no condition; so it does match
the condition's negation. Values of two types are never equal, less or greater, and a truth is no number.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from operator import ge, gt, le, lt

# What a filter compares: text, a number, a truth, or a list of texts; and the named ones of one id. Text is compared as
# it stands: whoever fills in fields folds those that compare folded.
Value = str | float | bool | tuple[str, ...]
Fields = Mapping[str, Value]
Literal = str | float | bool
# Makes those texts equal that a filter shall not tell apart; by the name of the field.
Folding = Callable[[str], str]
Fold = Mapping[str, Folding]

CREATED_AT = "created_at"
ORDERS = {"<": lt, "<=": le, ">": gt, ">=": ge}


class Expression:
    """Immutable. Its `str` is a canonical text, which `indexer.filters.parser.parse` reads back without folding.

    Expressions are equal when their texts are. Python's own rule would take ``x = true`` for ``x = 1``.
    """

    def __str__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self._text == other._text

    def __hash__(self) -> int:
        return self._hash

    def matches(self, fields: Fields) -> bool:
        """Whether it holds for these fields."""
        raise NotImplementedError

    def operands(self) -> tuple["Expression", ...]:
        """The expressions that it joins."""
        return ()

    @cached_property
    def conditions(self) -> int:
        """How many comparisons it takes at most."""
        return sum(operand.conditions for operand in self.operands()) or 1

    def names(self) -> frozenset[str]:
        """The names of the fields that it asks for."""
        return frozenset().union(*(operand.names() for operand in self.operands()))

    def folded(self, fold: Fold) -> "Expression":  # noqa: ARG002
        """A copy in which the strings of each name in ``fold`` went through its function."""
        return self

    @cached_property
    def _text(self) -> str:
        raise NotImplementedError

    @cached_property
    def _hash(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, eq=False, repr=False)
class _Condition(Expression):
    name: str

    def names(self) -> frozenset[str]:
        """Its own."""
        return frozenset({self.name})

    def _said(self, value: Literal) -> str:
        if self.name == CREATED_AT and isinstance(value, float):
            return json.dumps(datetime.fromtimestamp(value, UTC).isoformat())
        return json.dumps(value)


@dataclass(frozen=True, eq=False, repr=False)
class OneOf(_Condition):
    """``name = value``, or with several values ``name IN [...]``."""

    values: tuple[Literal, ...]

    def matches(self, fields: Fields) -> bool:
        """Whether the field, or an element of it, is among the values."""
        value = fields.get(self.name)
        if isinstance(value, tuple):
            return not self._keys.isdisjoint(value)
        return _key(value) in self._keys

    def folded(self, fold: Fold) -> Expression:
        """A copy with folded values."""
        if self.name not in fold:
            return self
        function = fold[self.name]
        return OneOf(self.name, tuple(function(value) if isinstance(value, str) else value for value in self.values))

    @cached_property
    def _keys(self) -> frozenset[object]:
        return frozenset(map(_key, self.values))

    @cached_property
    def _text(self) -> str:
        said = ", ".join(map(self._said, self.values))
        return f"{self.name} = {said}" if len(self.values) == 1 else f"{self.name} IN [{said}]"


@dataclass(frozen=True, eq=False, repr=False)
class Ordered(_Condition):
    """``name < value`` and its like, by ``order``, a key of `ORDERS`; nothing is less or greater than a truth."""

    order: str
    value: float | bool

    def matches(self, fields: Fields) -> bool:
        """Whether the field is a number on that side of the value."""
        value = fields.get(self.name)
        if not isinstance(value, float | int) or isinstance(value, bool) or isinstance(self.value, bool):
            return False
        holds: bool = ORDERS[self.order](value, self.value)
        return holds

    @cached_property
    def _text(self) -> str:
        return f"{self.name} {self.order} {self._said(self.value)}"


@dataclass(frozen=True, eq=False, repr=False)
class Exists(_Condition):
    """``name EXISTS``."""

    def matches(self, fields: Fields) -> bool:
        """Whether the field is there, and not an empty list."""
        return fields.get(self.name, ()) != ()

    @cached_property
    def _text(self) -> str:
        return f"{self.name} EXISTS"


@dataclass(frozen=True, eq=False, repr=False)
class Not(Expression):
    """``NOT operand``."""

    operand: Expression

    def matches(self, fields: Fields) -> bool:
        """Whether the operand does not hold."""
        return not self.operand.matches(fields)

    def operands(self) -> tuple[Expression, ...]:
        """The only one."""
        return (self.operand,)

    def folded(self, fold: Fold) -> Expression:
        """A copy with a folded operand."""
        return Not(self.operand.folded(fold))

    @cached_property
    def _text(self) -> str:
        return f"NOT {_within(self.operand)}"


@dataclass(frozen=True, eq=False, repr=False)
class _Joined(Expression):
    several: tuple[Expression, ...]

    def operands(self) -> tuple[Expression, ...]:
        """At least two."""
        return self.several

    def folded(self, fold: Fold) -> Expression:
        """A copy with folded operands."""
        return type(self)(tuple(operand.folded(fold) for operand in self.several))

    def _joined(self, keyword: str) -> str:
        return f" {keyword} ".join(map(_within, self.several))


class And(_Joined):
    """``a AND b AND ...``."""

    def matches(self, fields: Fields) -> bool:
        """Whether all hold."""
        return all(operand.matches(fields) for operand in self.several)

    @cached_property
    def _text(self) -> str:
        return self._joined("AND")


class Or(_Joined):
    """``a OR b OR ...``."""

    def matches(self, fields: Fields) -> bool:
        """Whether one holds."""
        return any(operand.matches(fields) for operand in self.several)

    @cached_property
    def _text(self) -> str:
        return self._joined("OR")


def all_of(expressions: Iterable[Expression | None]) -> Expression | None:
    """The expressions joined by AND; None for none."""
    given = [expression for expression in expressions if expression is not None]
    if len(given) < 2:
        return given[0] if given else None
    return And(tuple(given))


def matches(expression: Expression, fields: Fields) -> bool:
    """Whether a filter lets the id with these fields pass."""
    return expression.matches(fields)


def _key(value: Value | None) -> object:
    return (value,) if isinstance(value, bool) else value


def _within(operand: Expression) -> str:
    return f"({operand})" if isinstance(operand, _Joined) else str(operand)

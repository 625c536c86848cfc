"""What a filter says of the fields of one id: a tree of conditions, and how each holds.

A list matches when one of its elements does. What is missing, an empty list too, matches no condition; so it does match
the condition's negation. Values of two types are never equal, less or greater, and a truth is no number.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import ge, gt, le, lt
from typing import Any, ClassVar

# What a filter compares: text, a number, a truth, or a list of texts; and the named ones of one id. Text is compared as
# it stands: whoever fills in fields folds those that compare folded.
Value = str | float | bool | tuple[str, ...]
Fields = Mapping[str, Value]
Literal = str | float | bool
# An expression in tuples of text and numbers, a truth in a tuple of its own: ("!", ("=", "sale", (True,))).
Tree = tuple[Any, ...]
# Makes those texts equal that a filter shall not tell apart; by the name of the field.
Folding = Callable[[str], str]
Fold = Mapping[str, Folding]

CREATED_AT = "created_at"
ORDERS = {"<": lt, "<=": le, ">": gt, ">=": ge}
# A filter within its bounds has two joins for each of its 8 parentheses, and a NOT; a request joins it to others.
DEEPEST_TREE = 32


class Expression:
    """Immutable. Its ``tree`` is how it travels; `of_tree` is the inverse.

    Expressions are equal when their trees are. Python's own rule would take ``x = true`` for ``x = 1``.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.tree == other.tree

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def tree(self) -> Tree:
        """Its kind, and then the name and values of a condition, or the trees of its operands."""
        raise NotImplementedError

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
    def _hash(self) -> int:
        return hash(self.tree)


@dataclass(frozen=True, eq=False, repr=False)
class _Condition(Expression):
    name: str

    def names(self) -> frozenset[str]:
        """Its own."""
        return frozenset({self.name})


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
    def tree(self) -> Tree:
        """With all values."""
        return "=", self.name, *map(_key, self.values)


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
    def tree(self) -> Tree:
        """Of the kind of its order."""
        return self.order, self.name, _key(self.value)


@dataclass(frozen=True, eq=False, repr=False)
class Exists(_Condition):
    """``name EXISTS``."""

    def matches(self, fields: Fields) -> bool:
        """Whether the field is there, and not an empty list."""
        return fields.get(self.name, ()) != ()

    @cached_property
    def tree(self) -> Tree:
        """Without a value."""
        return "?", self.name


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
    def tree(self) -> Tree:
        """Of one operand."""
        return "!", self.operand.tree


@dataclass(frozen=True, eq=False, repr=False)
class _Joined(Expression):
    several: tuple[Expression, ...]
    kind: ClassVar[str]

    def operands(self) -> tuple[Expression, ...]:
        """At least two."""
        return self.several

    def folded(self, fold: Fold) -> Expression:
        """A copy with folded operands."""
        return type(self)(tuple(operand.folded(fold) for operand in self.several))

    @cached_property
    def tree(self) -> Tree:
        """Of all operands, in order."""
        return self.kind, *(operand.tree for operand in self.several)


class And(_Joined):
    """``a AND b AND ...``."""

    kind = "&"

    def matches(self, fields: Fields) -> bool:
        """Whether all hold."""
        return all(operand.matches(fields) for operand in self.several)


class Or(_Joined):
    """``a OR b OR ...``."""

    kind = "|"

    def matches(self, fields: Fields) -> bool:
        """Whether one holds."""
        return any(operand.matches(fields) for operand in self.several)


def all_of(expressions: Iterable[Expression | None]) -> Expression | None:
    """The expressions joined by AND; None for none."""
    given = [expression for expression in expressions if expression is not None]
    if len(given) < 2:
        return given[0] if given else None
    return And(tuple(given))


def matches(expression: Expression, fields: Fields) -> bool:
    """Whether a filter lets the id with these fields pass."""
    return expression.matches(fields)


def of_tree(tree: Sequence[Any], deepest: int = DEEPEST_TREE) -> Expression:
    """The expression of a tree whose tuples may be lists, as they are after they travelled.

    Raises:
        TypeError, ValueError: if it is none, or too deep.
    """
    if not deepest:
        raise ValueError(f"a filter has at most {DEEPEST_TREE} levels")
    match tree:
        case ["=", str(name), _, *_]:
            return OneOf(name, tuple(map(_literal, tree[2:])))
        case [str(order), str(name), value] if order in ORDERS:
            bound = _literal(value)
            if isinstance(bound, str):
                raise TypeError("strings have no order")
            return Ordered(name, order, bound)
        case ["?", str(name)]:
            return Exists(name)
        case ["!", operand]:
            return Not(of_tree(operand, deepest - 1))
        case ["&" | "|" as kind, _, _, *_]:
            several = tuple(of_tree(operand, deepest - 1) for operand in tree[1:])
            return And(several) if kind == "&" else Or(several)
    raise ValueError("not the tree of a filter")


def _key(value: Value | None) -> object:
    return (value,) if isinstance(value, bool) else value


def _literal(key: object) -> Literal:
    """Inverse of `_key`."""
    match key:
        case str() | float():
            return key
        case [bool(truth)]:
            return truth
    raise TypeError("a filter compares with text, numbers and truths")

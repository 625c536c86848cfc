"""Reads the filter language.

::

    category = "Travel" AND (price < 100 OR sale = true) AND NOT author IN ["bob", "eve"]
    AND created_at >= "2026-01-01T00:00:00Z" AND hashtags = "ramen" AND city EXISTS

NOT binds before AND before OR. Strings and numbers are those of JSON.
"""

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedToken

from indexer.filters.expression import (
    CREATED_AT,
    And,
    Exists,
    Expression,
    Fold,
    Folding,
    Literal,
    Not,
    OneOf,
    Or,
    Ordered,
)
from indexer.filters.tokens import (
    END,
    MOST_CHARACTERS,
    PATTERNS,
    SPACE,
    STRING,
    VALUE,
    BadFilter,
    Tokens,
    bad,
)

GRAMMAR = f"""
?start: either
?either: both (_OR both)*
?both: one (_AND one)*
?one: _OPEN either _CLOSE
    | _NOT one -> negation
    | NAME EQUALITY VALUE -> equality
    | NAME ORDER VALUE -> order
    | NAME _IN LIST -> membership
    | NAME _EXISTS -> existence
%declare {" ".join(PATTERNS)}
"""

# What a token is to the writer of a filter, in the order in which an error names them.
_SAID = {
    "NAME": ["a name"],
    "_NOT": ["NOT"],
    "_OPEN": ["("],
    "EQUALITY": ["=", "!="],
    "ORDER": ["<", "<=", ">", ">="],
    "_IN": ["IN"],
    "_EXISTS": ["EXISTS"],
    "VALUE": ["a string in double quotes", "a number", "true", "false"],
    "LIST": ["a list in brackets"],
    "_AND": ["AND"],
    "_OR": ["OR"],
    "_CLOSE": [")"],
    END: ["the end"],
}
_LIST_SO_FAR = re.compile(rf"\[{SPACE}(?:{VALUE}{SPACE},{SPACE})*")
_STRING_SO_FAR = re.compile(STRING.removesuffix('"'))
_VALUE = re.compile(VALUE)
_SPACE = re.compile(SPACE)
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


class _Refused(Exception):
    """A value that its condition does not take; the argument is what was expected."""


def parse(text: str, fold: Fold | None = None) -> Expression:
    """The expression of a filter; strings that are compared with a name in ``fold`` are folded by its function.

    Bounded to 4,096 characters, 64 conditions and a depth of 8, counted in open parentheses and NOTs.

    Raises:
        BadFilter: if the text is no filter, or out of bounds.
    """
    return _parsed(text, tuple((fold or {}).items()))


# Not more: a filter of 4,096 characters takes up to 0.1 MB when it is read, which the garbage collector visits, too.
@lru_cache(maxsize=128)
def _parsed(text: str, fold: tuple[tuple[str, Folding], ...]) -> Expression:
    if len(text) > MOST_CHARACTERS:
        raise BadFilter(MOST_CHARACTERS, f"the end: a filter has at most {MOST_CHARACTERS} characters")
    try:
        parsed: Any = _PARSER.parse(text)
    except UnexpectedToken as error:
        raise _explained(text, error) from None
    expression: Expression = parsed
    return expression.folded(dict(fold)) if fold else expression


@v_args(inline=True)
class _Builder(Transformer[Token, Expression]):
    def either(self, *operands: Expression) -> Expression:
        return Or(operands)

    def both(self, *operands: Expression) -> Expression:
        return And(operands)

    def negation(self, operand: Expression) -> Expression:
        return Not(operand)

    def equality(self, name: Token, sign: Token, value: Token) -> Expression:
        equal = self.membership(name, value)
        return equal if sign == "=" else Not(equal)

    def membership(self, name: Token, values: Token) -> Expression:
        return OneOf(str(name), tuple(_literals(name, values)))

    def order(self, name: Token, sign: Token, value: Token) -> Expression:
        [bound] = _literals(name, value)
        if isinstance(bound, str):
            raise bad(value, "a number: strings have no order")
        return Ordered(str(name), str(sign), bound)

    def existence(self, name: Token) -> Expression:
        return Exists(str(name))


# Made with the module: the first filter shall not wait for it.
_PARSER = Lark(GRAMMAR, parser="lalr", lexer=Tokens, transformer=_Builder(), maybe_placeholders=False)


def _literals(name: str, token: Token) -> Iterator[Literal]:
    """The values of a literal, or of a list of them."""
    values = json.loads(token, parse_int=float)
    for place, value in enumerate(values if isinstance(values, list) else [values]):
        try:
            yield _literal(name, value)
        except _Refused as refused:
            starts = [found.start() for found in _VALUE.finditer(token)]
            raise bad(token, str(refused), starts[place]) from None


def _literal(name: str, value: Literal) -> Literal:
    if name == CREATED_AT:
        return _instant(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused("a number that a double can hold")
    if isinstance(value, str) and value != value.encode(errors="ignore").decode():
        raise _Refused("a string without half of a surrogate pair")
    return value


def _instant(value: Literal) -> float:
    """Seconds since 1970; a leap second is the same as the next one."""
    try:
        if isinstance(value, str) and _INSTANT.fullmatch(value):
            leap = value[17:19] == "60"
            instant = datetime.fromisoformat((f"{value[:17]}59{value[19:]}" if leap else value).upper())
            return (instant.astimezone(UTC) + timedelta(seconds=leap)).timestamp()
    except (ValueError, OverflowError):
        pass  # a day that no calendar has
    raise _Refused("an RFC 3339 time with an offset, in double quotes")


def _explained(text: str, error: UnexpectedToken) -> BadFilter:
    """Where the text stops to be a filter, also within a list or a string."""
    token, expected = error.token, set(error.expected)
    position = len(text) if token.type == END or token.start_pos is None else token.start_pos
    if "LIST" in expected and text.startswith("[", position):
        position = _end(_LIST_SO_FAR, text, position)
        expected = {"VALUE"}
        if value := _VALUE.match(text, position):
            return BadFilter(_end(_SPACE, text, value.end()), "a comma or ]")
    if "VALUE" in expected and text.startswith('"', position):
        return BadFilter(_end(_STRING_SO_FAR, text, position), "a string as in JSON to go on, or its closing quote")
    if expected & {"_AND", "_CLOSE", END}:  # the condition before is whole
        outside = re.sub(STRING, "", text[:position])
        expected = {"_AND", "_OR", "_CLOSE" if outside.count("(") > outside.count(")") else END}
    *said, last = [word for type_, words in _SAID.items() if type_ in expected for word in words]
    return BadFilter(position, f"{', '.join(said)} or {last}" if said else last)


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    assert found
    return found.end()

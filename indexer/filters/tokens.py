"""Cuts a filter into tokens, and holds it to its bounds before the parser sees it.

A list is one token: the time of a parse depends on the few conditions and not on the many values.
"""

import re
from collections.abc import Iterator

from lark import Token
from lark.lexer import Lexer

MOST_CHARACTERS = 4096
MOST_CONDITIONS = 64
DEEPEST = 8

# A token of this type is none: no rule takes it.
UNKNOWN = "UNKNOWN"
END = "$END"

SPACE = r"[ \t\r\n]*"
STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
VALUE = rf"(?:{STRING}|{NUMBER}|(?:true|false)\b)"
PATTERNS = {
    "_OPEN": r"\(",
    "_CLOSE": r"\)",
    "_AND": r"AND\b",
    "_OR": r"OR\b",
    "_NOT": r"NOT\b",
    "EQUALITY": r"!?=",
    "ORDER": r"[<>]=?",
    "_IN": r"IN\b",
    "_EXISTS": r"EXISTS\b",
    "VALUE": VALUE,
    "LIST": rf"\[{SPACE}{VALUE}(?:{SPACE},{SPACE}{VALUE})*{SPACE}\]",
    "NAME": r"[a-z][a-z0-9_]{0,39}\b",
    UNKNOWN: r"[^ \t\r\n]",
}
_TOKEN = re.compile(SPACE + "(?:" + "|".join(f"(?P<{name}>{pattern})" for name, pattern in PATTERNS.items()) + ")")


class BadFilter(ValueError):
    """A text is no filter: at which character, counted from 0, and what was expected there."""

    def __init__(self, position: int, expected: str) -> None:
        super().__init__(f"at character {position}: expected {expected}")
        self.position = position


class Tokens(Lexer):
    """The lexer of `indexer.filters.parser`. Raises BadFilter beyond the bounds."""

    def __init__(self, _configuration: object) -> None:
        pass

    def lex(self, text: str) -> Iterator[Token]:  # type: ignore[override]
        """The tokens, of which the last may be unknown, up to the first that is too much."""
        conditions = 0
        inside: list[str] = []  # open parentheses and NOTs; a NOT ends with what it negates
        for token in _tokens(text):
            type_ = token.type
            if type_ in ("_OPEN", "_NOT"):
                inside.append(type_)
                if len(inside) > DEEPEST:
                    raise bad(token, f"at most {DEEPEST} open parentheses and NOTs")
            elif type_ in ("_CLOSE", "NAME"):
                while type_ == "_CLOSE" and inside and inside.pop() != "_OPEN":
                    pass
                while inside and inside[-1] == "_NOT":
                    inside.pop()
                conditions += type_ == "NAME"
                if conditions > MOST_CONDITIONS:
                    raise bad(token, f"the end: a filter has at most {MOST_CONDITIONS} comparisons")
            yield token


def _tokens(text: str) -> Iterator[Token]:
    position, before = 0, ""
    while found := _TOKEN.match(text, position):
        type_ = str(found.lastgroup)
        start, position = found.span(type_)
        if type_ == "VALUE" and before not in ("EQUALITY", "ORDER") and text[start].isalpha():
            type_ = "NAME"  # `true` names an attribute where no value can stand
        yield Token(type_, text[start:position], start)
        before = type_


def bad(token: Token, expected: str, offset: int = 0) -> BadFilter:
    """The error at a token, or within it."""
    assert token.start_pos is not None
    return BadFilter(token.start_pos + offset, expected)

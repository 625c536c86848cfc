"""The keys of a cell, which a hash tag keeps in one slot of a cluster: ``notellm:v1:note:a`` is there
``notellm:v1:{c00}:note:a``.

In one slot, scripts and transactions stay what they are on a single Redis. Only clients of a cell know the tag: they
put it into the keys of each command, and into the text of scripts, as key prefixes of other clients of Redis do.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

PREFIX = "notellm:v1:"
_PREFIX = PREFIX.encode()
# The cell that every store has.
FIRST = "c00"

# By the words of redis-py, to whom "XGROUP CREATE" is one.
_NO_KEY = re.compile(r"CONFIG GET|INFO|PING|SCRIPT [A-Z]+|TIME|WAIT")
_ONE_KEY = re.compile(
    r"EXPIRE|EXPIREAT|GET|INCR|INCRBY|PTTL|SET|SETEX|SETNX|TTL|TYPE"
    r"|H[A-Z]+|S(ADD|CARD|ISMEMBER|MEMBERS|REM)|Z[A-Z]+|X(?!READ)[A-Z]+|XGROUP [A-Z]+|XINFO [A-Z]+"
)
_KEYS = re.compile(r"DEL|EXISTS|MGET|UNLINK")


def prefix(cell: str) -> str:
    """What the keys of a cell begin with."""
    return f"{PREFIX}{{{cell}}}:"


def tagged(command: Sequence[Any], cell: str = FIRST) -> tuple[Any, ...]:
    """The command with the keys of the cell. Raises ValueError of a command, or a key, that no store of ours has."""
    first, end = _keys_of(command)
    own = prefix(cell).encode()
    return (*command[:first], *(_tagged(key, own) for key in command[first:end]), *command[end:])


def tagged_script(text: str, cell: str = FIRST) -> str:
    """A script of ours, which names its keys itself, with the keys of the cell."""
    return text.replace(PREFIX, prefix(cell))


def untagged(keys: Iterable[bytes], cell: str = FIRST) -> list[bytes]:
    """The keys as the store names them."""
    own = prefix(cell).encode()
    return [_PREFIX + key.removeprefix(own) for key in keys]


def _keys_of(command: Sequence[Any]) -> tuple[int, int]:
    """Where the keys begin and where they end: they stand one behind the other."""
    name = command[0]
    if _NO_KEY.fullmatch(name):
        return 1, 1
    if _ONE_KEY.fullmatch(name):
        return 1, 2
    if _KEYS.fullmatch(name):
        return 1, len(command)
    if name in ("EVAL", "EVALSHA"):
        return 3, 3 + int(command[2])
    if name in ("XREAD", "XREADGROUP"):
        first = _behind("STREAMS", command)
        return first, first + (len(command) - first) // 2  # behind them come as many entries
    if name == "SCAN":
        first = _behind("MATCH", command)
        return first, first + 1
    raise ValueError(f"where the keys of {name} stand is not known")


def _behind(word: str, command: Sequence[Any]) -> int:
    return 1 + next(place for place, part in enumerate(command) if part in (word, word.encode()))


def _tagged(key: str | bytes, own: bytes) -> bytes:
    encoded = key.encode() if isinstance(key, str) else key
    if not encoded.startswith(_PREFIX):
        raise ValueError("a key without the prefix of the store")
    return own + encoded[len(_PREFIX) :]

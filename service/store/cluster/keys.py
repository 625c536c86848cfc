"""The keys of a cell, which a hash tag keeps in one slot of a cluster: ``notellm:v1:note:a`` is there
``notellm:v1:{c00}:note:a``.

In one slot, scripts and transactions stay what they are on a single Redis. Only clients of a cluster know the tag: they
put it into the keys of each command, and into the text of scripts, as key prefixes of other clients of Redis do.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

PREFIX = "notellm:v1:"
CELL = PREFIX + "{c00}:"
_PREFIX, _CELL = PREFIX.encode(), CELL.encode()

# By the words of redis-py, to whom "XGROUP CREATE" is one.
_NO_KEY = re.compile(r"CONFIG GET|INFO|PING|SCRIPT [A-Z]+|TIME|WAIT")
_ONE_KEY = re.compile(
    r"EXPIRE|EXPIREAT|GET|INCR|INCRBY|PTTL|SET|SETEX|SETNX|TTL|TYPE"
    r"|H[A-Z]+|S(ADD|CARD|ISMEMBER|MEMBERS|REM)|Z[A-Z]+|X(?!READ)[A-Z]+|XGROUP [A-Z]+|XINFO [A-Z]+"
)
_KEYS = re.compile(r"DEL|EXISTS|MGET|UNLINK")


def tagged(command: Sequence[Any]) -> tuple[Any, ...]:
    """The command with the keys of the cell. Raises ValueError of a command, or a key, that no store of ours has."""
    first, end = _keys_of(command)
    return (*command[:first], *map(_tagged, command[first:end]), *command[end:])


def tagged_script(text: str) -> str:
    """A script of ours, which names its keys itself, with the keys of the cell."""
    return text.replace(PREFIX, CELL)


def untagged(keys: Iterable[bytes]) -> list[bytes]:
    """The keys as the store names them."""
    return [_PREFIX + key.removeprefix(_CELL) for key in keys]


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


def _tagged(key: str | bytes) -> bytes:
    encoded = key.encode() if isinstance(key, str) else key
    if not encoded.startswith(_PREFIX):
        raise ValueError("a key without the prefix of the store")
    return _CELL + encoded[len(_PREFIX) :]

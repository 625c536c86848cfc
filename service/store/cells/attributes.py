"""The types of attributes in a store of several cells.

A script knows the notes of its own cell. So a name and its type are claimed in the first cell before the first note is
written with them, and given back when another type, or one name too many, is wanted and no live note has them. Of two
writers who want an unused name with two types at the same moment, both may get it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.store.cells.ring import Cells, gathered
from service.store.connection import redis_errors
from service.store.interfaces import Conflict, Refusal, TooManyNames
from service.store.records import StoredNote
from service.store.schema import ATTRIBUTES, MOST_ATTRIBUTE_NAMES, TYPES, UNLESS_RESTORING

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis

# ARGV: names and types. Claims what nobody has; for each the type that it has now, empty where there is no room for it.
CLAIM = (
    UNLESS_RESTORING
    + f"""
local types = {{}}
for i = 1, #ARGV, 2 do
  local known = redis.call('HGET', '{TYPES}', ARGV[i])
  if not known and redis.call('HLEN', '{TYPES}') < {MOST_ATTRIBUTE_NAMES} then
    redis.call('HSET', '{TYPES}', ARGV[i], ARGV[i + 1])
    known = ARGV[i + 1]
  end
  types[#types + 1] = known or ''
end
return types
"""
)

# ARGV: names and types that no live note has. They are free, unless they are claimed with another type by now.
RELEASE = (
    UNLESS_RESTORING
    + f"""
for i = 1, #ARGV, 2 do
  if redis.call('HGET', '{TYPES}', ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', '{TYPES}', ARGV[i]) end
end
"""
)


class AttributeTypes:
    """The types by name. Every call raises StoreUnavailable."""

    def __init__(self, cells: "Cells[Redis]") -> None:
        self._cells = cells
        self._claim = cells.first.register_script(CLAIM)
        self._release = cells.first.register_script(RELEASE)

    async def carried(self) -> dict[str, str]:
        """The names of the attributes that live notes carry, with their types."""
        with redis_errors():
            typed: list[list[Any]] = await gathered(redis.hkeys(ATTRIBUTES) for redis in self._cells)
        return carried_types(typed)

    async def refusals(self, notes: Sequence[StoredNote]) -> dict[int, Refusal]:
        """By their places, the notes that cannot be stored with these attributes; those of the others are claimed."""
        if not (wanted := _wanted(notes)):
            return {}
        with redis_errors():
            known = await self._claim(args=_words(wanted))
            if _known(wanted, known) != wanted:
                claimed: Any = await self._cells.first.hgetall(TYPES)
                await self._release(args=_words(_unused(claimed, await self.carried())))
                known = await self._claim(args=_words(wanted))
        return _refusals(notes, _known(wanted, known))


class SyncAttributeTypes:
    """The same for commands."""

    def __init__(self, cells: "Cells[SyncRedis]") -> None:
        self._cells = cells
        self._claim = cells.first.register_script(CLAIM)
        self._release = cells.first.register_script(RELEASE)

    def refusals(self, notes: Sequence[StoredNote]) -> dict[int, Refusal]:
        """See `AttributeTypes`."""
        if not (wanted := _wanted(notes)):
            return {}
        with redis_errors():
            known: Any = self._claim(args=_words(wanted))
            if _known(wanted, known) != wanted:
                claimed: Any = self._cells.first.hgetall(TYPES)
                typed: list[Any] = [redis.hkeys(ATTRIBUTES) for redis in self._cells]
                self._release(args=_words(_unused(claimed, carried_types(typed))))
                known = self._claim(args=_words(wanted))
        return _refusals(notes, _known(wanted, known))


def carried_types(fields: Iterable[Iterable[bytes]]) -> dict[str, str]:
    """Names of attributes with their types, by the fields of `ATTRIBUTES` in each cell."""
    return {name: kind for some in fields for kind, name in (field.decode().split(":", 1) for field in some)}


def _wanted(notes: Sequence[StoredNote]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for note in notes:
        wanted = {name: _type_of(value) for name, value in note.attributes.items()} | wanted
    return wanted


def _words(types: Mapping[str, str]) -> list[str]:
    return [word for pair in types.items() for word in pair]


def _known(wanted: Mapping[str, str], types: Sequence[bytes]) -> dict[str, str]:
    return {name: known.decode() for name, known in zip(wanted, types, strict=True)}


def _unused(claimed: Mapping[bytes, bytes], carried: Mapping[str, str]) -> dict[str, str]:
    types = {name.decode(): kind.decode() for name, kind in claimed.items()}
    return {name: kind for name, kind in types.items() if name not in carried}


def _refusals(notes: Sequence[StoredNote], known: Mapping[str, str]) -> dict[int, Refusal]:
    refused = {place: _refusal(note, known) for place, note in enumerate(notes)}
    return {place: why for place, why in refused.items() if why}


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "list" if isinstance(value, tuple) else "number"


def _refusal(note: StoredNote, known: Mapping[str, str]) -> Refusal | None:
    for name, value in sorted(note.attributes.items()):
        if not known[name]:
            return TooManyNames(name)
        if known[name] != _type_of(value):
            return Conflict(name, known[name], _type_of(value))
    return None

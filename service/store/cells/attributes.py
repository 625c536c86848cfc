"""The types of attributes in a store of several cells.

A script knows the notes of its own cell. So a name and its type are claimed in the first cell before the first note is
written with them, and given back when another type, or one name too many, is wanted and no live note has them. Of two
writers who want an unused name with two types at the same moment, both may get it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.store.cells.ring import Cells, gathered
from service.store.connection import redis_errors
from service.store.interfaces import Conflict, Refusal, TooManyNames
from service.store.records import StoredNote
from service.store.schema import ATTRIBUTES, MOST_ATTRIBUTE_NAMES, TYPES, UNLESS_RESTORING

if TYPE_CHECKING:
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
        return {name: kind for some in typed for kind, name in (field.decode().split(":", 1) for field in some)}

    async def refusals(self, notes: Sequence[StoredNote]) -> dict[int, Refusal]:
        """By their places, the notes that cannot be stored with these attributes; those of the others are claimed."""
        wanted: dict[str, str] = {}
        for note in notes:
            wanted = {name: _type_of(value) for name, value in note.attributes.items()} | wanted
        if not wanted:
            return {}
        with redis_errors():
            known = await self._claimed(wanted)
            if known != wanted:
                await self._release_unused()
                known = await self._claimed(wanted)
        refused = {place: _refusal(note, known) for place, note in enumerate(notes)}
        return {place: why for place, why in refused.items() if why}

    async def _claimed(self, wanted: Mapping[str, str]) -> dict[str, str]:
        types: Any = await self._claim(args=[word for pair in wanted.items() for word in pair])
        return {name: known.decode() for name, known in zip(wanted, types, strict=True)}

    async def _release_unused(self) -> None:
        claimed: Any = await self._cells.first.hgetall(TYPES)
        carried = await self.carried()
        types = {name.decode(): known.decode() for name, known in claimed.items()}
        unused = [word for pair in types.items() if pair[0] not in carried for word in pair]
        if unused:
            await self._release(args=unused)


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

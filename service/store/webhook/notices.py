"""What the webhook has not been told yet: which notes can be found, which failed, and which model answers.

Nothing is kept for it but how far it was told. The streams that indexes follow and dead letters lie in are its queue,
so that a receiver which is away costs no write anything; what was cut from a stream meanwhile is not told.

Of several cells the first says who tells, how far in each, and which model answers. One that does not answer holds the
others up, as it does the indexes that follow them.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from service.store.cells.ring import Cells, gathered
from service.store.connection import redis_errors
from service.store.records import decode_change
from service.store.schema import ACTIVE, DEAD, EMBEDDINGS, UNLESS_RESTORING, WEBHOOK, WEBHOOK_HOLDER

if TYPE_CHECKING:
    from redis.asyncio import Redis

_Entries = list[tuple[bytes, dict[bytes, bytes]]]
# Entries of a stream that are read at a time, of all cells together.
LIMIT = 100
HELD_S = 10

# ARGV: who holds it, for how many milliseconds. 1 while nobody else does.
_HOLD = (
    UNLESS_RESTORING
    + f"""
local holder = redis.call('GET', '{WEBHOOK_HOLDER}')
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', '{WEBHOOK_HOLDER}', ARGV[1], 'PX', ARGV[2])
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened. The same has the same ``id``, however often it is told.

    ``entry`` is that of the stream that told of it, in the cell of this number; empty for a model.
    """

    id: str
    type: Literal["note.searchable", "note.failed", "model.activated"]
    time: datetime
    data: dict[str, str | int]
    entry: str = ""
    cell: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """How far the webhook was told of a cell: the last entry of changes and of dead letters."""

    changes: str
    dead: str


@dataclass(frozen=True, slots=True)
class Told:
    """How far the webhook was told: the place in each cell, the model, how many models."""

    places: tuple[Place, ...]
    model: str
    activations: int = 0

    def encode(self) -> dict[str, str | int]:
        """The fields of the hash; those of the first cell have the names that they had when there was no other."""
        fields: dict[str, str | int] = {"model": self.model, "activations": self.activations}
        for cell, place in enumerate(self.places):
            fields |= {f"changes{_of_cell(cell)}": place.changes, f"dead{_of_cell(cell)}": place.dead}
        return fields

    @classmethod
    def decode(cls, fields: Mapping[bytes, bytes], cells: int) -> Self:
        """Inverse of `encode`."""
        at = {name.decode(): value.decode() for name, value in fields.items()}
        places = (Place(at[f"changes{_of_cell(cell)}"], at[f"dead{_of_cell(cell)}"]) for cell in range(cells))
        return cls(tuple(places), at["model"], int(at["activations"]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Notices in the order in which they are told, and how far the webhook was told with them.

    ``more`` are the cells of which a stream goes on; ``now_ms`` is Redis' clock.
    """

    notices: list[Notice]
    told: Told
    now_ms: int
    more: frozenset[int] = frozenset()


class RedisNotices:
    """Notices for one of all gateways: the one that holds them. Every call raises StoreUnavailable."""

    def __init__(self, cells: "Cells[Redis]") -> None:
        self._cells = cells
        self._limit = LIMIT // len(cells)
        self._holder = secrets.token_hex(8)
        self._hold = cells.first.register_script(_HOLD)

    async def hold(self) -> bool:
        """Hold them for the next ten seconds; False while another gateway does."""
        with redis_errors():
            return bool(await self._hold(args=[self._holder, HELD_S * 1000]))

    async def read(self) -> Batch:
        """What is next, at most 100 entries of each stream. A new webhook begins with what comes from now on."""
        first = self._cells.first
        with redis_errors():
            kept: Any = await first.hgetall(WEBHOOK)
            found: Any = await first.get(ACTIVE)
            seconds, microseconds = await first.time()
            now_ms = seconds * 1000 + microseconds // 1000
            active = found.decode() if found else ""
            if not kept:
                return Batch([], Told(tuple(await gathered(map(_end, self._cells))), active), now_ms)
            told = Told.decode(kept, len(self._cells))
            read = await gathered(map(self._next, self._cells, told.places))
        more = frozenset(cell for cell, streams in enumerate(read) if self._limit in map(len, streams))
        # What the model before did is told first.
        activated = _activated(told, active, now_ms) if active != told.model and not more else []
        searchable, failed = list[Notice](), list[Notice]()
        for cell, (changes, dead) in enumerate(read):
            searchable += _searchable(changes, told.model, cell)
            failed += _failed(dead, told.model, cell)
        notices = [*sorted(searchable, key=_time), *sorted(failed, key=_time), *activated]
        places = tuple(map(_behind, told.places, read))
        reached = Told(places, active if activated else told.model, told.activations + len(activated))
        return Batch(notices, reached, now_ms, more)

    async def tell(self, told: Told) -> None:
        """Remember how far the webhook was told."""
        with redis_errors():
            fields: Any = told.encode()
            await self._cells.first.hset(WEBHOOK, mapping=fields)

    async def _next(self, redis: "Redis", place: Place) -> tuple[_Entries, _Entries]:
        changes: Any = await redis.xrange(EMBEDDINGS, f"({place.changes}", count=self._limit)
        dead: Any = await redis.xrange(DEAD, f"({place.dead}", count=self._limit)
        return changes, dead


def without(batch: Batch, change: Notice) -> Batch:
    """The batch without this change, which has to wait, and with it later changes of its cell and another model."""
    milliseconds, number = change.entry.split("-")
    # The place before this entry's: no entry has to be there.
    before = f"{milliseconds}-{int(number) - 1}" if int(number) else f"{int(milliseconds) - 1}-{2**64 - 1}"
    places, kept, waits = list(batch.told.places), list[Notice](), False
    places[change.cell] = replace(places[change.cell], changes=before)
    told = replace(batch.told, places=tuple(places))
    for one in batch.notices:
        waits |= one is change
        if one.type == "model.activated":
            told = replace(told, model=str(one.data["before"]), activations=told.activations - 1)
        elif not waits or one.type == "note.failed" or one.cell != change.cell:
            kept.append(one)
    return replace(batch, notices=kept, told=told, more=batch.more - {change.cell})


async def _end(redis: "Redis") -> Place:
    newest: list[Any] = [await redis.xrevrange(stream, count=1) for stream in (EMBEDDINGS, DEAD)]
    return Place(*(entries[0][0].decode() if entries else "0-0" for entries in newest))


def _behind(place: Place, read: tuple[_Entries, _Entries]) -> Place:
    before = place.changes, place.dead
    return Place(*(some[-1][0].decode() if some else at for some, at in zip(read, before, strict=True)))


def _of_cell(cell: int) -> str:
    """What the name of an entry, or of a place, ends with: two cells may have entries of the same name."""
    return f"@{cell}" if cell else ""


def _time(notice: Notice) -> datetime:
    return notice.time


def _activated(told: Told, active: str, now_ms: int) -> list[Notice]:
    data: dict[str, str | int] = {"model": active, "before": told.model}
    return [Notice(f"m-{told.activations + 1}", "model.activated", datetime.fromtimestamp(now_ms / 1000, UTC), data)]


def _searchable(entries: _Entries, active: str, cell: int) -> list[Notice]:
    found = []
    for entry, fields in entries:
        if fields.get(b"fingerprint") != active.encode() or b"vector" not in fields:
            continue
        try:
            change = decode_change(entry.decode(), fields)
        except ValueError:  # no index takes it either
            continue
        data: dict[str, str | int] = {"note_id": change.id, "version": change.version, "model": active}
        name, time = f"s-{change.cursor}{_of_cell(cell)}", time_of(change.cursor)
        found.append(Notice(name, "note.searchable", time, data, change.cursor, cell))
    return found


def _failed(entries: _Entries, active: str, cell: int) -> list[Notice]:
    found = []
    for entry, fields in entries:
        if fields.get(b"fingerprint") != active.encode() or not fields.get(b"version", b"").isdigit():
            continue
        data: dict[str, str | int] = {
            "note_id": fields.get(b"id", b"").decode(errors="replace"),
            "version": int(fields[b"version"]),
            "model": active,
            "reason": fields.get(b"reason", b"").decode(errors="replace"),
        }
        place = entry.decode()
        found.append(Notice(f"f-{place}{_of_cell(cell)}", "note.failed", time_of(place), data, place, cell))
    return found


def time_of(entry: str) -> datetime:
    """When an entry came into its stream, by Redis' clock."""
    return datetime.fromtimestamp(int(entry.split("-")[0]) / 1000, UTC)

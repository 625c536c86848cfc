"""What the webhook has not been told yet: which notes can be found, which failed, and which model answers.

Nothing is kept for it but how far it was told. The streams that indexes follow and dead letters lie in are its queue,
so that a receiver which is away costs no write anything; what was cut from a stream meanwhile is not told.
"""

import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from service.store.connection import redis_errors
from service.store.records import decode_change
from service.store.schema import ACTIVE, DEAD, EMBEDDINGS, UNLESS_RESTORING, WEBHOOK, WEBHOOK_HOLDER

if TYPE_CHECKING:
    from redis.asyncio import Redis

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

    ``entry`` is that of the stream that told of it, empty for a model.
    """

    id: str
    type: Literal["note.searchable", "note.failed", "model.activated"]
    time: datetime
    data: dict[str, str | int]
    entry: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """How far the webhook was told: the last entry of changes and of dead letters, the model, how many models."""

    changes: str
    dead: str
    model: str
    activations: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Notices in the order in which they are told, and how far the webhook was told with them.

    ``more`` if a stream goes on; ``now_ms`` is Redis' clock.
    """

    notices: list[Notice]
    told: Told
    now_ms: int
    more: bool = False


class RedisNotices:
    """Notices for one of all gateways: the one that holds them. Every call raises StoreUnavailable."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._holder = secrets.token_hex(8)
        self._hold = redis.register_script(_HOLD)

    async def hold(self) -> bool:
        """Hold them for the next ten seconds; False while another gateway does."""
        with redis_errors():
            return bool(await self._hold(args=[self._holder, HELD_S * 1000]))

    async def read(self) -> Batch:
        """What is next, at most 100 entries of each stream. A new webhook begins with what comes from now on."""
        with redis_errors():
            kept: Any = await self._redis.hgetall(WEBHOOK)
            found: Any = await self._redis.get(ACTIVE)
            seconds, microseconds = await self._redis.time()
            now_ms = seconds * 1000 + microseconds // 1000
            active = found.decode() if found else ""
            if not kept:
                told = Told(await self._newest(EMBEDDINGS), await self._newest(DEAD), active)
                return Batch([], told, now_ms)
            at = {name.decode(): value.decode() for name, value in kept.items()}
            told = Told(at["changes"], at["dead"], at["model"], int(at["activations"]))
            changes: Any = await self._redis.xrange(EMBEDDINGS, f"({told.changes}", count=LIMIT)
            dead: Any = await self._redis.xrange(DEAD, f"({told.dead}", count=LIMIT)
        more = LIMIT in (len(changes), len(dead))
        # What the model before did is told first.
        activated = _activated(told, active, now_ms) if active != told.model and not more else []
        notices = [*_searchable(changes, told.model), *_failed(dead, told.model), *activated]
        reached = Told(
            changes[-1][0].decode() if changes else told.changes,
            dead[-1][0].decode() if dead else told.dead,
            active if activated else told.model,
            told.activations + len(activated),
        )
        return Batch(notices, reached, now_ms, more)

    async def tell(self, told: Told) -> None:
        """Remember how far the webhook was told."""
        with redis_errors():
            fields: Any = asdict(told)
            await self._redis.hset(WEBHOOK, mapping=fields)

    async def _newest(self, stream: str) -> str:
        newest: Any = await self._redis.xrevrange(stream, count=1)
        return newest[0][0].decode() if newest else "0-0"


def without(batch: Batch, entry: str) -> Batch:
    """The batch before the change of this entry, which has to wait, and with it later changes and another model."""
    changes = [one for one in batch.notices if one.type == "note.searchable"]
    waiting = next(place for place, one in enumerate(changes) if one.entry == entry)
    milliseconds, number = entry.split("-")
    # The place before this entry's: no entry has to be there.
    before = f"{milliseconds}-{int(number) - 1}" if int(number) else f"{int(milliseconds) - 1}-{2**64 - 1}"
    told = replace(batch.told, changes=before)
    for one in batch.notices:
        if one.type == "model.activated":
            told = replace(told, model=str(one.data["before"]), activations=told.activations - 1)
    notices = [*changes[:waiting], *(one for one in batch.notices if one.type == "note.failed")]
    return replace(batch, notices=notices, told=told, more=False)


def _activated(told: Told, active: str, now_ms: int) -> list[Notice]:
    data: dict[str, str | int] = {"model": active, "before": told.model}
    return [Notice(f"m-{told.activations + 1}", "model.activated", datetime.fromtimestamp(now_ms / 1000, UTC), data)]


def _searchable(entries: list[tuple[bytes, dict[bytes, bytes]]], active: str) -> list[Notice]:
    found = []
    for entry, fields in entries:
        if fields.get(b"fingerprint") != active.encode() or b"vector" not in fields:
            continue
        try:
            change = decode_change(entry.decode(), fields)
        except ValueError:  # no index takes it either
            continue
        data: dict[str, str | int] = {"note_id": change.id, "version": change.version, "model": active}
        found.append(Notice(f"s-{change.cursor}", "note.searchable", time_of(change.cursor), data, change.cursor))
    return found


def _failed(entries: list[tuple[bytes, dict[bytes, bytes]]], active: str) -> list[Notice]:
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
        found.append(Notice(f"f-{place}", "note.failed", time_of(place), data, place))
    return found


def time_of(entry: str) -> datetime:
    """When an entry came into its stream, by Redis' clock."""
    return datetime.fromtimestamp(int(entry.split("-")[0]) / 1000, UTC)

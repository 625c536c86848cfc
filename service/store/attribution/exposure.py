"""How often notes were shown, counted from events; and how indexes and caches hear of it.

An event counts a note as shown if it is an impression or a view, unless it follows from suggestions of hashtags. The
count is no part of the note's record: it changes no version, and a client that gives an exposure has its own instead.
What a count gained since indexes heard of it last is kept as the sum of 1 / count, about the logarithm of its growth:
of many notes those that are most out of date go first, and a popular one goes as often as any other.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from service.store.connection import redis_errors
from service.store.jobs import PUBLISH_PREDICTION
from service.store.records import StoredNote
from service.store.schema import EXPOSED, EXPOSURE, LUA, NOTE

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

# Notes that go in one go, and how often: 25 a second are a tenth of what an index takes in beside searches.
PUBLISHED = 250
EVERY_S = 10.0

# Counts an event that was not seen before.
SHOWN = f"""
local function shown(event)
  if event.type ~= 'impression' and event.type ~= 'view' then return end
  if event.answer_id and string.sub(event.answer_id, 17, 19) == '.t.' then return end
  if redis.call('EXISTS', '{NOTE}' .. event.note_id) == 0 then return end
  local count = redis.call('HINCRBY', '{EXPOSURE}', event.note_id, 1)
  redis.call('ZINCRBY', '{EXPOSED}', 1 / count, event.note_id)
end
"""

# ARGV: how many at most. Announces the counts of notes whose exposure no client gave; returns how many it looked at.
PUBLISH_EXPOSURE = (
    LUA
    + PUBLISH_PREDICTION
    + """
local ids = redis.call('ZREVRANGE', EXPOSED, 0, ARGV[1] - 1)
for _, id in ipairs(ids) do
  redis.call('ZREM', EXPOSED, id)
  local note = redis.call('GET', NOTE .. id)
  local stored = note and #note > 26 and not deleted(note) and cmsgpack.unpack(note)
  if stored and stored.exposure == 0 then
    redis.call('XADD', EMBEDDINGS, '*', 'id', id, 'version', string.format('%.0f', version(note)), 'fingerprint', '',
      'exposure', redis.call('HGET', EXPOSURE, id) or '0', 'note', without_text(stored))
    wrote(id)
  end
end
return #ids
"""
)


def ask_for_notes(pipe: "Pipeline", note_ids: Sequence[str]) -> None:
    """Ask for the records of notes, and for their counts; see `notes_of`."""
    pipe.mget([NOTE + note_id for note_id in note_ids])
    pipe.hmget(EXPOSURE, list(note_ids))


def notes_of(records: Iterable[bytes | None], counts: Iterable[bytes | None]) -> list[StoredNote | None]:
    """The answers to both: the notes in order, None where there is none. Raises ValueError on a malformed record."""
    both = zip(records, counts, strict=True)
    return [None if record is None else StoredNote.decode(record, int(count or 0)) for record, count in both]


class Exposure:
    """The counts on their way to indexes and caches; any number of processes may see to it."""

    def __init__(self, redis: "Redis") -> None:
        self._publish = redis.register_script(PUBLISH_EXPOSURE)

    async def __call__(self) -> None:
        """Announce the counts that changed most. Raises StoreUnavailable."""
        with redis_errors():
            await self._publish(args=[PUBLISHED])

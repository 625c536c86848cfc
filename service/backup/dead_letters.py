"""The stream of dead letters: notes that no worker could read or no index take, with the reason."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from service.store.connection import redis_errors
from service.store.records import Fields
from service.store.schema import DEAD, LUA

if TYPE_CHECKING:
    from redis import Redis as SyncRedis

_PAGE = 1000

# ARGV: entry, model, id, version. Queues the note again if that version still stands and failed, and removes the letter
# either way. What an index refused has a prediction, which must go: it would count as published.
RETRY = (
    LUA
    + """
local entry, model, id, number = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('XDEL', DEAD, entry) == 0 then return 0 end
local failed = redis.call('HGET', FAILED .. model, id)
if not (registered(model) and failed and version(failed) == number) then return 0 end
if not live(redis.call('GET', NOTE .. id), number) then return 0 end
redis.call('HDEL', FAILED .. model, id)
redis.call('HDEL', READINGS .. model, id)
queue(model, id, number)
return 1
"""
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A version of a note that failed for the model ``fingerprint``."""

    entry: str
    note_id: str
    version: int
    fingerprint: str
    reason: str

    @classmethod
    def decode(cls, entry: bytes, fields: Fields) -> Self:
        """Of an entry of the stream."""
        named = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
        return cls(entry.decode(), named["id"], int(named["version"]), named["fingerprint"], named["reason"])


def dead_letters(redis: "SyncRedis") -> Iterator[DeadLetter]:
    """All, oldest first. Raises StoreUnavailable."""
    start = "-"
    while True:
        with redis_errors():
            page: Any = redis.xrange(DEAD, start, "+", _PAGE)
        for entry, fields in page:
            yield DeadLetter.decode(entry, fields)
        if len(page) < _PAGE:
            return
        start = f"({page[-1][0].decode()}"


def retry(redis: "SyncRedis", letters: Iterable[DeadLetter]) -> int:
    """Queue the notes that still failed, and remove all letters; how many were queued. Raises StoreUnavailable."""
    script = redis.register_script(RETRY)
    queued = 0
    for letter in letters:
        with redis_errors():
            queued += int(script(args=[letter.entry, letter.fingerprint, letter.note_id, letter.version]))
    return queued

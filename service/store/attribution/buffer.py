"""Answers on their way to the log: an append in the request's path, the rest in the background."""

import logging
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from service import metrics
from service.errors import StoreUnavailable
from service.store.attribution.answers import ServedAnswer
from service.store.attribution.figures import AnswerCounts
from service.store.interfaces import AnswerLog

log = logging.getLogger(__name__)

# Answers of a batch, and notes in their lists: so few that neither the thread which packs them nor the script which
# stores them holds a request up by more than some milliseconds, and so many that each has little of what a batch costs.
BATCH, NOTES = 1000, 20_000
CAPACITY = 20_000
_HASHES = 1 << 32

_LOGGED, _DROPPED = metrics.ANSWERS_LOGGED.labels("logged"), metrics.ANSWERS_LOGGED.labels("dropped")


class AnswerBuffer:
    """Holds answers until `flush` has logged them: at most ``capacity``, further ones are dropped and counted.

    A ``share`` below 1 logs the answers to that share of readers, the same ones always; of answers without a reader, as
    many. None stays without a log. ``counts`` are of all answers, logged or not.
    """

    def __init__(self, log: AnswerLog | None = None, share: float = 1.0, capacity: int = CAPACITY) -> None:
        self.counts = AnswerCounts()
        self._log = log
        self._below = int(share * _HASHES) if log else 0
        self._capacity = capacity
        self._waiting: list[ServedAnswer] = []

    def add(self, answer: ServedAnswer) -> None:
        """Log an answer, soon."""
        if self._below < _HASHES and zlib.crc32((answer.reader or answer.answer_id).encode()) >= self._below:
            return
        if len(self._waiting) < self._capacity:
            self._waiting.append(answer)
        else:
            _DROPPED.inc()

    async def flush(self) -> None:
        """Log what waits. Without the store it goes on waiting; a batch whose acknowledgment was lost comes twice."""
        while self._log and self._waiting:
            count = _first(self._waiting)
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            try:
                await self._log.append(batch)
            except StoreUnavailable:
                room = max(0, self._capacity - len(self._waiting))
                _DROPPED.inc(len(batch[room:]))
                self._waiting = batch[:room] + self._waiting
                return
            _LOGGED.inc(len(batch))


def _first(answers: Sequence[ServedAnswer]) -> int:
    """How many are a batch, from the first on; one at least."""
    notes = list(accumulate(len(answer.ids) for answer in answers[:BATCH]))
    return max(1, bisect_right(notes, NOTES))

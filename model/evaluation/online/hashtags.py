"""What became of suggested hashtags: how many were shown, and how many the notes carry that were written with them."""

from collections import defaultdict
from dataclasses import dataclass

from model.evaluation.online.ratio import Rate, rate
from model.evaluation.online.shown import Log
from model.text.hashtags import fold

# The last write that named the answer counts: an editor may save several times.
_WRITTEN = """
SELECT suggested.model, coalesce(nullif(suggested.reader, ''), suggested.answer_id), suggested.ids, written.ids
FROM (SELECT * FROM answers WHERE scenario = 'tags') AS suggested
LEFT JOIN (SELECT answer_id, last(ids ORDER BY ts) AS ids FROM answers WHERE scenario = 'written' GROUP BY answer_id)
    AS written USING (answer_id)
"""
_SEEN = """
SELECT model, count(*) FROM shown WHERE scenario = 'tags' AND seen GROUP BY model
"""


@dataclass(frozen=True, slots=True)
class Suggested:
    """A model's suggestions: ``answers`` with ``hashtags`` in all, of which ``shown`` were reported as seen.

    ``accepted`` is the rate of those that the note carries, in the answers with which a note was written; None if
    there are none.
    """

    answers: int
    hashtags: int
    shown: int
    accepted: Rate | None


def suggested(log: Log) -> dict[str, Suggested]:
    """By model; hashtags are equal when `fold` makes them so. The intervals know the readers, see `ratio`."""
    answers: dict[str, int] = defaultdict(int)
    hashtags: dict[str, int] = defaultdict(int)
    readers: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for model, reader, ids, written in log.connection.execute(_WRITTEN).fetchall():
        answers[model] += 1
        hashtags[model] += len(ids)
        if written is not None and ids:
            counts = readers[model][reader]
            counts[0] += len(ids)
            counts[1] += len({*map(fold, ids)} & {*map(fold, written)})
    seen = dict(log.connection.execute(_SEEN).fetchall())
    return {
        model: Suggested(answers[model], hashtags[model], seen.get(model, 0), _accepted(readers[model]))
        for model in sorted(answers)
    }


def _accepted(readers: dict[str, list[int]]) -> Rate | None:
    if not readers:
        return None
    n, c = (sum(counts[place] for counts in readers.values()) for place in (0, 1))
    products = [(counts[1] ** 2, counts[1] * counts[0], counts[0] ** 2) for counts in readers.values()]
    cc, cn, nn = (sum(product) for product in zip(*products, strict=True))
    return rate(n, c, len(readers), cc, cn, nn)

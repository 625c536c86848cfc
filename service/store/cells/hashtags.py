"""`HashtagStore` over several cells: their counts added up. The rules are in the first."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from model.text.hashtags import fold
from service.store.cells.ring import Cells, gathered
from service.store.connection import redis_errors
from service.store.hashtags.lists import Place, common, cursor_of, place_of, trends
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.interfaces import HashtagPage, TrendingHashtag, UsedHashtag

if TYPE_CHECKING:
    from redis.asyncio import Redis

_DEEPER = 4


class CellHashtags(RedisHashtags):
    """`HashtagStore` over several cells."""

    def __init__(self, cells: "Cells[Redis]") -> None:
        super().__init__(cells.first)
        self._cells = cells.map(RedisHashtags)

    async def page(self, prefix: str, after: str, limit: int) -> HashtagPage:
        """See `HashtagStore`. The lists of the cells are read as far as a hashtag could stand on the page."""
        with redis_errors():
            start = await self._start(after) if after else None
            found = await self._merged(fold(prefix), start, limit + 1)
            spellings = await self.added_spellings([tag for _, tag in found[:limit]])
        items = [
            UsedHashtag(tag, -minus, tuple(own.items())) for (minus, tag), own in zip(found, spellings, strict=False)
        ]
        return HashtagPage(items, cursor_of(found[limit - 1]) if len(found) > limit else None)

    async def trending(self, days: int, limit: int) -> list[TrendingHashtag]:
        """See `HashtagStore`. Of each day and cell, the hashtags that most notes carry there count."""
        with redis_errors():
            of_cells = await gathered(cell.newest(days) for cell in self._cells)
            newest = sum((counts for counts, _ in of_cells), Counter[str]())
            newest_notes = newest.pop("", 0)
            in_use = await self._totals([tag for tag, _ in common(newest)])
        return trends(newest, in_use, newest_notes, sum(live for _, live in of_cells), limit)

    async def added_spellings(self, tags: Sequence[str]) -> list[dict[str, int]]:
        """See `RedisHashtags.spellings`."""
        of_cells = await gathered(cell.spellings(tags) for cell in self._cells)
        return [_most_first(own) for own in zip(*of_cells, strict=True)]

    async def _start(self, cursor: str) -> Place:
        minus, tag = place_of(cursor)
        if minus is None:
            tag = fold(tag)
            minus = -(await self._totals([tag])).get(tag, 0)
        return minus, tag

    async def _merged(self, prefix: str, after: Place | None, count: int) -> list[Place]:
        """The first places behind one.

        A hashtag that no cell has named yet is carried by no more notes of a cell than the last that it named: those
        found are the first when even the sum of that is fewer (Fagin, Lotem and Naor, "Optimal aggregation algorithms
        for middleware", 2001). In no cell has a hashtag more notes than in all.
        """
        start = None if after is None else (after[0], "")
        depth = count
        while True:
            lists = await gathered(cell.places(prefix, start, depth) for cell in self._cells)
            totals = await self._totals({tag for named in lists for _, tag in named})
            places = sorted((-notes, tag) for tag, notes in totals.items())
            found = [place for place in places if after is None or place > after]
            unnamed = sum(-named[-1][0] for named in lists if len(named) == depth)
            least = -found[count - 1][0] if len(found) >= count else -math.inf
            if not unnamed or least > unnamed:
                return found[:count]
            depth *= _DEEPER

    async def _totals(self, tags: Iterable[str]) -> dict[str, int]:
        named = sorted(tags)
        of_cells = await gathered(cell.notes_of(named) for cell in self._cells)
        return dict(sum(map(Counter, of_cells), Counter[str]()))


def _most_first(spellings: Iterable[dict[str, int]]) -> dict[str, int]:
    added = sum(map(Counter, spellings), Counter[str]())
    return dict(sorted(added.items(), key=lambda one: (one[1], one[0]), reverse=True))

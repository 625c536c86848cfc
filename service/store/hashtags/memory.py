"""`HashtagStore` over the notes of a `MemoryStore`."""

import time
from collections import Counter

from model.text.hashtags import fold
from model.text.suggestions import spelled
from service.contract.fields import seconds
from service.errors import AliasLoop
from service.store.hashtags.lists import cursor_of, place_of, trends
from service.store.interfaces import HashtagPage, HashtagRule, TrendingHashtag, UsedHashtag
from service.store.memory import Faults, MemoryStore
from service.store.records import StoredNote

_DAY_S = 86_400


class MemoryHashtags(Faults):
    """`HashtagStore` that counts anew for every call. A note without created_at is always one of the newest."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store
        self._rules: dict[str, HashtagRule] = {}
        self._revision = 0

    async def page(self, prefix: str, after: str, limit: int) -> HashtagPage:
        """See `HashtagStore`."""
        await self.reached()
        counts: dict[str, Counter[str]] = {}
        for record in self._store.counted():
            for tag, spelling in spelled(record.note.hashtags).items():
                counts.setdefault(tag, Counter())[spelling] += 1
        places = sorted((-count.total(), tag) for tag, count in counts.items() if tag.startswith(fold(prefix)))
        if after:
            minus, tag = place_of(after)
            start = (minus, tag) if minus is not None else (-counts.get(fold(tag), Counter()).total(), fold(tag))
            places = [place for place in places if place > start]
        items = [UsedHashtag(tag, -minus, tuple(_most_first(counts[tag]))) for minus, tag in places[:limit]]
        return HashtagPage(items, cursor_of(places[limit - 1]) if len(places) > limit else None)

    async def trending(self, days: int, limit: int) -> list[TrendingHashtag]:
        """See `HashtagStore`."""
        await self.reached()
        first = int(time.time()) // _DAY_S - days + 1
        notes = self._store.counted()
        newest = [record for record in notes if record.created_at is None or _day(record) >= first]
        return trends(_carried(newest), _carried(notes), len(newest), len(notes), limit)

    async def rules(self, revision: int | None) -> tuple[int, list[HashtagRule]] | None:
        """See `HashtagStore`."""
        await self.reached()
        if revision == self._revision:
            return None
        return self._revision, [self._rules[tag] for tag in sorted(self._rules)]

    async def put_rule(self, rule: HashtagRule) -> None:
        """See `HashtagStore`."""
        await self.reached()
        target: str | None = rule.alias_of
        while target is not None:
            if fold(target) == rule.tag:
                raise AliasLoop("the alias would stand for itself: remove one of the rules that lead back to it first")
            target = self._rules[fold(target)].alias_of if fold(target) in self._rules else None
        self._rules[rule.tag] = rule
        self._revision += 1

    async def remove_rule(self, tag: str) -> None:
        """See `HashtagStore`."""
        await self.reached()
        self._rules.pop(tag, None)
        self._revision += 1


def _most_first(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (one[1], one[0]), reverse=True)


def _carried(records: list[StoredNote]) -> Counter[str]:
    return Counter(tag for record in records for tag in spelled(record.note.hashtags))


def _day(record: StoredNote) -> float:
    return seconds(record.created_at or "") // _DAY_S

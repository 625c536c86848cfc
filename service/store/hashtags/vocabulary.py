"""`HashtagStore` on Redis.

The script that counts a note's hashtags (`service.store.schema`) keeps two orders of all keys: by notes and by letters.
A page is a part of the first. With a prefix that few hashtags have, it is made of the second: either way it costs
about as much on a vocabulary of any size.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from model.text.hashtags import fold
from service.errors import AliasLoop
from service.store.cluster.replicas import acknowledged
from service.store.connection import redis_errors
from service.store.hashtags.lists import Place, common, cursor_of, place_of, trends
from service.store.hashtags.rules import PUT_RULE, REMOVE_RULE, REVISION, decode_rule, encode_rule
from service.store.idempotency import REQUEST
from service.store.interfaces import HashtagPage, HashtagRule, TrendingHashtag, UsedHashtag
from service.store.schema import COUNTS, NEW_TAGS, RULES, TAG, TAG_NAMES, TAGS

if TYPE_CHECKING:
    from redis.asyncio import Redis

BATCH = 1000
# Of one hashtag; the most used ones.
MOST_SPELLINGS = 100
# Of a day: those that most of its notes carry. Further down are hashtags of a note or two.
MOST_OF_A_DAY = 1000
_DAYS_AT_ONCE = 10
# A prefix that fewer than one in so many hashtags have, is looked up by letters.
_RARE = 8
_DAY_S = 86_400


class RedisHashtags:
    """`HashtagStore` on Redis."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._put_rule = acknowledged(redis, PUT_RULE)
        self._remove_rule = acknowledged(redis, REMOVE_RULE)

    async def page(self, prefix: str, after: str, limit: int) -> HashtagPage:
        """See `HashtagStore`."""
        with redis_errors():
            start = await self._place(after) if after else None
            places = await self.places(fold(prefix), start, limit + 1)
            items = await self._used(places[:limit])
        return HashtagPage(items, cursor_of(places[limit - 1]) if len(places) > limit else None)

    async def trending(self, days: int, limit: int) -> list[TrendingHashtag]:
        """See `HashtagStore`. The day begins at midnight, UTC, by Redis' clock."""
        with redis_errors():
            newest, live = await self.newest(days)
            newest_notes = newest.pop("", 0)
            in_use = await self.notes_of([tag for tag, _ in common(newest)])
        return trends(newest, in_use, newest_notes, live, limit)

    async def newest(self, days: int) -> tuple[Counter[str], int]:
        """By key, the notes of the last days that carry a hashtag, under the empty key all of these; and all notes."""
        newest: Counter[str] = Counter()
        (seconds, _), live = await self._redis.time(), await self._redis.hget(COUNTS, "live")
        last = seconds // _DAY_S
        for first in range(last - days + 1, last + 1, _DAYS_AT_ONCE):
            async with self._redis.pipeline(transaction=False) as pipe:
                for day in range(first, min(first + _DAYS_AT_ONCE, last + 1)):
                    pipe.zrevrange(f"{NEW_TAGS}{day}", 0, MOST_OF_A_DAY, withscores=True)
                for counts in await pipe.execute():
                    newest.update({tag.decode(): int(notes) for tag, notes in counts})
        return newest, int(live or 0)

    async def rules(self, revision: int | None) -> tuple[int, list[HashtagRule]] | None:
        """See `HashtagStore`. The usual call looks at one number."""
        with redis_errors():
            if revision is not None and int(await self._redis.hget(RULES, REVISION) or 0) == revision:
                return None
            kept: Any = await self._redis.hgetall(RULES)
        current = int(kept.pop(REVISION.encode(), 0))
        rules = (decode_rule(tag.decode(), value.decode()) for tag, value in kept.items())
        return current, sorted(rules, key=lambda rule: rule.tag)

    async def put_rule(self, rule: HashtagRule) -> None:
        """See `HashtagStore`."""
        with redis_errors():
            if not await self._put_rule(args=[*REQUEST.get(), rule.tag, encode_rule(rule)]):
                raise AliasLoop("the alias would stand for itself: remove one of the rules that lead back to it first")

    async def remove_rule(self, tag: str) -> None:
        """See `HashtagStore`."""
        with redis_errors():
            await self._remove_rule(args=[*REQUEST.get(), tag])

    async def _place(self, cursor: str) -> Place:
        minus_notes, tag = place_of(cursor)
        if minus_notes is None:
            minus_notes = int(await self._redis.zscore(TAGS, fold(tag)) or 0)
            tag = fold(tag)
        return minus_notes, tag

    async def places(self, prefix: str, after: Place | None, count: int) -> list[Place]:
        """The first places behind one, of hashtags with the folded prefix."""
        if prefix and await self._is_rare(prefix):
            named = [place async for places in self._by_letters(prefix) for place in places]
            return sorted(place for place in named if after is None or place > after)[:count]
        found: list[Place] = []
        async for places in self._by_notes(after):
            found += (place for place in places if place[1].startswith(prefix) and (after is None or place > after))
            if len(found) >= count:
                break
        return found[:count]

    async def _is_rare(self, prefix: str) -> bool:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zlexcount(TAG_NAMES, *_between(prefix))
            pipe.zcard(TAG_NAMES)
            named, total = await pipe.execute()
        return int(named) * _RARE < int(total)

    async def _by_letters(self, prefix: str) -> AsyncIterator[list[Place]]:
        low, high = _between(prefix)
        while True:
            names: Any = await self._redis.zrangebylex(TAG_NAMES, low, high, 0, BATCH)
            if not names:
                return
            tags = [name.decode() for name in names]
            notes = await self.notes_of(tags)
            yield [(-notes[tag], tag) for tag in tags if tag in notes]
            low = b"(" + names[-1]

    async def _by_notes(self, after: Place | None) -> AsyncIterator[list[Place]]:
        """All places from this one on, or from a few before it."""
        start = 0
        if after:
            minus_notes, tag = after
            if await self._redis.zscore(TAGS, tag) == minus_notes:
                rank: Any = await self._redis.zrank(TAGS, tag)
                start = rank or 0
            else:  # it has moved: from the first with as many notes
                start = int(await self._redis.zcount(TAGS, "-inf", f"({minus_notes}"))
        while True:
            entries: Any = await self._redis.zrange(TAGS, start, start + BATCH - 1, withscores=True)
            if not entries:
                return
            yield [(int(score), tag.decode()) for tag, score in entries]
            start += BATCH

    async def notes_of(self, tags: Sequence[str]) -> dict[str, int]:
        """The notes that carry each of the hashtags in use, by key."""
        notes: dict[str, int] = {}
        for start in range(0, len(tags), BATCH):
            some = [*tags[start : start + BATCH]]
            scores: Any = await self._redis.zmscore(TAGS, some)
            notes |= {tag: -int(score) for tag, score in zip(some, scores, strict=True) if score is not None}
        return notes

    async def spellings(self, tags: Iterable[str]) -> list[dict[str, int]]:
        """For each key the spellings of live notes, most used first, with their numbers; empty where there are none."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for tag in tags:
                pipe.zrevrange(TAG + tag, 0, MOST_SPELLINGS - 1, withscores=True)
            answers = await pipe.execute()
        return [{name.decode(): int(notes) for name, notes in answer} for answer in answers]

    async def _used(self, places: Sequence[Place]) -> list[UsedHashtag]:
        spellings = await self.spellings(tag for _, tag in places)
        return [
            UsedHashtag(tag, -minus, tuple(own.items())) for (minus, tag), own in zip(places, spellings, strict=True)
        ]


def _between(prefix: str) -> tuple[bytes, bytes]:
    """The bounds of the texts with a prefix; no byte of UTF-8 is as high as the last one's."""
    encoded = prefix.encode()
    return b"[" + encoded, b"(" + encoded + b"\xff"

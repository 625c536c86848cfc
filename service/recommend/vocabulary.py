"""The community's hashtags: lists of them, and the rules for suggesting them as a gateway follows them."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

from model.text.hashtags import fold
from service.deadlines import within
from service.errors import StoreUnavailable
from service.store.interfaces import HashtagPage, HashtagRule, HashtagStore, TrendingHashtag

T = TypeVar("T")


class HashtagRules:
    """Which hashtags are never suggested, and which as another one."""

    def __init__(self, rules: Iterable[HashtagRule] = ()) -> None:
        self._rules = {rule.tag: rule for rule in rules}
        self._stands_for = {tag: self._followed(tag) for tag in self._rules}
        self._aliases: dict[str, list[str]] = {}
        for alias, hashtag in self._stands_for.items():
            if hashtag is not None:
                self._aliases.setdefault(fold(hashtag), []).append(alias)

    def stands_for(self, hashtag: str) -> str | None:
        """What is suggested in the place of a hashtag: itself without a rule, None if it or that one is blocked."""
        return self._stands_for.get(fold(hashtag), hashtag) if self._rules else hashtag

    def allowed(self, hashtags: Iterable[str]) -> list[str]:
        """What the hashtags stand for, in order, without the blocked ones."""
        return [stands_for for one in hashtags if (stands_for := self.stands_for(one)) is not None]

    def merged(self, scored: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
        """`allowed` with scores; of several that are now one, the highest score counts and the first place."""
        best: dict[str, tuple[str, float]] = {}
        for hashtag, score in scored:
            if (stands_for := self.stands_for(hashtag)) is not None:
                key = fold(stands_for)
                best[key] = best.get(key, (stands_for, 0.0))[0], max(score, best.get(key, ("", 0.0))[1])
        return tuple(best.values())

    def aliases(self, hashtag: str) -> Sequence[str]:
        """The hashtags that are suggested as this one."""
        return self._aliases.get(fold(hashtag), ())

    def _followed(self, tag: str) -> str | None:
        hashtag: str | None = tag
        while tag in self._rules and hashtag is not None:
            hashtag = self._rules[tag].alias_of
            tag = "" if hashtag is None else fold(hashtag)
        return hashtag


class HashtagVocabulary:
    """The hashtags in use and their rules. Calls of the store end after ``timeout_s`` with StoreUnavailable."""

    def __init__(self, store: HashtagStore, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._revision: int | None = None
        self._listed: list[HashtagRule] = []
        self._rules = HashtagRules()

    async def page(self, prefix: str, after: str, limit: int) -> HashtagPage:
        """See `HashtagStore`."""
        return await self._asked(lambda: self._store.page(prefix, after, limit))

    async def trending(self, days: int, limit: int) -> list[TrendingHashtag]:
        """See `HashtagStore`."""
        return await self._asked(lambda: self._store.trending(days, limit))

    async def listed(self) -> list[HashtagRule]:
        """All rules, as of now."""
        await self.refresh()
        return self._listed

    async def put_rule(self, rule: HashtagRule) -> None:
        """Keep a rule; this gateway obeys it from now on. Raises AliasLoop."""
        await self._asked(lambda: self._store.put_rule(rule))
        await self.follow()

    async def remove_rule(self, tag: str) -> None:
        """Remove the rule of a hashtag, if it has one."""
        await self._asked(lambda: self._store.remove_rule(tag))
        await self.follow()

    async def rules(self) -> HashtagRules:
        """The rules as they were last heard: also while the store is away, but not if it never answered."""
        if self._revision is None:
            await self.refresh()
        return self._rules

    async def follow(self) -> None:
        """Hear of changes; the rules stay as they are when the store does not answer."""
        with suppress(StoreUnavailable):
            await self.refresh()

    async def refresh(self) -> None:
        """`follow`, or raise StoreUnavailable."""
        heard = await self._asked(lambda: self._store.rules(self._revision))
        if heard:
            self._revision, self._listed = heard
            self._rules = HashtagRules(self._listed)

    async def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        async with within(self._timeout_s, StoreUnavailable):
            return await call()

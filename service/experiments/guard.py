"""The guard over a model that was just activated: where it is clearly worse, the one before is to be active again.

Worse is judged by shares of its answers, against those of the model before: of errors, of empty lists, of lists and
suggestions that take longer, in each of the last minutes, and in all of them together by a bound on chance that holds
for any number of answers, be they five (Hoeffding 1963, https://doi.org/10.1080/01621459.1963.10500830); and by clicks
since it is active, by an interval that holds at every look (`service.experiments.statistics`).
"""

import logging
import math
import secrets
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Any, Protocol

from service import metrics
from service.errors import StoreUnavailable
from service.experiments.statistics import Counts, difference
from service.setting_groups import GuardSettings
from service.store.attribution.figures import EDGES, SLOT_S, Clicks, Figures, Times
from service.store.experiments.watch import Watch

log = logging.getLogger(__name__)

EVERY_S = 5.0
DAY_S = 24 * 3600
REASONS = ("failed", "empty", "slow_lists", "slow_tags", "clicks")
# The share of answers that may take longer than the bound of time: that of a 95th percentile.
_TAIL = 0.05
# In seconds. Nobody notices what is below, however much faster the model before was.
_QUICK_S = 0.05
# A model at its limit exceeds it by chance as far as it takes with a probability of exp(-10.4), that of four standard
# deviations: it is looked at every five seconds for a day.
_SURE = 10.4
# Workers of the model before tell of themselves every two seconds.
_WORKER_RUNS_S = 15
_BASELINE_S, _CLICKS_S = 3600, 7 * DAY_S
# Groups of readers, weighted by what was shown to them, below which their rates tell nothing.
_FEWEST_GROUPS = 10


@dataclass(frozen=True, slots=True)
class Baseline:
    """Of the model before, at the change: the figures of an hour and the clicks of a week.

    ``counted`` are the clicks that the model after it had by then, of the same day.
    """

    figures: Figures
    clicks: Clicks
    counted: Clicks

    @classmethod
    def decode(cls, fields: dict[str, Any]) -> "Baseline":
        """Of JSON of its fields."""
        figures = fields["figures"]
        clicks, counted = (Clicks(*map(tuple, fields[name].values())) for name in ("clicks", "counted"))
        times = tuple(figures["lists"]), tuple(figures["tags"])
        return cls(Figures(*times, figures["empty"], figures["failed"]), clicks, counted)


@dataclass(frozen=True, slots=True)
class Fallen:
    """A bound that a model does not keep: one of `REASONS`, and what is wrong in words."""

    reason: str
    detail: str


def fallen(before: Baseline, minutes: Sequence[Figures], clicks: Clicks | None, bounds: GuardSettings) -> Fallen | None:
    """The first bound that a model does not keep, None if it keeps all of them or too little is known.

    Args:
        minutes: its figures of each of the last minutes.
        clicks: of its lists since it is active; None if it is too early for them.
    """
    for reason, share, limit, text in _shares(before.figures, bounds):
        if is_above([share(minute) for minute in minutes], limit):
            bad, trials = share(reduce(add, minutes))
            return Fallen(reason, f"{text}: {bad / trials:.1%}, where {limit:.1%} are the limit")
    if clicks and _is_clicked_less(before.clicks, clicks, bounds):
        rates = [sum(one.clicked) / sum(one.shown) for one in (clicks, before.clicks)]
        return Fallen("clicks", f"{rates[0]:.2%} of items shown are clicked, where {rates[1]:.2%} were before")
    return None


Share = Callable[[Figures], tuple[int, int]]


def _shares(before: Figures, bounds: GuardSettings) -> list[tuple[str, Share, float, str]]:
    """What is judged: its reason, bad ones and all of some figures, the limit, in words; nothing of what is unknown."""
    found: list[tuple[str, Share, float, str]] = []

    def failed(figures: Figures) -> tuple[int, int]:
        return figures.failed, figures.answers

    def empty(figures: Figures) -> tuple[int, int]:
        return figures.empty, sum(figures.lists)

    for reason, share, more, text in (
        ("failed", failed, bounds.failed, "answers that failed"),
        ("empty", empty, bounds.empty, "empty lists"),
    ):
        bad, trials = share(before)
        if trials >= bounds.answers:
            found.append((reason, share, bad / trials + more, text))
    for reason, name, text in (("slow_lists", "lists", "lists"), ("slow_tags", "tags", "suggestions of hashtags")):
        times: Times = getattr(before, name)
        if sum(times) >= bounds.answers:
            edge = _edge_of(max(bounds.slow * _slow_s(times), _QUICK_S))
            found.append((reason, _slower(name, edge), _TAIL, f"{text} that take longer than {_edge_s(edge):.2g} s"))
    return found


def _slower(name: str, edge: int) -> Share:
    def share(figures: Figures) -> tuple[int, int]:
        times: Times = getattr(figures, name)
        return sum(times[edge + 1 :]), sum(times)

    return share


def _slow_s(times: Times) -> float:
    """The time in seconds that a share of `_TAIL` takes longer than: the upper end of its bucket."""
    below = accumulate(times)
    return _edge_s(next(edge for edge, count in enumerate(below) if count >= (1 - _TAIL) * sum(times)))


def _edge_s(edge: int) -> float:
    return EDGES[min(edge, len(EDGES) - 1)]


def _edge_of(seconds: float) -> int:
    """The bucket that this time is in."""
    return min(bisect_left(EDGES, seconds), len(EDGES) - 1)


def is_above(minutes: Sequence[tuple[int, int]], limit: float) -> bool:
    """Whether a share is above a limit in every minute, and in all of them by more than chance.

    Of ``trials`` with a share that is at the limit, ``bad`` or more are bad with a probability of ``exp(-trials * d)``
    at most, d the relative entropy of the share seen to the limit (Hoeffding's theorem 1).
    """
    bad, trials = sum(some for some, _ in minutes), sum(of for _, of in minutes)
    if not all(of and some / of > limit for some, of in minutes):
        return False
    seen = bad / trials
    entropy = seen * math.log(seen / limit)
    if bad < trials:
        entropy += (1 - seen) * math.log((1 - seen) / (1 - limit))
    return trials * entropy > _SURE


def _is_clicked_less(before: Clicks, after: Clicks, bounds: GuardSettings) -> bool:
    if min(sum(before.shown), sum(after.shown)) < bounds.impressions:
        return False
    if any(sum(one.clicked) > sum(one.shown) for one in (before, after)):
        return False  # nobody reports impressions
    least = Counts.of([bounds.clicks * count for count in before.clicked], before.shown)
    change = difference(least, Counts.of(after.clicked, after.shown), fewest=_FEWEST_GROUPS)
    return change is not None and change.is_less


class _Watches(Protocol):
    """See `service.store.experiments.watches.Watches`."""

    async def now(self) -> tuple[Watch | None, float]: ...
    async def lease(self, holder: str) -> bool: ...
    async def keep(self, watch: Watch, baseline: dict[str, Any]) -> None: ...
    async def block(self, watch: Watch, reason: str, detail: str, blocked: str) -> None: ...
    async def end(self, watch: Watch) -> None: ...
    async def order(self, watch: Watch, reason: str, detail: str) -> None: ...
    async def clear(self, watch: Watch) -> None: ...


class _Quality(Protocol):
    """See `service.store.attribution.quality.Quality`."""

    async def figures(self, model: str, since: float, until: float) -> list[Figures]: ...
    async def clicks(self, model: str, since: float, until: float) -> Clicks: ...


class Guard:
    """The guard in each gateway: all of them follow the watch, one at a time judges.

    ``obstacle`` says why a model cannot take the place of the active one, None if it can; it may raise
    StoreUnavailable. ``latest`` is the last watch; None before the first.
    """

    def __init__(
        self,
        watches: _Watches,
        quality: _Quality,
        obstacle: Callable[[str, str], Awaitable[str | None]],
        bounds: GuardSettings,
    ) -> None:
        self._watches = watches
        self._quality = quality
        self._obstacle = obstacle
        self._bounds = bounds
        self._name = secrets.token_hex(8)
        self.latest: Watch | None = None

    async def __call__(self) -> None:
        """Look once; without the store nothing is known, and nothing changes."""
        with suppress(StoreUnavailable):
            watch, now = await self._watches.now()
            self.latest = watch
            self._export(watch, now)
            if watch and watch.state == "watching" and self._bounds.hours and await self._watches.lease(self._name):
                await self._judge(watch, now)

    async def _judge(self, watch: Watch, now: float) -> None:
        if watch.baseline is None:
            await self._watches.keep(watch, asdict(await self._measure(watch, now)))
            return
        if now > watch.since + self._bounds.hours * 3600:
            await self._watches.end(watch)
            return
        found = await self._fallen(watch, Baseline.decode(watch.baseline), now)
        if found is None:
            if watch.reason:
                await self._watches.clear(watch)
            return
        if obstacle := await self._in_the_way(watch, now):
            if obstacle != watch.blocked:
                log.error(
                    "way_back_blocked", extra={"fingerprint": watch.model, "detail": found.detail, "why": obstacle}
                )
            await self._watches.block(watch, found.reason, found.detail, obstacle)
        else:
            await self._watches.order(watch, found.reason, found.detail)

    async def _in_the_way(self, watch: Watch, now: float) -> str | None:
        if watch.worker is None or now - watch.worker > _WORKER_RUNS_S:
            return f"no worker of {watch.before} runs"
        return await self._obstacle(watch.before, watch.model)

    async def _measure(self, watch: Watch, now: float) -> Baseline:
        slots = await self._quality.figures(watch.before, watch.since - _BASELINE_S, watch.since)
        clicks = await self._quality.clicks(watch.before, watch.since - _CLICKS_S, now)
        return Baseline(reduce(add, slots, Figures()), clicks, await self._clicks(watch, now))

    async def _clicks(self, watch: Watch, now: float) -> Clicks:
        return await self._quality.clicks(watch.model, watch.since, now)

    async def _fallen(self, watch: Watch, before: Baseline, now: float) -> Fallen | None:
        # Gateways may still add to the last slots.
        until = (now - SLOT_S) // SLOT_S * SLOT_S
        since = until - 60 * self._bounds.minutes
        if since < watch.since:
            return None
        slots = await self._quality.figures(watch.model, since, until)
        each = 60 // SLOT_S
        minutes = [reduce(add, slots[start : start + each]) for start in range(0, len(slots), each)]
        clicks = None
        if now >= watch.since + 60 * self._bounds.click_minutes:
            clicks = await self._clicks(watch, now) - before.counted
        return fallen(before, minutes, clicks, self._bounds)

    def _export(self, watch: Watch | None, now: float) -> None:
        def is_on(state: str) -> bool:
            if watch is None:
                return False
            if state == "taken_back":
                return watch.state == state and now < (watch.ended or 0) + DAY_S
            return watch.state == "watching" and (state == "watching" or bool(watch.blocked))

        for state in ("watching", "taken_back", "blocked"):
            metrics.GUARD.labels(state).set(is_on(state))

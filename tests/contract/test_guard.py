"""A model that was activated, watched on a real Redis by a fast clock, and taken back where it is worse."""

import logging
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from support.aging import grow_older

from service.experiments.guard import Guard
from service.experiments.way_back import WayBack
from service.setting_groups import GuardSettings
from service.store.attribution.answers import new_answer_id
from service.store.attribution.figures import SLOT_S, AnswerCounts
from service.store.attribution.quality import Quality
from service.store.events import RedisEvents
from service.store.experiments.experiments import Experiments
from service.store.experiments.records import Arm
from service.store.experiments.watches import Watches
from service.store.records import Event
from service.store.registry import Registry
from service.store.schema import GUARDIAN, MODELS, WATCH

OLD, NEW, THIRD = "0000000a", "0000000b", "0000000c"
MINUTES = 5
LISTS = 20  # each ten seconds
# From the last answer of the minutes to the flip: slots that gateways may still add to, and one that is not over.
BOUND_S = 60

Answers = Callable[[AnswerCounts, str], None]


def healthy(counts: AnswerCounts, model: str) -> None:
    for _ in range(LISTS):
        counts.answered(model, "list", 0.02)


def slow(counts: AnswerCounts, model: str) -> None:
    for _ in range(LISTS):
        counts.answered(model, "list", 0.3)


def empty(counts: AnswerCounts, model: str) -> None:
    for number in range(LISTS):
        counts.answered(model, "list", 0.02, empty=number % 4 == 0)


def failing(counts: AnswerCounts, model: str) -> None:
    healthy(counts, model)
    for _ in range(3):
        counts.failed(model)


def slow_tags(counts: AnswerCounts, model: str) -> None:
    healthy(counts, model)
    for _ in range(LISTS):
        counts.answered(model, "tags", 4.0 if model == NEW else 0.5)


class Service:
    """Gateways that count, and the guard of one; a clock that is moved by moving what is stored into the past."""

    def __init__(self, redis: Redis, bounds: GuardSettings) -> None:
        self.redis = redis
        self.registry, self.experiments, self.watches = Registry(redis), Experiments(redis), Watches(redis)
        self.counts = AnswerCounts()
        self.quality = Quality(redis, self.counts)
        self.obstacles: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.bounds = bounds
        self.guard = self.another_gateway()
        self.worker_of_old = WayBack(OLD, self.watches.take_back)
        self.events = RedisEvents(redis)
        self.shown = 0

    def another_gateway(self) -> Guard:
        return Guard(self.watches, self.quality, self._obstacle, self.bounds)

    async def _obstacle(self, model: str, active: str) -> str | None:
        self.asked.append((model, active))
        return self.obstacles.get(model)

    async def passes(self, seconds: float, answers: Answers | None = None, model: str = "") -> None:
        """Time goes by, in which a model answers."""
        for _ in range(int(seconds / SLOT_S)):
            if answers:
                answers(self.counts, model)
                await self.quality.flush()
            await grow_older(self.redis, SLOT_S)
            await self.guard()
            await self.worker_of_old()

    async def until_taken_back(self, answers: Answers) -> float:
        """Seconds that NEW may answer like this for; ends after ten minutes."""
        for step in range(60):
            if await self.registry.active() == OLD:
                return step * SLOT_S
            await self.passes(SLOT_S, answers, NEW)
        return float("inf")

    async def are_shown(self, model: str, lists: int, clicked_of_100: int) -> None:
        """Each reader looks at one list of ten, and clicks in some."""
        events = []
        for number in range(lists):
            answer_id, reader = new_answer_id("related", model), f"reader-{self.shown}"
            self.shown += 1
            for place in range(1, 11):
                kinds = ["impression", *(["click"] if (number * 10 + place) % 100 < clicked_of_100 else [])]
                events += [
                    Event(
                        f"{answer_id}{kind}{place}", reader, f"n{place}", kind, 1e9, answer_id=answer_id, position=place
                    )
                    for kind in kinds
                ]
        await self.events.append(events)


@pytest.fixture
async def service(redis: Redis) -> Service:
    service = Service(redis, GuardSettings(minutes=MINUTES))
    await redis.hset(MODELS, mapping={OLD: 2, NEW: 2, THIRD: 2})
    assert await service.registry.activate(OLD)
    for _ in range(20):
        healthy(service.counts, OLD)
    for _ in range(300):
        service.counts.answered(OLD, "tags", 0.5)
    await service.quality.flush()
    await service.passes(60)
    return service


@pytest.fixture
async def shipped(service: Service) -> Service:
    """NEW was shipped from an experiment, and the guard knows how OLD did."""
    await service.experiments.start("one", (Arm("A", OLD, {}), Arm("B", NEW, {})), 1.0)
    assert await service.experiments.ship("one", "B") == "done"
    await service.guard()
    return service


@pytest.mark.parametrize(
    ("answers", "reason"),
    [(slow, "slow_lists"), (empty, "empty"), (failing, "failed"), (slow_tags, "slow_tags")],
)
async def test_a_model_that_answers_worse_is_taken_back_after_minutes_of_it(shipped, caplog, answers, reason):
    labels = {"reason": reason}
    before = REGISTRY.get_sample_value("notellm_models_taken_back_total", labels) or 0

    seconds = await shipped.until_taken_back(answers)

    assert 60 * MINUTES <= seconds <= 60 * MINUTES + BOUND_S
    await shipped.guard()
    assert (shipped.guard.latest.state, shipped.guard.latest.reason) == ("taken_back", reason)
    assert "where" in shipped.guard.latest.detail
    assert REGISTRY.get_sample_value("notellm_models_taken_back_total", labels) == before + 1
    assert [REGISTRY.get_sample_value("notellm_guard", {"state": s}) for s in ("watching", "taken_back")] == [0, 1]
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (line.message, line.fingerprint, line.active, line.reason) == ("model_taken_back", NEW, OLD, reason)
    assert shipped.asked == [(OLD, NEW)]


async def test_a_model_that_answers_as_before_stays_and_is_kept_when_its_time_is_over(shipped):
    await shipped.passes(400, healthy, NEW)
    assert (await shipped.registry.active(), shipped.guard.latest.state) == (NEW, "watching")

    shipped.bounds = GuardSettings(hours=0.1)
    shipped.guard = shipped.another_gateway()
    await shipped.redis.delete(GUARDIAN)
    await shipped.passes(20)
    assert (await shipped.registry.active(), shipped.guard.latest.state) == (NEW, "kept")


async def test_what_is_worse_for_less_than_the_minutes_changes_nothing(shipped):
    for answers, seconds in ((slow, 120), (healthy, 180), (slow, 120)):
        await shipped.passes(seconds, answers, NEW)

    assert await shipped.registry.active() == NEW


@pytest.mark.parametrize(("worse", "of", "active"), [("failed", 50, NEW), ("slow", 2, NEW), ("slow", 1, OLD)])
async def test_what_chance_may_do_decides_nothing_however_few_the_answers(shipped, worse, of, active):
    """One answer a minute is worse: of 50 or of two, a model without fault may have that; all five of five hardly."""

    def unlucky(counts: AnswerCounts, model: str) -> None:
        for _ in range(of - 1):
            counts.answered(model, "list", 0.02)
        if worse == "failed":
            counts.failed(model)
        else:
            counts.answered(model, "list", 0.3)

    for _ in range(MINUTES + 2):
        await shipped.passes(SLOT_S, unlucky, NEW)
        await shipped.passes(60 - SLOT_S)

    assert await shipped.registry.active() == active


async def test_a_minute_without_answers_says_nothing(shipped):
    for _ in range(MINUTES + 2):
        await shipped.passes(SLOT_S, slow, NEW)
        await shipped.passes(80 - SLOT_S)

    assert await shipped.registry.active() == NEW


async def test_a_model_of_which_nothing_is_known_is_no_measure(service):
    await service.registry.activate(THIRD)
    await service.guard()
    await service.registry.activate(OLD)  # of THIRD, nothing was measured
    await service.redis.hset(WATCH, "state", "watching")
    await service.guard()
    await service.passes(400, slow, OLD)
    assert await service.registry.active() == OLD


@pytest.mark.parametrize(("clicked", "active"), [(10, NEW), (8, NEW), (3, OLD), (0, OLD)])
async def test_lists_of_notes_that_nobody_clicks_are_taken_back_and_no_others(service, clicked, active):
    await service.are_shown(OLD, 400, 10)
    await service.are_shown(NEW, 200, 25)  # as an arm, before it was shipped
    await service.registry.activate(NEW)
    await service.guard()
    await service.are_shown(NEW, 50, 0)
    await grow_older(service.redis, 900)
    await service.guard()
    assert await service.registry.active() == NEW  # 500 items decide nothing

    await service.are_shown(NEW, 350, clicked)
    await service.passes(60, healthy, NEW)

    assert await service.registry.active() == active


async def test_before_their_time_clicks_decide_nothing(service):
    await service.are_shown(OLD, 400, 10)
    await service.registry.activate(NEW)
    await service.guard()
    await service.are_shown(NEW, 400, 0)

    await grow_older(service.redis, 850)
    await service.passes(20, healthy, NEW)
    assert await service.registry.active() == NEW
    await service.passes(50, healthy, NEW)
    assert (await service.registry.active(), service.guard.latest.reason) == (OLD, "clicks")


async def test_it_does_not_go_back_to_a_model_that_cannot_answer_and_says_so_until_it_can(shipped):
    shipped.obstacles[OLD] = f"no worker of {OLD} runs"

    await shipped.passes(400, slow, NEW)

    assert (await shipped.registry.active(), shipped.guard.latest.state) == (NEW, "watching")
    assert shipped.guard.latest.blocked == f"no worker of {OLD} runs"
    assert f"but no worker of {OLD} runs" in str(shipped.guard.latest)
    assert REGISTRY.get_sample_value("notellm_guard", {"state": "blocked"}) == 1
    await shipped.passes(90, healthy, NEW)
    assert shipped.guard.latest.blocked == ""
    shipped.obstacles.clear()
    assert await shipped.until_taken_back(slow) < float("inf")


async def test_a_worker_of_the_model_before_that_ended_is_missed(shipped):
    async def ended() -> None:
        """Says nothing any longer."""

    await shipped.passes(20, healthy, NEW)
    shipped.worker_of_old = ended
    await shipped.passes(360, slow, NEW)
    assert shipped.guard.latest.blocked == f"no worker of {OLD} runs"


async def test_a_model_that_was_retired_since_is_not_gone_back_to(shipped):
    await shipped.redis.hdel(MODELS, OLD)

    await shipped.passes(400, slow, NEW)

    assert await shipped.registry.active() == NEW


async def test_it_fights_nobody_who_activates_a_model_after_it(shipped):
    await shipped.until_taken_back(slow)
    assert await shipped.registry.activate(NEW)  # all the same
    await shipped.passes(60, slow, NEW)
    assert (await shipped.registry.active(), shipped.guard.latest.state) == (NEW, "unwatched")

    assert await shipped.registry.activate(THIRD)
    await shipped.passes(20, healthy, THIRD)
    assert (shipped.guard.latest.model, shipped.guard.latest.before) == (THIRD, NEW)
    assert shipped.guard.latest.state == "watching"


async def test_who_goes_back_themselves_is_not_taken_back_in_turn(shipped):
    await shipped.passes(60, slow, NEW)
    await shipped.registry.activate(OLD)

    await shipped.passes(60, slow, OLD)

    assert (await shipped.registry.active(), shipped.guard.latest.state) == (OLD, "unwatched")


async def test_a_word_of_somebody_between_a_look_and_its_end_is_the_last(shipped):
    watch, _ = await shipped.watches.now()
    await shipped.registry.activate(THIRD)

    await shipped.watches.order(watch, "failed", "…")
    await shipped.worker_of_old()

    latest, _ = await shipped.watches.now()
    assert (await shipped.registry.active(), latest.model, latest.reason) == (THIRD, THIRD, "")


async def test_a_word_of_somebody_between_an_order_and_the_worker_is_the_last(shipped):
    watch, _ = await shipped.watches.now()
    await shipped.watches.order(watch, "failed", "…")
    await shipped.registry.activate(THIRD)
    await shipped.worker_of_old()
    assert await shipped.registry.active() == THIRD


async def test_what_is_ordered_is_done_by_workers_of_the_model_before_and_once(shipped):
    watch, _ = await shipped.watches.now()
    await WayBack(OLD, shipped.watches.take_back)()
    assert await shipped.registry.active() == NEW  # nothing is ordered
    await shipped.watches.order(watch, "failed", "…")
    for other in (NEW, THIRD):
        assert await shipped.watches.take_back(other) is None

    assert await shipped.watches.take_back(OLD) == (NEW, "failed", "…")
    assert await shipped.watches.take_back(OLD) is None


async def test_of_all_gateways_one_judges_at_a_time(shipped):
    assert await shipped.watches.lease("other") is False
    await shipped.redis.set(GUARDIAN, "other")
    await shipped.passes(400, slow, NEW)
    assert (await shipped.registry.active(), shipped.guard.latest.state) == (NEW, "watching")

    await shipped.redis.delete(GUARDIAN)
    await shipped.guard()
    await shipped.worker_of_old()
    assert await shipped.registry.active() == OLD
    assert 0 < await shipped.redis.ttl(GUARDIAN) <= 15


async def test_zero_hours_watch_nothing(redis, service):
    service.bounds = GuardSettings(hours=0)
    service.guard = service.another_gateway()
    await service.registry.activate(NEW)
    await service.passes(400, slow, NEW)

    assert await service.registry.active() == NEW
    assert not await redis.exists(GUARDIAN)


async def test_while_redis_is_away_nothing_is_kept_for_a_wrong_time(redis_server, service):
    healthy(service.counts, OLD)
    lost = Quality(Redis.from_url("unix:///nowhere"), service.counts)
    await lost.flush()

    assert service.counts.taken() == []

"""Two models side by side on a real Redis and real indexer processes: rolled out, back again, and retired."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis
from support.aging import grow_older
from support.indexers import Indexers
from support.redis import RedisServer
from support.service import NOTELLM
from support.working import until, working

from indexer.serving.client import ShardedSearcher
from indexer.types import Hits, ShardUnavailable
from model.inference.hashing import HashingBackend, text_vector
from model.note import Note
from service.api.app import create_app
from service.cli.learn.turn import Turn
from service.cli.main import cli
from service.contract.experiments import ReportOut
from service.experiments.assignment import Assignments
from service.experiments.guard import Guard
from service.experiments.overview import Overview
from service.experiments.way_back import WayBack
from service.recommend.active_model import ActiveModel
from service.recommend.recommender import Recommender
from service.recommend.vocabulary import HashtagVocabulary
from service.recommend.workers import WorkerPool
from service.setting_groups import GuardSettings, HttpSettings, IndexSettings
from service.settings import Settings
from service.store.attribution.answers import ServedAnswer
from service.store.attribution.buffer import AnswerBuffer
from service.store.attribution.log import RedisAnswerLog
from service.store.attribution.quality import Quality
from service.store.connection import open_redis
from service.store.events import RedisEvents
from service.store.experiments.experiments import Experiments
from service.store.experiments.findings import Findings
from service.store.experiments.watches import Watches
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.idempotency import RedisAnswers
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import Event, StoredNote, StoredPrediction
from service.store.registry import Registry
from service.store.rollout import Gap, obstacle, take_over
from service.store.schema import FINDINGS, JOBS, WATCH, WORKERS

OLD, NEW = "0000000000000001", "0000000000000002"
SHARDS = 2
NOTES = 60
K = 5
FOLLOW_EVERY_S = 0.05


class Community:
    """What was written, and by definition: which notes are related in the eyes of each model."""

    def __init__(self, store: RedisStore) -> None:
        self.titles: dict[str, str] = {}
        self._store = store

    async def write(self, titles: dict[str, str]) -> None:
        await self._store.put([StoredNote(Note(id_, title), 0) for id_, title in titles.items()])
        self.titles |= titles

    async def delete(self, id_: str) -> None:
        await self._store.delete(id_)
        del self.titles[id_]

    def related(self, model: str, id_: str) -> list[str]:
        cosines = {
            other: float(text_vector(model + title) @ text_vector(model + self.titles[id_]))
            for other, title in self.titles.items()
            if other != id_
        }
        return sorted(cosines, key=lambda other: -cosines[other])[:K]


class Rollout:
    """Indexers as processes; workers, a gateway's app and what rolls models out in this one."""

    def __init__(self, redis: Redis, indexers: Indexers) -> None:
        self.redis = redis
        self.indexers = indexers
        self.registry = Registry(redis)
        self.store = RedisStore(redis, 10_000)
        self.community = Community(self.store)
        self.searcher = ShardedSearcher(indexers.addresses, "")
        settings = Settings(http=HttpSettings(related_s=10), index=IndexSettings(addresses=tuple(indexers.addresses)))
        workers = WorkerPool([], "")
        seams = self.store, RedisEvents(redis), HashtagVocabulary(RedisHashtags(redis), 1.0)

        self.slow_s: dict[str, float] = {}

        def recommender(model: str) -> Recommender:
            return Recommender(*seams, self._delayed(model), workers.of(model), settings, model)

        self.assignments = Assignments(Experiments(redis).changed)
        self.active = ActiveModel(self.registry.active, "", recommender, self.assignments)
        buffer = AnswerBuffer()
        app = create_app(self.active, RedisAnswers(redis), settings, buffer=buffer, watch=lambda: self.guard.latest)
        self.quality, self.watches = Quality(redis, buffer.counts), Watches(redis)
        way_back = partial(obstacle, self.registry, self.searcher)
        self.guard = Guard(self.watches, self.quality, way_back, GuardSettings(minutes=1, answers=NOTES))
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def _delayed(self, model: str) -> ShardedSearcher:
        """The searcher of a model, which takes as long as the test says."""
        searcher = self.searcher.of(model)
        search = searcher.search

        async def late(*words: Any, **named: Any) -> Hits:
            await asyncio.sleep(self.slow_s.get(model, 0))
            return await search(*words, **named)

        searcher.search = late
        return searcher

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """The gateway reads the pointer and the experiments over and over."""

        async def follow() -> None:
            while True:
                await self.active.follow()
                await self.assignments.follow()
                await asyncio.sleep(FOLLOW_EVERY_S)

        following = asyncio.create_task(follow())
        yield
        following.cancel()

    @asynccontextmanager
    async def worker(self, model: str) -> AsyncIterator[None]:
        """A worker of this model, until the end of the block."""
        async with working(HashingBackend(model), self.redis) as worker:
            running = asyncio.create_task(worker.run())
            yield
            worker.stop()
            await running

    async def complete(self, model: str) -> bool:
        """Whether all shards find all notes with this model, as they were last written."""
        held = self.searcher.of(model)
        for id_, title in self.community.titles.items():
            try:
                found = await held.lookup(id_, timeout_s=5)
            except ShardUnavailable:
                return False
            if found is None or not np.allclose(found.vector, text_vector(model + title), atol=1e-6):
                return False
        states = await held.status(timeout_s=5)
        return len(states) == SHARDS and sum(state.notes for state in states) == len(self.community.titles)

    async def related(self, id_: str, **headers: str) -> tuple[str, list[str]]:
        """Which model answered, and what."""
        answer = await self.client.get(f"/notes/{id_}/related", params={"k": K}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert not answer.json()["degraded"]
        return answer.json()["model"], [item["note_id"] for item in answer.json()["items"]]

    async def answers_as(self, model: str) -> None:
        """Waits for the pointer to arrive, then looks at every note."""
        await until(lambda: self._follows(model))
        for id_ in self.community.titles:
            assert await self.related(id_) == (model, self.community.related(model, id_))

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`notellm model`, as a person types it."""
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(
            [*NOTELLM, "model", *words],
            env=environment | self.indexers.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    async def _follows(self, model: str) -> bool:
        return self.active.fingerprint == model


@pytest.fixture
async def rollout(tmp_path: Path, redis: Redis, redis_server: RedisServer) -> AsyncIterator[Rollout]:
    indexers = Indexers(tmp_path, redis_server.url, SHARDS)
    rollout = Rollout(redis, indexers)
    for place in indexers.everywhere:
        indexers.start(*place)
    async with rollout.following():
        yield rollout
    await rollout.client.aclose()
    await rollout.searcher.close()
    indexers.end_all()


def both(rollout: Rollout) -> Callable[[], object]:
    async def complete() -> bool:
        return await rollout.complete(OLD) and await rollout.complete(NEW)

    return complete


async def test_every_answer_is_of_one_model_while_the_pointer_goes_to_and_fro_under_readers(rollout):
    community, answered, enough = rollout.community, Counter(), asyncio.Event()
    await community.write({f"n{row}": f"title {row}" for row in range(NOTES)})
    ids = list(community.titles)
    expected = {model: {id_: community.related(model, id_) for id_ in ids} for model in (OLD, NEW)}
    assert all(expected[OLD][id_] != expected[NEW][id_] for id_ in ids)

    async def read(reader: int) -> None:
        step = 0
        while not enough.is_set():
            id_ = ids[(7 * reader + step) % NOTES]
            model, found = await rollout.related(id_)
            assert found == expected[model][id_], model
            answered[model] += 1
            step += 1

    async def seen(model: str, more: int) -> bool:
        return answered[model] >= more

    async with AsyncExitStack() as workers:
        await workers.enter_async_context(rollout.worker(OLD))
        await until(lambda: rollout.complete(OLD))
        await rollout.answers_as(OLD)
        await workers.enter_async_context(rollout.worker(NEW))
        await until(lambda: rollout.complete(NEW))
        assert rollout.active.fingerprint == OLD

        readers = [asyncio.create_task(read(reader)) for reader in range(8)]
        for flip in range(10):
            model = (NEW, OLD)[flip % 2]
            assert await rollout.registry.activate(model)
            await until(lambda model=model, more=answered[model] + 20: seen(model, more))
        enough.set()
        await asyncio.gather(*readers)


async def test_what_is_written_edited_and_deleted_during_a_rollout_is_right_in_both_and_after_a_kill(rollout):
    community = rollout.community
    await community.write({f"n{row}": f"title {row}" for row in range(NOTES)})
    async with rollout.worker(OLD), AsyncExitStack() as workers:
        await until(lambda: rollout.complete(OLD))
        await workers.enter_async_context(rollout.worker(NEW))
        await community.write({"n1": "edited", "n2": "edited, too", "late": "came during the rollout"})
        await community.delete("n3")
        rollout.indexers.end(0)
        await community.write({"n4": "edited while a shard was away"})
        await community.delete("n5")
        rollout.indexers.start(0)
        await until(both(rollout))

        for model in (OLD, NEW, OLD):
            assert await rollout.registry.activate(model)
            await rollout.answers_as(model)
            assert (await rollout.client.get("/notes/n3/related")).status_code == 404
            note = (await rollout.client.get("/notes/n1")).json()
            assert (note["version"], note["status"], note["suggested_hashtags"][0]["tag"]) == (
                2,
                "searchable",
                "edited",
            )

        # The old model's worker saw everything, so that to go back needed no waiting; with none, notes wait.
        assert await rollout.registry.activate(NEW)
        await rollout.answers_as(NEW)
        await workers.aclose()
        await community.write({"n6": "nobody reads this as the new model does"})
        await until(lambda: rollout.complete(OLD))
        assert (await rollout.client.get("/notes/n6/related")).json()["stale"]
        assert (await rollout.client.get("/status")).json()["queue"]["depth"] == 1
        assert await rollout.registry.activate(OLD)
        await rollout.answers_as(OLD)
        assert (await rollout.client.get("/status")).json()["queue"]["depth"] == 0


async def test_the_commands_activate_what_is_complete_and_retire_what_nobody_needs(rollout):
    community = rollout.community
    await community.write({f"n{row}": f"title {row}" for row in range(NOTES)})
    assert "no model" in (await asyncio.to_thread(rollout.command, "activate", NEW)).stderr
    async with rollout.worker(OLD):
        await until(lambda: rollout.complete(OLD))
    async with rollout.worker(NEW):
        await until(lambda: rollout.complete(NEW))
    await community.write({"more": "read by one model only"})
    async with rollout.worker(OLD):
        await until(lambda: rollout.complete(OLD))

        refused = await asyncio.to_thread(rollout.command, "activate", NEW)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith(f"notellm: {NEW} lacks 1 notes that {OLD} finds")
        listed = (await asyncio.to_thread(rollout.command, "list")).stdout.splitlines()
        assert [line.split() for line in listed[1:]] == [
            [OLD, "active", "61", "0", "0"],
            [NEW, "60", "0", "1", "1"],
        ]
        assert (await asyncio.to_thread(rollout.command, "activate", NEW, "--force")).returncode == 0
        assert await rollout.registry.active() == NEW
        assert "goes back" in (await asyncio.to_thread(rollout.command, "activate", OLD)).stdout
        assert "already" in (await asyncio.to_thread(rollout.command, "activate", OLD)).stdout

        async with rollout.worker(NEW):
            await until(lambda: rollout.complete(NEW))
            assert "a worker of" in (await asyncio.to_thread(rollout.command, "retire", NEW)).stderr
        assert "is active" in (await asyncio.to_thread(rollout.command, "retire", OLD)).stderr

        # As if its worker had ended long ago.
        await rollout.redis.xgroup_delconsumer(JOBS + NEW, WORKERS, "w0")
        assert (await asyncio.to_thread(rollout.command, "retire", NEW)).returncode == 0
        kept = [rollout.indexers.folder / "snapshots" / f"shard-{shard}" for shard in range(SHARDS)]

        async def gone() -> bool:
            return all([path.name for path in folder.iterdir()] == [OLD] for folder in kept)

        await until(gone)
        assert (await rollout.searcher.of(NEW).search(text_vector("x"), K, timeout_s=5)).shards_ok == 0
        assert [key for key in await rollout.redis.keys() if NEW.encode() in key] == []
        await community.write({"after": "the rollout"})
        await until(lambda: rollout.complete(OLD))
        await rollout.answers_as(OLD)


async def test_an_experiment_splits_its_readers_between_two_models_until_one_is_shipped(rollout):
    async def run(*words: str) -> str:
        """In this process: nine more starts of Python would be most of the test."""
        environment = rollout.indexers.environment
        return (await asyncio.to_thread(CliRunner().invoke, cli, words, env=environment)).output

    async def models() -> dict[str, str]:
        found = {}
        for reader in readers:
            model, notes = await rollout.related("n1", **{"X-Reader-ID": reader})
            assert notes == rollout.community.related(model, "n1")
            found[reader] = model
        return found

    async def started() -> bool:
        return any(map(rollout.assignments, readers))

    async def over() -> bool:
        return not await started() and rollout.active.fingerprint == NEW

    readers = [f"reader-{number}" for number in range(24)]
    await rollout.community.write({f"n{row}": f"title {row}" for row in range(NOTES)})
    start = "experiment", "start", "second", "--arms", f"A={OLD}", f"B={NEW},min_score=-1", "--share", "0.8"
    async with rollout.worker(OLD):
        await until(lambda: rollout.complete(OLD))
        assert "no model" in await run(*start)
        async with rollout.worker(NEW):
            await until(lambda: rollout.complete(NEW))
            assert (await run(*start)).startswith("second runs with 80.0% of the readers")
            await until(started)

            first = await models()
            arms = {reader: found and found.arm.model for reader in readers if (found := rollout.assignments(reader))}
            assert first == dict.fromkeys(readers, OLD) | arms == await models()
            assert 0 < len(arms) < len(readers)
            assert "was an experiment second already" in await run(*start)
            assert "leave 20.0% of the readers" in await run(*start[:2], "more", *start[3:])
            assert "is in the experiment second" in await run("model", "retire", NEW)
            assert "80.0%" in await run("experiment", "list")
            data = str(rollout.indexers.folder)
            assert "holds no answers" in await run("experiment", "report", "second", "--data", data)
            assert "no experiment of this name" in await run("experiment", "report", "other", "--data", data)
            exported = "events", "export", "--to", f"{data}/events", "--reports"
            assert "0 new events" in await run(*exported)
            assert await rollout.redis.hlen(FINDINGS) == 0
            await read_lists(rollout.redis, "second", {"A": 0.1, "B": 0.3})
            await run(*exported)
            _, told = await Findings(rollout.redis).changed(None)
            assert ReportOut.model_validate_json(told["experiment", "second"]).finding == "better"
            shown = await run("experiment", "status", "second")
            assert f"A={OLD}: active, 0 notes wait for its workers, its index is whole" in shown

            assert (await run("experiment", "ship", "second", "B")).splitlines() == [
                f"second is over; {NEW} answers from now on",
                "B was tried with min_score=-1.0: requests have to give that from now on",
            ]
            await until(over)
            assert await models() == dict.fromkeys(readers, NEW)
            assert "does not run: shipped B" in await run("experiment", "stop", "second")


class Killed(BaseException):
    """No handler of errors stops it."""


def judged_turn(turns: Path) -> Turn:
    """A turn of which all is done that needs no service: the gate has let the new model through."""
    asked = {"data": None, "from": None, "test_share": 0.2, "recall_at": 100, "set": [], "share": 0.5, "days": 14.0}
    turn = Turn.begin(turns, asked | {"serving": "/models/old", "fingerprint": OLD}, None)
    found = {
        "data": {"notes": 48, "pairs": 90, "newest_notes": 12, "newest_pairs": 30, "newest_from": 1.0},
        "train": {"fingerprint": NEW, "steps": 1, "new_categories": []},
        "calibrate": {"calibrated": False, "because": "17 held-out notes have hashtags, 50 are needed"},
        "gate": {"rows": []},
    }
    for step, said in found.items():
        turn.record(step, 0.0, {}, said)
    turn.checkpoint.mkdir()
    (turn.folder / "gate.md").write_text("a table")
    return turn


async def read_lists(redis: Redis, experiment: str, clicks: dict[str, float]) -> None:
    """Readers of both arms, of whom each gets three lists; clicks by arm, in items shown."""
    draw, answers, events = np.random.default_rng(0), [], []
    for arm in clicks:
        for reader in range(120):
            for answer in range(3):
                id_ = f"{arm}{reader}-{answer}"
                said = {"reader": f"{arm}{reader}", "experiment": experiment, "arm": arm, "seconds": 0.01}
                ids = [f"n{number}" for number in draw.choice(NOTES, 4, replace=False)]
                answers.append(ServedAnswer(id_, 1.0, "related", OLD, ids, **said))
                for place, note in enumerate(ids):
                    kind = "click" if draw.random() < clicks[arm] else "impression"
                    events.append(Event(f"{id_}.{place}", f"{arm}{reader}", note, kind, 1.0, answer_id=id_))
    await RedisAnswerLog(redis, 10_000, 1).append(answers)
    await RedisEvents(redis).append(events)


@pytest.mark.parametrize(
    ("clicks", "outcome"), [({"A": 0.1, "B": 0.3}, "shipped"), ({"A": 0.3, "B": 0.1}, "taken back")]
)
async def test_a_turn_of_learning_waits_without_a_process_and_ships_its_model_or_takes_it_back(
    rollout, tmp_path, monkeypatch, clicks, outcome
):
    async def learn(*words: str) -> str:
        arguments = "learn", *words, "--turns", str(tmp_path / "turns")
        environment = rollout.indexers.environment
        return (await asyncio.to_thread(CliRunner().invoke, cli, arguments, env=environment)).output

    async def lacking(*_: object) -> Gap:
        return Gap(3, 1)

    share, turn = ("--share", "0.5"), judged_turn(tmp_path / "turns")
    await rollout.community.write({f"n{row}": f"title {row}" for row in range(NOTES)})
    async with rollout.worker(OLD):
        await until(lambda: rollout.complete(OLD))
        assert f"waits for a worker of the new model, {NEW}: NOTELLM_CHECKPOINT=" in await learn(*share)
        assert (tmp_path / "turns" / "candidate").resolve() == turn.checkpoint
        async with rollout.worker(NEW):
            await until(lambda: rollout.complete(NEW))
            record = Turn.record
            for killed in ("experiment", "decision"):
                # Killed when readers are in the experiment, and when the pointer is moved, before anything says so.
                def die_at(turn: Turn, step: str, *more: Any, at: str = killed) -> None:
                    if step == at:
                        raise Killed
                    record(turn, step, *more)

                monkeypatch.setattr(Turn, "record", die_at)
                with pytest.raises(Killed):
                    await learn(*share)
                monkeypatch.setattr(Turn, "record", record)
                if killed == "experiment":
                    [running] = await Experiments(rollout.redis).all()
                    assert (running.runs, running.share, running.models) == (True, 0.5, (OLD, NEW))
                    assert "holds no answers yet" in await learn(*share)
                    assert "decision    waits             for the experiment" in await learn("status")
                    await read_lists(rollout.redis, running.name, clicks)
                    if outcome == "shipped":
                        with monkeypatch.context() as its_workers_were_away:
                            its_workers_were_away.setattr("service.cli.learn.trial.gap_of", lacking)
                            assert "it lacks 3 notes" in await learn(*share)
                        assert await rollout.registry.active() == OLD
            assert f"turn-0001 is over, {outcome}" in await learn(*share)
            [ended] = await Experiments(rollout.redis).all()
            overview = Overview(Experiments(rollout.redis).changed, Findings(rollout.redis).changed)
            await overview.follow()
            [told], report = overview.turns(), overview.experiment(ended.name).report
            assert (told.outcome, told.model, told.experiment) == (outcome.replace(" ", "_"), NEW, ended.name)
            assert told.why.startswith("the experiment") or told.why == report.verdict
            assert (report.finding, report.arms[0].shown) == ("better" if outcome == "shipped" else "worse", 1440)
            assert ended.shipped == ("B" if outcome == "shipped" else None)
            assert await rollout.registry.active() == (NEW if outcome == "shipped" else OLD)

            assert ("answers: `notellm model" if outcome == "shipped" else "a worker of") in await learn("abandon")
        await rollout.redis.xgroup_delconsumer(JOBS + NEW, WORKERS, "w0")
        if outcome == "taken back":
            assert "is gone" in await learn("abandon")
            assert [path.name for path in (tmp_path / "turns").iterdir()] == ["events"]
            assert [key for key in await rollout.redis.keys() if NEW.encode() in key] == []
            await overview.follow()
            assert overview.turns() == []


async def test_a_model_that_answers_late_after_it_was_shipped_is_taken_back_and_commands_say_so(rollout):
    async def run(*words: str) -> str:
        return (await asyncio.to_thread(CliRunner().invoke, cli, words, env=rollout.indexers.environment)).output

    async def minute() -> None:
        await rollout.quality.flush()
        await grow_older(rollout.redis, 60)
        await rollout.guard()

    await rollout.community.write({f"n{row}": f"title {row}" for row in range(NOTES)})
    arms = "--arms", f"A={OLD}", f"B={NEW}"
    async with rollout.worker(NEW):
        async with rollout.worker(OLD):
            await until(both(rollout))
            await rollout.registry.activate(OLD)
            await rollout.redis.delete(WATCH)  # which of the two was first is chance
            await rollout.answers_as(OLD)
            await minute()
            await run("experiment", "start", "fast", *arms)
            await run("experiment", "ship", "fast", "B")
            await rollout.guard()
        await until(lambda: rollout._follows(NEW))
        assert f"{NEW} is watched since" in await run("experiment", "status", "fast")

        async def reads() -> None:
            await asyncio.gather(*map(rollout.related, rollout.community.titles))
            await minute()

        rollout.slow_s[NEW] = 1.0
        for _ in range(3):
            await reads()
        assert f"but no worker of {OLD} runs" in await run("model", "list")
        async with rollout.worker(OLD):
            worker_of_old = WayBack(OLD, rollout.watches.take_back)
            await worker_of_old()
            await rollout.guard()
            assert (await rollout.watches.now())[0].blocked == ""
            await worker_of_old()
            await rollout.answers_as(OLD)

        await rollout.guard()
        assert f"{NEW} was taken back for {OLD} at" in await run("experiment", "status", "fast")
        watch = (await rollout.client.get("/status")).json()["watch"]
        assert (watch["state"], watch["model"], watch["reason"], watch["blocked"]) == (
            "taken_back",
            NEW,
            "slow_lists",
            None,
        )


async def test_a_worker_that_takes_over_activates_its_model_once_it_lacks_nothing_that_can_be_read(rollout):
    community = rollout.community
    await community.write({f"n{row}": f"title {row}" for row in range(NOTES)})
    async with rollout.worker(OLD):
        await until(lambda: rollout.complete(OLD))
    await take_over(rollout.registry, rollout.searcher, OLD)

    taking_over = asyncio.create_task(take_over(rollout.registry, rollout.searcher, NEW))
    async with rollout.worker(NEW):
        await taking_over
        assert await rollout.registry.active() == NEW
        await rollout.answers_as(NEW)
        async with rollout.worker(OLD):
            await until(lambda: rollout.complete(OLD))
            await rollout.registry.activate(OLD)
            # Once it was taken back, a start of its workers is no reason to try it again.
            await rollout.redis.hset(WATCH, mapping={"model": NEW, "state": "taken_back"})
            await take_over(rollout.registry, rollout.searcher, NEW)
            assert await rollout.registry.active() == OLD


async def test_an_indexer_that_starts_while_redis_is_away_answers_for_every_model_from_its_snapshots(tmp_path):
    server = RedisServer()
    server.start()
    redis, indexers = open_redis(server.url), Indexers(tmp_path, server.url, shards=1)
    searcher = ShardedSearcher(indexers.addresses, "")
    vector = text_vector("x")

    async def found(model: str) -> list[str]:
        answer = await searcher.of(model).search(vector, K, timeout_s=5)
        return [neighbor.id for neighbor in answer.neighbors]

    async def both_found() -> bool:
        return [await found(model) for model in (OLD, NEW)] == [["n1"], ["n1"]]

    async def both_kept() -> bool:
        return len(list((tmp_path / "snapshots").glob("*/*/CURRENT"))) == 2

    try:
        await RedisStore(redis, 10).put([StoredNote(Note("n1", "title"), 0)])
        for model in (OLD, NEW):
            queue = JobQueue(redis, "w0", model, len(vector))
            await queue.open()
            [item] = await queue.claim(1, 1.0)
            await queue.publish([(item, StoredPrediction(1, model, vector, (), None))])
        indexers.start(0)
        await until(both_found)
        await until(both_kept)
        server.kill()
        indexers.end(0)
        indexers.start(0)
        await until(both_found)
    finally:
        await searcher.close()
        await redis.aclose()
        indexers.end_all()
        server.close()

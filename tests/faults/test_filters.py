"""Filters while shards die and are rebuilt and another model takes over: no answer holds a note that does not match."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.movers import FILLERS, Movers, rule, titles
from support.service import PATIENCE_S, UNSET, Service, running, until

from model.inference.hashing import DIM, HashingBackend
from service.processes.state import free_port
from service.store.connection import open_redis
from service.store.jobs import JobQueue
from service.store.registry import Registry
from service.worker.category_sampler import CategorySampler
from service.worker.engine import Engine
from service.worker.prediction_cache import PredictionCache
from service.worker.worker import Worker

OTHER = "0000000000000f11"
SHARDS = 2
# A gateway whose shards are behind by one search of each kind, and without the safeguard: it does not look whether what
# they found still matches. (Nor does it look in the store's list, whose notes do not count here.)
TWIN = """
import sys
from indexer.filters import expression
from indexer.serving.client import ShardedSearcher
from service.cli.main import main

search, last = ShardedSearcher.search, {}

async def behind(self, vector, k, exclude=(), *, filter=None, timeout_s):
    now, asked = await search(self, vector, k, exclude, filter=filter, timeout_s=timeout_s), (vector.tobytes(), filter)
    before, last[asked] = last.get(asked, now), now
    return before

ShardedSearcher.search = behind
for kind in (expression.OneOf, expression.Ordered, expression.Exists, expression.Not, expression.And, expression.Or):
    kind.matches = lambda self, fields: True
sys.argv = ["notellm", "gateway"]
main()
"""


class Filtered:
    """A service with notes that move, two models of them, and what may happen to it."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.service = Service(folder, checkpoint)
        self.service.environment["NOTELLM_INDEX__SNAPSHOT_EVERY_S"] = "0.5"
        self._bulks = 0

    @property
    def redis(self) -> str:
        """The URL of its Redis."""
        return f"unix://{(self.service.state / 'run').resolve()}/redis.sock"

    def fill(self) -> None:
        """Write all notes, let both models read them, and wait until both have indexes of them."""
        notes = [{"note_id": note_id, "title": title} for note_id, title in titles().items()]
        self._bulk(notes)
        until(lambda: not httpx.get(f"{self.service.api}/status").json()["notes"]["pending"])
        self.first = httpx.get(f"{self.service.api}/notes/still/related").json()["model"]
        asyncio.run(self._read_by_other())
        self.activate(OTHER)
        until(self.is_whole)

    def is_whole(self) -> bool:
        """Whether every shard has all notes in the index of the active model."""
        shards = self._shards()
        return len(shards) == SHARDS and sum(shard["notes"] for shard in shards) == len(titles())

    def kill_shard(self, chance: random.Random) -> None:
        """kill -9; it goes on with a snapshot of half a second ago, or with the one before."""
        os.kill(chance.choice(self._indexers()), signal.SIGKILL)

    def rebuild(self, chance: random.Random) -> None:
        """kill -9 of both; one has no snapshot any more."""
        shutil.rmtree(self.service.state / "index" / f"shard-{chance.randrange(SHARDS)}", ignore_errors=True)
        for process in self._indexers():
            os.kill(process, signal.SIGKILL)

    def compact(self, _chance: random.Random) -> None:
        """So many changes that a shard builds a new base."""
        before = [shard["generation"] for shard in self._shards()]
        while [shard["generation"] for shard in self._shards()] == before:
            self._bulks += 1
            self._bulk(
                [
                    {"note_id": note_id, "title": titles()[note_id], "attributes": {"bulk": self._bulks, "part": part}}
                    for part in range(20)
                    for note_id in FILLERS
                ]
            )

    def roll(self, _chance: random.Random) -> None:
        """The other model answers, and then the first one again."""
        for fingerprint in (self.first, OTHER):
            self.activate(fingerprint)

    def activate(self, fingerprint: str) -> None:
        """As `notellm model activate --force` does; returns when the gateway answers with it."""

        async def activate() -> None:
            async with open_redis(self.redis) as redis:
                assert await Registry(redis).activate(fingerprint)

        asyncio.run(activate())
        until(lambda: self._active() == fingerprint)

    def _shards(self) -> list[dict]:
        """Of the index of the active model."""
        answer = httpx.get(f"{self.service.api}/status", timeout=30, trust_env=False)
        return answer.json()["index"]["shards"] if answer.is_success else []

    def _active(self) -> str | None:
        answer = httpx.get(f"{self.service.api}/notes/still/related", timeout=30)
        return answer.json()["model"] if answer.is_success else None

    def _bulk(self, notes: list[dict]) -> None:
        answer = httpx.post(f"{self.service.api}/notes", json=notes, timeout=30)
        assert answer.json()["accepted"] == len(notes), answer.text

    def _indexers(self) -> list[int]:
        listed = Path(f"/proc/{self.service.process.pid}/task/{self.service.process.pid}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0") for child in listed}
        return [child for child, words in commands.items() if b"indexer" in words]

    async def _read_by_other(self) -> None:
        """Its worker is of this process, and only of this moment: patches that leave the text alone need none."""
        backend = HashingBackend(OTHER)
        engine = Engine(backend, max_batch_tokens=4096, max_drafts=1)
        async with open_redis(self.redis) as redis:
            queue = JobQueue(redis, "of-the-test", OTHER, DIM)
            worker = Worker(
                engine, queue, CategorySampler(engine, ["Travel"], 0.05), hashtags=2, cache=PredictionCache(9)
            )
            async with engine.running():
                running_ = asyncio.create_task(worker.run())
                registry = Registry(redis)
                while (await registry.progress(OTHER)).predicted < len(titles()):
                    await asyncio.sleep(0.05)
                worker.stop()
                await running_


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Filtered]:
    filtered = Filtered(tmp_path_factory.mktemp("filtered"), checkpoint)
    with running(filtered.service):
        filtered.fill()
        yield filtered
        filtered.service.stop(signal.SIGKILL)


def test_no_answer_holds_a_note_that_does_not_match(filtered, rounds, figures):
    problems, patches, answers, seen = [], 0, 0, 0
    for one in rounds(1, 30):
        strains = [filtered.kill_shard, filtered.rebuild, filtered.compact, filtered.roll]
        one.chance.shuffle(strains)
        with Movers(filtered.service.api, one.seed) as movers:
            for strain in strains:
                until(lambda since=movers.answers: movers.answers > since + 20)
                strain(one.chance)
                until(filtered.is_whole)
        problems += movers.problems
        until(lambda movers=movers: not unlike(filtered.service.api, movers))
        patches, answers, seen = patches + movers.patches, answers + movers.answers, seen + movers.seen
    figures |= {"patches": patches, "answers": answers, "notes in them": seen, "problems": len(problems)}
    assert problems == []
    assert seen > answers > 50


def test_the_twin_that_does_not_look_again_shows_notes_that_do_not_match(filtered, rounds, figures):
    one = next(rounds(1, 1))
    with twin(filtered) as api, Movers(filtered.service.api, one.seed, asked=api) as movers:
        until(lambda: any(not problem.startswith("list") for problem in movers.problems))
    figures |= {"answers": movers.answers, "problems": len(movers.problems)}
    assert movers.seen  # and some that do


@contextmanager
def twin(filtered: Filtered) -> Iterator[str]:
    """The API of one more gateway, `TWIN`, beside that of the service."""
    api = f"http://127.0.0.1:{(port := free_port('127.0.0.1', 0, ''))}"
    environment = {
        **UNSET,
        "NOTELLM_REDIS_URL": filtered.redis,
        "NOTELLM_STATE_DIR": str(filtered.service.state),
        "NOTELLM_CHECKPOINT": filtered.service.environment["NOTELLM_CHECKPOINT"],
        "NOTELLM_HTTP__PORT": str(port),
        "NOTELLM_OPS__PORT": "0",
        "NOTELLM_INDEX__ADDRESSES": json.dumps(
            [str((filtered.service.state / "run").resolve() / f"shard-{number}.sock") for number in range(SHARDS)]
        ),
    }
    with (filtered.service.folder / "twin.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-P", "-c", TWIN], env=environment, stderr=log)
    try:
        until(lambda: is_answered(f"{api}/status"))
        yield api
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def is_answered(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def unlike(api: str, movers: Movers) -> list[str]:
    """Filters of which a list does not hold just the notes that match; none, soon after the last write."""
    found, chance = [], random.Random(0)
    for _ in range(12):
        filter_, holds = rule(chance)
        shown = movers.matching(lambda state, holds=holds: holds(state) and not state.hidden)
        body = {"k": 100, "filter": filter_, "duplicates": "keep"}
        items = httpx.post(f"{api}/notes/still/related", json=body, timeout=30).json()["items"]
        if {item["note_id"] for item in items} - movers.unanswered != shown:
            found.append(filter_)
    return found

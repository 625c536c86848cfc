"""Deletes that were acknowledged, and what might bring a note back: kills, snapshots, rebuilds, restores, models."""

import fcntl
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.checkpoint import tiny_checkpoint
from support.ledger import Ledger
from support.redis import RedisServer
from support.service import NOTELLM, UNSET, Gateway, Service, running, until

from service.client import NoteLLMClient

LIVE = [f"live{number}" for number in range(10)]
MORTAL = 25
SNAPSHOTS_S = 0.5


class Store:
    """A service, two models, and what is put aside before the notes of a round are deleted."""

    def __init__(self, service: Service, models: dict[str, Path], aside: Path) -> None:
        self.service = service
        self._models = models
        self._backup, self._index = aside / "backup", aside / "index"

    @property
    def model(self) -> str:
        """The fingerprint that the service was started with."""
        checkpoint = self.service.environment["NOTELLM_CHECKPOINT"]
        return next(fingerprint for fingerprint, folder in self._models.items() if str(folder) == checkpoint)

    @property
    def other(self) -> str:
        """The other one's."""
        return next(fingerprint for fingerprint in self._models if fingerprint != self.model)

    def take_other_model(self) -> None:
        """From the next start on."""
        self.service.environment["NOTELLM_CHECKPOINT"] = str(self._models[self.other])

    def keep_index(self) -> None:
        """Snapshots with the notes that are there now."""
        folder = self.service.state / "index"
        until(lambda: len(list(folder.glob("*/*/CURRENT"))) >= len(list(folder.glob("*"))))
        until(self._is_index_copied)

    def _is_index_copied(self) -> bool:
        """False if a file vanished while another snapshot was written."""
        shutil.rmtree(self._index, ignore_errors=True)
        try:
            shutil.copytree(self.service.state / "index", self._index)
        except shutil.Error:
            return False
        return True

    def back_up(self) -> None:
        """The store as it is now."""
        shutil.rmtree(self._backup, ignore_errors=True)
        command(self.service.environment, "backup", "--to", str(self._backup))

    def kill(self) -> None:
        """kill -9 of everything."""
        self.service.stop(signal.SIGKILL)
        until(lambda: unlocked(self.service.state / "lock"))

    def turn_index_back(self) -> None:
        """Snapshots from before the deletes stand where those of now were."""
        self.kill()
        shutil.rmtree(self.service.state / "index")
        shutil.copytree(self._index, self.service.state / "index")

    def lose_index(self) -> None:
        """No snapshot is left."""
        self.kill()
        shutil.rmtree(self.service.state / "index")

    def restore(self) -> None:
        """The store comes from the backup, and the snapshots are older still."""
        self.turn_index_back()
        shutil.rmtree(self.service.state / "redis")
        command(self.service.environment, "restore", "--from", str(self._backup))

    def activate(self, fingerprint: str) -> None:
        """As an operator goes back and forth."""
        command(self.service.environment, "model", "activate", fingerprint)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    folders = [tmp_path / "model-0", tmp_path / "model-1"]
    models = {tiny_checkpoint(folder, seed).fingerprint: folder for seed, folder in enumerate(folders)}
    service = Service(tmp_path, folders[0])
    service.environment["NOTELLM_INDEX__SNAPSHOT_EVERY_S"] = str(SNAPSHOTS_S)
    with running(service):
        yield Store(service, models, tmp_path)
        service.stop(signal.SIGKILL)


def test_no_deleted_note_returns(store, rounds, figures):
    ledger, problems, deleted = Ledger(), [], 0
    strains = [store.restore, store.turn_index_back, store.lose_index, store.kill]
    for number, one in enumerate(rounds(1, 40)):
        mortal = [f"mortal{one.seed}-{number}" for number in range(MORTAL)]
        if number:
            store.activate(store.model)  # which its worker reads
        with store.service.client(patience_s=30) as notellm:
            write(notellm, ledger, [*LIVE, *mortal], f"in round {one.seed}")
            until(lambda notellm=notellm: settled(notellm))
            store.keep_index()
            delete(notellm, ledger, mortal)
            deleted += len(mortal)
        store.back_up()
        rolls = number % 8 < len(strains)
        if rolls:
            store.take_other_model()
        strains[number % len(strains)]()
        store.service.start()
        problems += check(store, ledger, store.model)
        if rolls:
            store.activate(store.other)
            problems += check(store, ledger, store.other)
    figures |= {"deletes": deleted, "problems": len(problems)}
    assert problems == []


def test_the_twin_that_is_restored_from_before_the_deletes_brings_them_back(tmp_path, checkpoint):
    """What a backup cannot know; `notellm restore --deletes` is for it."""
    redis, ledger = RedisServer(), Ledger()
    environment = {**UNSET, "NOTELLM_REDIS_URL": redis.url}
    mortal = [f"mortal{number}" for number in range(MORTAL)]
    redis.start()
    try:
        with Gateway(tmp_path, checkpoint, redis.url) as gateway, gateway.client(patience_s=30) as notellm:
            write(notellm, ledger, [*LIVE, *mortal], "at first")
            command(environment, "backup", "--to", str(tmp_path / "backup"))
            delete(notellm, ledger, mortal)
            redis.kill()
            for path in redis.folder.glob("appendonly*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            redis.start()
            command(environment, "restore", "--from", str(tmp_path / "backup"))
            problems = ledger.check(notellm, indexed=False)
    finally:
        redis.close()
    assert sum(problem.startswith("resurrected: ") for problem in problems) == len(mortal)


def check(store: Store, ledger: Ledger, fingerprint: str) -> list[str]:
    """Problems, once this model answers and nothing is left to do."""
    with store.service.client(patience_s=30) as notellm:
        until(lambda: settled(notellm) and notellm.related(LIVE[0]).model == fingerprint)
        return ledger.check(notellm)


def settled(notellm: NoteLLMClient) -> bool:
    status = notellm.status()
    return status.index.shards_ok == status.index.shards_total and not status.notes.pending


def write(notellm: NoteLLMClient, ledger: Ledger, note_ids: list[str], era: str) -> None:
    """In bulk, each with a title of its own."""
    for note_id in note_ids:
        ledger.begin(note_id, f"{note_id} {era}")
    for answer in notellm.put_all({"note_id": note_id, "title": f"{note_id} {era}"} for note_id in note_ids):
        assert not answer.rejected
    for note_id in note_ids:
        ledger.acknowledge(note_id, f"{note_id} {era}")


def delete(notellm: NoteLLMClient, ledger: Ledger, note_ids: list[str]) -> None:
    for note_id in note_ids:
        ledger.begin(note_id, None)
        notellm.delete(note_id)
        ledger.acknowledge(note_id, None)


def unlocked(lock: Path) -> bool:
    """Whether nothing of a killed service runs any more."""
    with lock.open() as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def command(environment: dict[str, str], *words: str) -> None:
    done = subprocess.run([*NOTELLM, *words], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

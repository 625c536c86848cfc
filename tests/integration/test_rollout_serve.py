"""`notellm serve` with another checkpoint than before: it ends up serving that model, and can go back."""

import subprocess

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.service import NOTELLM, PATIENCE_S, Service, running, until

NOTES = [f"n{number}" for number in range(4)]


@pytest.mark.timeout(200)
def test_another_checkpoint_takes_over_once_it_has_read_every_note_and_the_old_one_can_come_back(tmp_path):
    old, new = (tiny_checkpoint(tmp_path / str(seed), seed).fingerprint for seed in (0, 1))
    service = Service(tmp_path, tmp_path / "0")

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*NOTELLM, "model", *words],
            env=service.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def answers() -> set[str]:
        return {httpx.get(f"{service.api}/notes/{id_}/related").json()["model"] for id_ in NOTES}

    with running(service):
        for id_ in NOTES:
            written = httpx.put(f"{service.api}/notes/{id_}?wait=10", json={"title": f"{id_} in Kyoto"}, timeout=30)
            assert written.json()["status"] == "searchable"
        assert answers() == {old}

    service.environment["NOTELLM_CHECKPOINT"] = str(tmp_path / "1")
    with running(service):
        assert answers() == {new}
        assert [line.split()[:3] for line in command("list").stdout.splitlines()[1:]] == [
            [old, "4", "0"],
            [new, "active", "4"],
        ]
        assert command("activate", old).returncode == 0
        until(lambda: answers() == {old})
        drafted = httpx.post(f"{service.api}/notes/tags", json={"title": "A draft"}, timeout=30)
        assert drafted.json()["error"]["code"] == "worker_unavailable"

    assert command("list").stderr.startswith("notellm: NOTELLM_REDIS_URL is not set, and no `notellm serve` runs in")

"""Redis does what it was asked, and its reply is lost: a client that tries again writes nothing a second time."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis
from support.clients import new_title
from support.redis import RedisServer
from support.service import Gateway, until
from support.wire import Wire

from service.store.connection import open_sync_redis
from service.store.schema import ACTIVE, JOBS, MODELS, NOTE

MODEL = "m"
RETRY_S = 30


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Redis]:
    """An empty store that knows a model; nobody works for it, so that every job stays."""
    with open_sync_redis(redis_server.url) as redis:
        redis.flushall()
        redis.hset(MODELS, MODEL, 16)
        redis.set(ACTIVE, MODEL)
        yield redis


@pytest.fixture
def wire(redis_server: RedisServer) -> Iterator[Wire]:
    with Wire(redis_server.socket) as wire:
        yield wire


@pytest.fixture
def http(tmp_path: Path, checkpoint: Path, wire: Wire) -> Iterator[httpx.Client]:
    with (
        Gateway(tmp_path, checkpoint, wire.url) as gateway,
        httpx.Client(base_url=gateway.api, timeout=30, trust_env=False) as http,
    ):
        yield http


def put(http: httpx.Client, note_id: str, title: str, key: str = "") -> bool:
    """Whether it was acknowledged."""
    answer = http.put(f"/notes/{note_id}", json={"title": title}, headers={"Idempotency-Key": key} if key else {})
    assert answer.status_code in (200, 202, 409, 503), answer.text
    return answer.status_code < 300


def retried(http: httpx.Client, wire: Wire, store: Redis, rounds: Iterator, *, same: bool) -> dict[str, int]:
    """A lost reply a round, and retries until one is answered, of the same note or of a new text each time."""
    seen = {"rounds": 0, "lost": 0}
    for one in rounds:
        title = new_title(one.chance)
        wire.lose(1)  # may hit a probe of the gateway
        answered = put(http, f"n{one.seed}", title)
        seen["rounds"] += 1
        seen["lost"] += not answered
        until(lambda one=one, title=title: put(http, f"n{one.seed}", title if same else new_title(one.chance)), RETRY_S)
    notes = sum(1 for _ in store.scan_iter(NOTE + "*"))
    return seen | {"notes": notes, "jobs": store.xlen(JOBS + MODEL)}


def test_as_many_notes_and_jobs_as_clients_wrote(http, wire, store, rounds, figures):
    figures |= (seen := retried(http, wire, store, rounds(20, 500), same=True))
    assert seen["notes"] == seen["jobs"] == seen["rounds"]
    assert seen["lost"] > seen["rounds"] * 0.5


def test_the_twin_that_does_not_repeat_itself_writes_more(http, wire, store, rounds):
    seen = retried(http, wire, store, rounds(20, 20), same=False)
    assert seen["jobs"] > seen["rounds"]

"""The webhook: a real store, a real HTTP server that may be slow, broken or dead."""

import base64
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from threading import Thread
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from indexer.serving.memory import MemorySearcher
from model.inference.hashing import DIM, text_vector
from model.note import Note
from service import metrics
from service.store.cells.ring import Cells
from service.store.jobs import Claimed
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.schema import ACTIVE, DEAD, EMBEDDINGS, WEBHOOK_HOLDER
from service.store.webhook.notices import LIMIT, RedisNotices
from service.webhook import FIRST_WAIT_S, GIVE_UP_S, LONGEST_WAIT_S, Webhook
from service.wiring import stores

MODEL, OTHER, SECRET = "m", "m2", "s" * 32


class Receiver:
    """A server that keeps what it hears, and answers as ``status`` says; 0 breaks the connection."""

    def __init__(self) -> None:
        self.status = 204
        self.heard: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
                if receiver.status:
                    self.send_response(receiver.status)
                    self.send_header("location", "/elsewhere")
                    self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def events(self) -> list[dict[str, Any]]:
        return [event for _, body in self.heard for event in json.loads(body)["events"]]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Community:
    """A store, what its shards hold, and gateways that tell the receiver; their clock is ``now``."""

    def __init__(self, cells: Cells[Redis], client: httpx.AsyncClient, url: str) -> None:
        self.cells = cells
        self.redis = cells.first
        self.now = 1000.0
        self.shards = MemorySearcher(2, MODEL)
        self._client = client
        self._url = url
        self.gateway = self.another_gateway()

    def another_gateway(self) -> Webhook:
        notices = RedisNotices(self.cells)
        return Webhook(self._url, SECRET, notices, lambda _: self.shards, 2, self._client, lambda: self.now)

    async def write(self, *ids: str, indexed: bool = True) -> None:
        await stores.note_store(self.cells, 10_000).put([StoredNote(Note(note_id, "A title"), 0) for note_id in ids])
        queue = stores.job_queue(self.cells, "w", MODEL, DIM)
        await queue.open()
        claimed: list[Claimed] = []
        while len(claimed) < len(ids):
            claimed += await queue.claim(len(ids), 0.01)
        said = [
            (one, StoredPrediction(one.job.version, MODEL, text_vector(one.job.note_id), (), None)) for one in claimed
        ]
        await queue.publish(said)
        if indexed:
            self.index(*((one.job.note_id, one.job.version) for one in claimed))

    def index(self, *notes: tuple[str, int]) -> None:
        for note_id, version in notes:
            self.shards.put(note_id, version, text_vector(note_id))

    async def fail(self, note_id: str) -> None:
        fields = {"id": note_id, "version": 3, "fingerprint": MODEL, "reason": "the text is empty"}
        await self.cells.of_note(note_id).xadd(DEAD, fields)


@asynccontextmanager
async def begun(cells: Cells[Redis], receiver: Receiver) -> AsyncIterator[Community]:
    """One that is told of what happens from now on."""
    await cells.first.set(ACTIVE, MODEL)
    async with httpx.AsyncClient(timeout=0.5) as client:
        community = Community(cells, client, receiver.url)
        await community.gateway()
        yield community


@pytest.fixture
async def community(redis: Redis, receiver: Receiver) -> AsyncIterator[Community]:
    async with begun(Cells.of([redis]), receiver) as community:
        yield community


@pytest.fixture
async def wide(cells: Cells[Redis], receiver: Receiver) -> AsyncIterator[Community]:
    """One of three cells."""
    async with begun(cells, receiver) as community:
        yield community


async def test_another_model_is_told_after_what_the_one_before_did(community, receiver):
    await community.write("n1")
    await community.write("n2", indexed=False)
    await community.redis.set(ACTIVE, OTHER)
    await community.gateway()
    assert [event["type"] for event in receiver.events()] == ["note.searchable"]
    community.index(("n2", 1))
    await community.gateway()
    await community.redis.set(ACTIVE, MODEL)
    await community.gateway()

    events = receiver.events()
    assert [event.get("note_id") for event in events] == ["n1", "n2", None, None]
    assert [(event["model"], event["before"]) for event in events[2:]] == [(OTHER, MODEL), (MODEL, OTHER)]
    assert len({event["id"] for event in events}) == 4


async def test_one_request_has_all_and_is_signed(community, receiver):
    await community.write("n1")
    await community.write("ñ/2")
    await community.fail("n3")
    await community.gateway()
    await community.gateway()  # nothing twice

    [(headers, body)] = receiver.heard
    events = json.loads(body)["events"]
    assert [(event["type"], event["note_id"], event["version"], event["model"]) for event in events] == [
        ("note.searchable", "n1", 1, MODEL),
        ("note.searchable", "ñ/2", 1, MODEL),
        ("note.failed", "n3", 3, MODEL),
    ]
    assert events[2]["reason"] == "the text is empty"
    assert len({event["id"] for event in events}) == 3
    assert events[0]["time"].endswith("Z")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(SECRET.encode(), signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


async def test_a_new_webhook_hears_nothing_of_the_past(redis, receiver):
    await redis.set(ACTIVE, MODEL)
    async with httpx.AsyncClient() as client:
        community = Community(Cells.of([redis]), client, receiver.url)
        await community.write("old")
        await community.gateway()
        await community.write("new")
        await community.gateway()

    assert [event["note_id"] for event in receiver.events()] == ["new"]


async def test_a_note_is_told_when_its_shard_has_it_and_those_after_it_in_order(community, receiver):
    await community.write("n1")
    await community.write("n2", indexed=False)
    await community.write("n3")
    await community.gateway()
    assert [event["note_id"] for event in receiver.events()] == ["n1"]
    await community.gateway()
    community.index(("n2", 1))
    await community.gateway()

    assert [event["note_id"] for event in receiver.events()] == ["n1", "n2", "n3"]


async def test_a_note_that_no_index_will_have_holds_nobody_up_for_ever(community, receiver, monkeypatch):
    await community.write("deleted", indexed=False)
    await community.write("n2")
    await community.gateway()
    assert receiver.heard == []
    monkeypatch.setattr("service.webhook._PATIENCE_S", 0.0)
    await community.gateway()

    assert [event["note_id"] for event in receiver.events()] == ["n2"]


async def test_while_a_shard_is_away_its_notes_wait(community, receiver, monkeypatch):
    monkeypatch.setattr("service.webhook._PATIENCE_S", 0.0)
    await community.write("n1", indexed=False)
    community.shards.down = {0, 1}
    await community.gateway()
    community.shards.down = set()
    community.index(("n1", 1))
    await community.gateway()

    assert [event["note_id"] for event in receiver.events()] == ["n1"]


@pytest.mark.parametrize("status", [0, 500, 503, 429, 408])
async def test_a_failed_request_is_tried_again_later_and_says_the_same(community, receiver, status):
    receiver.status = status
    await community.write("n1")
    for _ in range(3):
        await community.gateway()
    assert len(receiver.heard) == 1
    receiver.status = 204
    community.now += FIRST_WAIT_S
    await community.gateway()
    await community.gateway()

    [first, second] = receiver.heard
    assert first[1] == second[1]
    assert first[0]["webhook-id"] == second[0]["webhook-id"]


async def test_waits_grow_and_after_an_hour_it_goes_on_with_what_is_next(community, receiver):
    receiver.status = 500
    dropped = metrics.WEBHOOK_NOTICES.labels("dropped")._value.get()
    await community.write("n1")
    start, asked = community.now, []
    while community.now - start < GIVE_UP_S + LONGEST_WAIT_S:
        before = len(receiver.heard)
        await community.gateway()
        asked += [community.now - start] * (len(receiver.heard) - before)
        community.now += 1 if len(asked) < 11 else 20
    await community.write("n2")
    await community.gateway()  # fails once, and is not dropped with those before
    community.now += LONGEST_WAIT_S
    receiver.status = 204
    await community.gateway()

    waits = [int(later - earlier) for earlier, later in pairwise(asked)]
    assert waits[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert metrics.WEBHOOK_NOTICES.labels("dropped")._value.get() == dropped + 1
    assert [event["note_id"] for event in receiver.events()][-1] == "n2"
    assert [event["note_id"] for event in receiver.events()].count("n2") == 2


async def test_a_gateway_that_waits_to_try_again_keeps_others_from_asking(community, receiver):
    receiver.status = 500
    await community.write("n1")
    await community.gateway()
    await community.redis.delete(WEBHOOK_HOLDER)  # as if ten seconds were over
    await community.gateway()
    await community.another_gateway()()

    assert len(receiver.heard) == 1


@pytest.mark.parametrize("status", [400, 401, 410, 302])
async def test_what_the_receiver_refuses_is_not_asked_twice_and_no_redirect_is_followed(community, receiver, status):
    receiver.status = status
    await community.write("n1")
    await community.gateway()
    await community.gateway()

    assert len(receiver.heard) == 1


async def test_only_one_of_all_gateways_tells_and_another_goes_on_when_it_is_gone(community, receiver):
    second = community.another_gateway()
    await community.write("n1")
    await second()
    assert receiver.heard == []
    await community.redis.delete(WEBHOOK_HOLDER)  # the first is gone for ten seconds
    await second()
    await community.gateway()

    assert [event["note_id"] for event in receiver.events()] == ["n1"]


async def test_thousands_are_told_in_requests_of_a_bounded_size(community, receiver):
    ids = [f"n{number}" for number in range(2 * LIMIT + 50)]
    await community.write(*ids)
    await community.gateway()

    assert sorted(event["note_id"] for event in receiver.events()) == sorted(ids)
    assert [len(json.loads(body)["events"]) for _, body in receiver.heard] == [LIMIT, LIMIT, 50]


async def test_changes_of_other_models_fields_and_deletes_are_not_told(community, receiver):
    await community.write("n1")
    store = RedisStore(community.redis, 10_000)
    await store.delete("n1")
    await community.redis.xadd(EMBEDDINGS, {"id": "n1", "version": 9, "fingerprint": OTHER, "vector": b"\0" * 4 * DIM})
    await community.redis.xadd(EMBEDDINGS, {"id": "n1", "version": 9, "fingerprint": MODEL, "vector": b"short"})
    await community.gateway()

    assert [(event["type"], event["version"]) for event in receiver.events()] == [("note.searchable", 1)]


class TestCells:
    """A store of three cells."""

    def ids(self, cells: Cells[Redis], cell: int, count: int = 1) -> list[str]:
        """Notes of a cell."""
        of_cell = (note_id for note_id in (f"n{number}" for number in range(1000)) if cells.place_of(note_id) == cell)
        return list(islice(of_cell, count))

    async def test_what_happens_in_any_cell_is_told_once_though_entries_have_the_same_name(self, wide, receiver):
        written = [note_id for cell in range(3) for note_id in self.ids(wide.cells, cell)]
        await wide.write(*written)
        for cell, redis in enumerate(wide.cells):
            fields = {"id": self.ids(wide.cells, cell)[0], "version": 3, "fingerprint": MODEL, "reason": "empty"}
            await redis.xadd(DEAD, fields, id="9999999999999-0")
        await wide.gateway()
        await wide.gateway()

        events = receiver.events()
        told = sorted((event["type"], event["note_id"]) for event in events)
        assert told == sorted((kind, one) for kind in ("note.failed", "note.searchable") for one in written)
        assert len({event["id"] for event in events}) == len(events) == 6
        assert len(receiver.heard) == 1

    async def test_another_gateway_goes_on_in_each_cell_where_the_one_before_was_killed(self, wide, receiver):
        [first], [second], [third, later] = (self.ids(wide.cells, cell, 1 + cell // 2) for cell in range(3))
        await wide.write(first, third)
        await wide.gateway()
        receiver.status = 0
        await wide.write(second, later)
        await wide.gateway()  # the receiver hears it, and the gateway ends before it knows
        await wide.redis.delete(WEBHOOK_HOLDER)
        receiver.status = 204
        await wide.another_gateway()()

        told = [[event["note_id"] for event in json.loads(body)["events"]] for _, body in receiver.heard]
        assert list(map(sorted, told)) == [sorted([first, third]), sorted([second, later]), sorted([second, later])]
        assert receiver.heard[1][0]["webhook-id"] == receiver.heard[2][0]["webhook-id"]

    async def test_a_note_that_its_shard_lacks_holds_up_its_cell_alone_and_the_next_model(self, wide, receiver):
        [absent], [waits, behind], [other] = (self.ids(wide.cells, cell, 1 + cell % 2) for cell in range(3))
        for note_id in (waits, behind, absent):
            await wide.write(note_id, indexed=False)
        await wide.write(other)
        await wide.fail(behind)
        await wide.redis.set(ACTIVE, OTHER)
        await wide.gateway()
        assert [(event["type"], event["note_id"]) for event in receiver.events()] == [
            ("note.searchable", other),
            ("note.failed", behind),
        ]
        wide.index((waits, 1), (behind, 1))
        await wide.gateway()
        wide.index((absent, 1))
        await wide.gateway()

        assert [event.get("note_id") for event in receiver.events()[2:]] == [waits, behind, absent, None]

    async def test_a_cell_with_much_to_tell_is_told_of_while_another_one_waits(self, wide, receiver):
        [waits], many = self.ids(wide.cells, 0), self.ids(wide.cells, 1, 2 * LIMIT)
        await wide.write(waits, indexed=False)
        await wide.write(*many)
        await wide.gateway()

        assert [event["note_id"] for event in receiver.events()] == many
        assert {len(json.loads(body)["events"]) for _, body in receiver.heard[:-1]} == {LIMIT // 3}

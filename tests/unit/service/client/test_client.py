"""Both clients against the real app: the asynchronous one inside the process, the blocking one over a socket."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from support.gateway import MemoryGateway
from support.http import listening

from model.note import Note
from service.api.responses import error_body
from service.client import AsyncNoteLLMClient, NoAnswer, NoteLLMClient, Refused
from service.client.bodies import BulkNote
from service.contract.events import EventsOut
from service.contract.examples import EXAMPLES
from service.contract.notes import RejectedOut, WrittenOut
from service.experiments.overview import Overview
from service.recommend.memory import FINGERPRINT, bag_of_words
from service.recommend.query import RelatedQuery
from service.store.experiments.records import Arm, Experiment

EVENT = {"event_id": "e1", "user_id": "u1", "note_id": "n1", "type": "click", "ts": 1767225600}


class Awaitable:
    """A blocking client whose calls can be awaited, so that one test is for both."""

    def __init__(self, client: NoteLLMClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: object, **options: object) -> object:
            return await asyncio.to_thread(getattr(self._client, name), *args, **options)

        return call

    async def put_all(self, *args: Any, **options: Any) -> AsyncIterator[object]:
        for answer in await asyncio.to_thread(lambda: list(self._client.put_all(*args, **options))):
            yield answer


Open = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Opens a client of an app, with options."""
    ends = []

    async def blocking(app: ASGIApp, **options: Any) -> Awaitable:
        server = listening(app)
        client = NoteLLMClient(f"http://127.0.0.1:{await server.__aenter__()}", **options)

        async def end() -> None:
            client.close()
            await server.__aexit__(None, None, None)

        ends.append(end)
        return Awaitable(client)

    async def asynchronous(app: ASGIApp, **options: Any) -> AsyncNoteLLMClient:
        client = AsyncNoteLLMClient("http://localhost", transport=httpx.ASGITransport(app), **options)
        ends.append(client.close)
        return client

    yield blocking if request.param == "blocking" else asynchronous
    for end in ends:
        await end()


@pytest.fixture
def gateway() -> MemoryGateway:
    return MemoryGateway()


@pytest.fixture
async def notellm(connect: Open, gateway: MemoryGateway) -> Any:
    return await connect(gateway.app)


class Script:
    """An app that answers by a list, the last answer again and again, and keeps what it was asked."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await answer(scope, receive, send)


def full(retry_after: str = "0") -> Response:
    body = error_body("queue_full", "too many notes wait", "r-1")
    return Response(body, 503, {"Retry-After": retry_after}, "application/json")


def written() -> Response:
    return Response(b'{"note_id": "n1", "version": 1, "status": "pending"}', 202, media_type="application/json")


class TestNotes:
    async def test_are_written_read_found_and_deleted(self, gateway, notellm):
        note = {"title": "harbor tram", "hashtags": ["sea"], "category": "Travel", "author": "a1", "exposure": 3}
        assert await notellm.put("n1", note) == WrittenOut(note_id="n1", version=1, status="pending")
        await notellm.put("n2", {"title": "harbor boat"})
        await gateway.drain()

        read = await notellm.get("n1")
        assert (read.status, read.author, read.exposure, read.suggested_category.name) == (
            "searchable",
            "a1",
            3,
            "Travel",
        )
        assert [item.note_id for item in (await notellm.related("n2")).items] == ["n1"]
        await notellm.delete("n1")
        assert (await notellm.related("n2")).items == []

    async def test_are_waited_for_as_long_as_asked(self, gateway, notellm):
        write = asyncio.create_task(notellm.put("n1", {"title": "harbor"}, wait_s=10))
        while not gateway.store.jobs:
            await asyncio.sleep(0.001)
        await gateway.drain()

        assert (await write).status == "searchable"

    async def test_change_only_at_the_version_that_was_named(self, notellm):
        await notellm.put("n1", {"title": "a"}, if_absent=True)
        for condition in ({"if_absent": True}, {"if_version": 7}):
            with pytest.raises(Refused, match="412 precondition_failed"):
                await notellm.put("n1", {"title": "b"}, **condition)
        assert (await notellm.put("n1", {"title": "b"}, if_version=1)).version == 2
        assert (await notellm.put("n1", {"title": "c"}, if_version="any")).version == 3
        with pytest.raises(Refused, match="412 precondition_failed"):
            await notellm.delete("n1", if_version=1)
        await notellm.delete("n1", if_version=3)

    async def test_are_changed_in_part(self, notellm):
        await notellm.put("n1", {"title": "c"})
        with pytest.raises(Refused, match="precondition_failed"):
            await notellm.patch("n1", {"hidden": True}, if_version=7)
        assert (await notellm.patch("n1", {"hidden": True, "attributes": {"price": 3}}, if_version=1)).version == 2
        patched = await notellm.get("n1")
        assert (patched.title, patched.hidden, patched.attributes) == ("c", True, {"price": 3})

    async def test_are_fetched_again_only_when_they_changed(self, notellm):
        await notellm.put("n1", {"title": "a"})
        first = await notellm.fetch("n1")
        same = await notellm.fetch("n1", first.etag)
        await notellm.put("n1", {"title": "b"})
        changed = await notellm.fetch("n1", first.etag)

        assert (first.note.version, same.note, same.etag, changed.note.version) == (1, None, first.etag, 2)

    @pytest.mark.parametrize("note_id", [".", "..", "...", "a:b~c_d.e-f", ":", "x" * 128])
    async def test_have_any_id_of_the_contract(self, notellm, note_id):
        await notellm.put(note_id, {"title": "a"})

        assert (await notellm.get(note_id)).note_id == note_id

    async def test_with_a_key_are_written_once(self, notellm):
        first = await notellm.put("n1", {"title": "a"}, idempotency_key="k 1")
        await notellm.put("n1", {"title": "b"})
        again = await notellm.put("n1", {"title": "a"}, idempotency_key="k 1")

        assert first == again
        assert (await notellm.get("n1")).title == "b"
        with pytest.raises(Refused, match="422 idempotency_key_reused"):
            await notellm.delete("n1", idempotency_key="k 1")

    async def test_name_their_reader_and_the_suggestions_that_they_took(self, notellm, gateway):
        suggestions = await notellm.tags("harbor tram", reader="ä/1")
        await notellm.put("n1", {"title": "a", "hashtags": ["x"]}, reader="ä/1", answer_id=suggestions.answer_id)
        await notellm.patch("n1", {"hashtags": ["y"]}, answer_id=suggestions.answer_id)
        await gateway.buffer.flush()

        asked, put, patched = gateway.served.kept
        assert [(one.answer_id, list(one.ids)) for one in (put, patched)] == [(asked.answer_id, [tag]) for tag in "xy"]
        assert put.reader == asked.reader != patched.reader == ""


class TestRelated:
    async def test_takes_every_parameter(self, gateway, notellm, monkeypatch):
        await gateway.publish(*(Note(f"n{number}", f"harbor {number}", hashtags=("sea",)) for number in range(3)))
        asked: list[RelatedQuery] = []
        related = gateway.recommender.related

        async def spy(note_id: str, wanted: RelatedQuery) -> object:
            asked.append(wanted)
            return await related(note_id, wanted)

        monkeypatch.setattr(gateway.recommender, "related", spy)

        await notellm.related("n0")
        await notellm.related("n0", category="Travel & Food", exclude=["n1", "n2"], k=3, exclude_author=True)
        explained = await notellm.related("n0", exclude="n1", diversity=0.25, debias=1, explain=True)

        assert asked == [
            RelatedQuery(),
            RelatedQuery(3, ("Travel & Food",), ("n1", "n2"), exclude_author=True),
            RelatedQuery(exclude=("n1",), diversity=0.25, debias=1.0),
        ]
        [item] = explained.items
        assert (item.note_id, item.explain.hashtags_in_common) == ("n2", ["sea"])

    async def test_says_why_there_is_nothing(self, notellm):
        await notellm.put("n1", {"title": "a"})

        with pytest.raises(Refused) as pending:
            await notellm.related("n1")
        with pytest.raises(Refused) as unknown:
            await notellm.related("n2")

        error = pending.value
        assert (error.status, error.code, error.retry_after_s) == (409, "note_pending", 1.0)
        assert error.message == "the note is accepted but not searchable yet"
        assert error.request_id in str(error)
        assert len(error.request_id) == 16
        assert (unknown.value.code, unknown.value.retry_after_s) == ("note_not_found", None)


class TestOtherCalls:
    async def test_embed_takes_a_text_or_several(self, notellm):
        one, two = await notellm.embed("harbor"), await notellm.embed(("tram", "harbor"))

        assert [entry.index for entry in two.data] == [0, 1]
        assert two.data[1].embedding == one.data[0].embedding
        assert np.array_equal(np.float32(two.data[0].embedding), bag_of_words(Note("", content="tram")))
        assert two.usage.total_tokens == 2

    async def test_tags_takes_every_parameter(self, gateway, notellm):
        await gateway.publish(Note("n7", "harbor boat", hashtags=("sea",)))

        plain = await notellm.tags("harbor tram", "blue noodle")
        full = await notellm.tags("sea harbor", hashtags=["tram"], max_hashtags=1, vocabulary="known", related=3)

        assert ([tag.tag for tag in plain.hashtags][:2], plain.related) == (["harbor", "tram"], None)
        assert [tag.tag for tag in full.hashtags] == ["sea"]
        assert ([item.note_id for item in full.related], full.model) == (["n7"], FINGERPRINT)

    async def test_events_count_once(self, gateway, notellm):
        other = EVENT | {"event_id": "e2", "source_note_id": "n2", "ts": "2026-01-01T00:00:00Z"}

        answer = await notellm.record([EVENT, other, EVENT])

        assert answer == EventsOut(accepted=2, duplicates=1, rejected=[])
        assert gateway.events.kept["e2"].source_note_id == "n2"

    @pytest.mark.parametrize("user_id", ["u1", "..", "a/../b?c#d%20 é\n"])
    async def test_a_reader_is_erased(self, gateway, notellm, user_id):
        await notellm.record([EVENT | {"user_id": user_id, "ts": time.time(), "position": 2, "value": 0.5}])
        assert await gateway.events.seen(user_id) == ["n1"]
        assert gateway.events.kept["e1"].position == 2

        for _ in range(2):
            assert await notellm.erase_user(user_id) is None

        assert await gateway.events.seen(user_id) == []

    async def test_hashtags_are_listed_and_their_rules_kept(self, gateway, notellm):
        await gateway.publish(Note("n1", "harbor", hashtags=("Sea", "sun")), Note("n2", "boat", hashtags=("sea",)))

        first = await notellm.hashtags(limit=1)
        second = await notellm.hashtags("s", limit=1, after=first.next)
        assert [(one.tag, one.notes) for one in (*first.items, *second.items)] == [("sea", 2), ("sun", 1)]
        assert [(one.tag, one.notes) for one in (await notellm.trending(days=30)).items] == [("sea", 2)]

        assert (await notellm.alias_hashtag("京都 旅行", "Kyoto")).alias_of == "kyoto"
        assert (await notellm.block_hashtag("spam")).blocked is True
        await notellm.remove_hashtag_rule("spam")
        await notellm.remove_hashtag_rule("..")
        assert [(one.tag, one.alias_of, one.blocked) for one in (await notellm.hashtag_rules()).items] == [
            ("京都旅行", "kyoto", None)
        ]

    async def test_experiments_and_turns_are_typed(self, gateway, notellm):
        arms = Arm("A", "old", {}), Arm("B", "new", {"diversity": 0.2})
        [turn] = EXAMPLES["learning"]["turns"]

        async def experiments(_):
            return 1, [Experiment("spread", arms, ((0, 500),), 1767225600.0)]

        async def findings(_):
            return 1, {("turn", "t"): json.dumps(turn).encode()}

        gateway.app.state.overview = Overview(experiments, findings)
        await gateway.app.state.overview.follow()

        [listed] = (await notellm.experiments()).items
        found = await notellm.experiment("spread")
        assert (listed.arms[1].rules, found.state, found.report) == ({"diversity": 0.2}, "runs", None)
        assert (await notellm.learning()).turns[0].gate[0].says == "better"
        with pytest.raises(Refused, match="experiment_not_found"):
            await notellm.experiment("other")

    async def test_status_is_typed(self, gateway, notellm):
        await gateway.publish(Note("a", "harbor"))

        status = await notellm.status()

        assert (status.notes.live, status.index.shards_total, status.freshness_s.p99) == (1, 2, None)


class TestBulk:
    async def test_of_one_request_names_what_is_refused(self, notellm):
        answer = await notellm.put_many([{"note_id": "a", "title": "x"}, {"note_id": "b"}])

        assert (answer.accepted, [one.position for one in answer.rejected]) == (1, [1])
        assert (await notellm.put_many([])).accepted == 0

    async def test_of_any_size_is_cut_into_requests_and_counts_positions_over_all(self, gateway, notellm, monkeypatch):
        sizes: list[int] = []
        put_many = gateway.recommender.notes.put_many

        async def spy(records: list[object], *args: object) -> object:
            sizes.append(len(records))
            return await put_many(records, *args)

        monkeypatch.setattr(gateway.recommender.notes, "put_many", spy)
        notes: list[BulkNote] = [{"note_id": f"n{number}", "title": "x"} for number in range(2500)]
        notes[1200]["title"] = " "

        answers = [answer async for answer in notellm.put_all(iter(notes))]

        assert sizes == [1000, 999, 500]
        assert [answer.accepted for answer in answers] == sizes
        assert [one for answer in answers for one in answer.rejected] == [
            RejectedOut(position=1200, code="invalid_request", message="title and content are both empty")
        ]
        assert [answer async for answer in notellm.put_all([])] == []

    async def test_of_long_notes_stays_below_what_the_service_takes(self, notellm):
        notes = [{"note_id": f"n{number}", "content": "\U0001f642" * 20_000} for number in range(450)]

        answers = [answer.accepted async for answer in notellm.put_all(notes)]

        assert sum(answers) == 450
        assert len(answers) == 3  # 80 kB each, 16 MiB a request


class TestRefusals:
    async def test_are_repeated_only_with_patience(self, connect):
        impatient, patient = Script(full(), full(), written()), Script(full(), full(), written())

        with pytest.raises(Refused, match="503 queue_full"):
            await (await connect(impatient)).put("n1", {"title": "a"})
        answer = await (await connect(patient, patience_s=30)).put("n1", {"title": "a"})

        assert (answer.version, len(impatient.asked), len(patient.asked)) == (1, 1, 3)

    async def test_end_when_the_patience_does(self, connect):
        script = Script(full("31"))

        with pytest.raises(Refused) as refused:
            await (await connect(script, patience_s=30)).put("n1", {"title": "a"})

        assert (refused.value.retry_after_s, len(script.asked)) == (31.0, 1)

    async def test_that_say_nothing_of_later_are_final(self, connect):
        script = Script(Response(error_body("note_not_found", "none", "r-1"), 404), written())

        with pytest.raises(Refused, match="404"):
            await (await connect(script, patience_s=30)).get("n1")

        assert len(script.asked) == 1

    async def test_of_a_conditional_write_are_repeated_only_with_an_idempotency_key(self, connect):
        once, safe = Script(full(), written()), Script(full(), written())

        with pytest.raises(Refused):
            await (await connect(once, patience_s=30)).put("n1", {"title": "a"}, if_version=1)
        await (await connect(safe, patience_s=30)).put("n1", {"title": "a"}, if_version=1, idempotency_key="k")

        assert (len(once.asked), len(safe.asked)) == (1, 2)

    async def test_by_something_in_between_have_no_code(self, connect):
        proxy = Script(PlainTextResponse("<html>", 502, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}))

        with pytest.raises(Refused, match=r"^HTTP 502$") as refused:
            await (await connect(proxy)).status()

        assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (502, "", None)


async def test_an_answer_of_something_else_is_none(connect):
    with pytest.raises(NoAnswer, match="is not NoteLLM"):
        await (await connect(Script(PlainTextResponse("hello")))).status()


async def test_a_key_is_shown_as_the_contract_says(connect):
    script = Script(written())
    await (await connect(script, key="k-1")).put("n1", {"title": "a"})
    await (await connect(script)).put("n1", {"title": "a"})

    assert [asked.headers.get("authorization") for asked in script.asked] == ["Bearer k-1", None]


async def test_a_reader_is_named_in_the_header_and_percent_encoded(connect):
    script = Script(PlainTextResponse("hello"))
    notellm = await connect(script)
    calls = [
        partial(notellm.related, "n1"),
        partial(notellm.related, "n1", boosts=[{"filter": "price < 9", "factor": 2}]),
        partial(notellm.related_to, ["n1"]),
        partial(notellm.related_batch, [{"note_id": "n1"}]),
        partial(notellm.search, "soup"),
        partial(notellm.tags, "soup"),
    ]
    for call in calls:
        for reader in ({"reader": "u/1 读"}, {}):
            with pytest.raises(NoAnswer):
                await call(**reader)

    named = [asked.headers.get("x-reader-id") for asked in script.asked]
    assert named == ["u%2F1%20%E8%AF%BB", None] * len(calls)


@pytest.mark.parametrize("key", ["", "caf\xe9", "a\nb", "\u2028"])
@pytest.mark.parametrize("client", [NoteLLMClient, AsyncNoteLLMClient])
def test_a_key_that_cannot_travel_is_refused_without_being_shown(client, key):
    with pytest.raises(ValueError, match=r"^a key is visible ASCII characters$"):
        client(key=key)


def test_nobody_there_is_one_line(unused_tcp_port):
    with (
        NoteLLMClient(f"http://127.0.0.1:{unused_tcp_port}", patience_s=30) as client,
        pytest.raises(NoAnswer) as error,
    ):
        client.status()

    assert str(error.value).startswith(f"no service answers at http://127.0.0.1:{unused_tcp_port}: ")


async def test_an_answer_that_does_not_come_is_waited_for_so_long_and_so_is_what_was_asked_for():
    class Stalling(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout(json.dumps(request.extensions["timeout"]), request=request)

    async with AsyncNoteLLMClient("http://localhost", timeout_s=7, transport=Stalling()) as client:
        with pytest.raises(NoAnswer, match=r'"read": 7\.0'):
            await client.status()
        with pytest.raises(NoAnswer, match=r'"read": 9\.5'):
            await client.put("n1", {"title": "a"}, wait_s=2.5)

"""The contract's routes over HTTP: shapes, statuses, and what hostile input gets."""

import asyncio
import base64
import json
import re
import struct
from typing import ClassVar

import numpy as np
import pytest
from pydantic import BaseModel
from support.bodies import HOSTILE, MARK, NOTE
from support.gateway import MemoryGateway

from indexer.types import ShardStatus
from model.note import Note
from service.contract.embeddings import EmbeddingsOut as OpenAi
from service.contract.errors import ErrorOut
from service.contract.events import EventsOut
from service.contract.fields import RESERVED
from service.contract.notes import BulkOut, NoteOut, NotesOut, WrittenOut
from service.contract.related import RelatedOut
from service.contract.status import StatusOut
from service.contract.tags import TagsOut
from service.keys import Keyring, create_key
from service.recommend.memory import DIM, FINGERPRINT, bag_of_words
from service.store.interfaces import Suggestion
from service.store.records import Event, StoredNote

ANSWER_ID = re.compile(r"[0-9a-f]{16}\.[rst]\." + FINGERPRINT[:8])


@pytest.fixture
def gateway() -> MemoryGateway:
    return MemoryGateway(max_body_bytes=200_000, max_bulk_bytes=1_000_000)


@pytest.fixture
async def client(gateway):
    async with gateway.client() as client:
        yield client


def check(response, status: int, model: type[BaseModel]):
    """The answer has this status and exactly the fields of the contract's model; returns it decoded."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    parsed = model.model_validate_json(response.content, strict=True)
    assert parsed.model_dump(mode="json", exclude_unset=True) == body
    return body


def check_error(response, status: int, code: str):
    error = check(response, status, ErrorOut)["error"]
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    assert len(response.content) <= 2048
    assert MARK not in response.text
    return error


class TestRelated:
    async def test_answer_has_the_shape_of_the_contract(self, gateway, client):
        await gateway.publish(
            Note("n1", "harbor tram"), Note("n7", "harbor boat", hashtags=("sea", "sun"), category="Travel")
        )

        body = check(await client.get("/notes/n1/related"), 200, RelatedOut)

        score = body["items"][0].pop("score")
        assert 0 < score < 1
        assert ANSWER_ID.fullmatch(body.pop("answer_id"))
        assert body == {
            "note_id": "n1",
            "items": [{"note_id": "n7", "title": "harbor boat", "category": "Travel", "hashtags": ["sea", "sun"]}],
            "model": FINGERPRINT,
            "generation": 3,
            "stale": False,
            "degraded": False,
            "shards": {"ok": 2, "total": 2},
        }

    async def test_has_only_ids_and_scores_while_the_store_is_down(self, gateway, client):
        await gateway.publish(Note("n1", "harbor tram"), Note("n7", "harbor boat"))
        gateway.store.down = True

        body = check(await client.get("/notes/n1/related"), 200, RelatedOut)

        assert body["degraded"] is True
        assert [set(item) for item in body["items"]] == [{"note_id", "score"}]

    async def test_gives_ten_unless_told_how_many(self, gateway, client):
        await gateway.publish(*(Note(f"n{number}", f"harbor {number}") for number in range(120)))

        counts = [
            len((await client.get(f"/notes/n0/related{query}")).json()["items"]) for query in ("", "?k=1", "?k=100")
        ]

        assert counts == [10, 1, 100]

    async def test_refuses_what_it_cannot_answer(self, gateway, client):
        await client.put("/notes/new", json=NOTE)

        check_error(await client.get("/notes/never/related"), 404, "note_not_found")
        pending = await client.get("/notes/new/related")
        check_error(pending, 409, "note_pending")
        assert pending.headers["retry-after"] == "1"
        gateway.searcher.down = {0, 1}
        down = await client.get("/notes/new/related")
        check_error(down, 503, "index_unavailable")
        assert down.headers["retry-after"] == "1"

    @pytest.mark.parametrize(
        "query",
        [
            "k=0",
            "k=101",
            "k=-1",
            "k=",
            "k=x-mark-x",
            "k=1e1",
            "k=1.5",
            "k=%205",
            "k=%2B5",
            "k=1_0",
            "k=%EF%BC%95",
            "k=" + "9" * 5000,
            "k=%00",
            "k=%ff",
            "x-mark-x=1",
            "k=1&K=2",
            "wait=1",
            "%ff=1",
            "k=1&&x-mark-x",
        ],
    )
    async def test_refuses_other_parameters(self, gateway, client, query):
        await gateway.publish(Note("n1", "harbor"))

        check_error(await client.get(f"/notes/n1/related?{query}"), 422, "invalid_request")

    @pytest.mark.parametrize("note_id", ["a%20b", "%00", "%ff", "caf%C3%A9", "a" * 129, "x-mark-x!", "a%0A"])
    async def test_refuses_what_is_no_id(self, client, note_id):
        check_error(await client.get(f"/notes/{note_id}/related"), 422, "invalid_request")
        check_error(await client.get(f"/notes/{note_id}"), 422, "invalid_request")
        check_error(await client.delete(f"/notes/{note_id}"), 422, "invalid_request")
        check_error(await client.put(f"/notes/{note_id}", json=NOTE), 422, "invalid_request")

    async def test_takes_every_character_an_id_may_have(self, gateway, client):
        note_id = "AZaz09._~:-" + "x" * 117
        await gateway.publish(Note(note_id, "harbor"))

        check(await client.get(f"/notes/{note_id}/related"), 200, RelatedOut)

    async def test_takes_every_parameter_of_the_contract(self, gateway, client):
        await gateway.publish(*(Note(f"n{n}", f"harbor {n}", category="Travel", hashtags=("sea",)) for n in range(9)))

        query = (
            "k=3&category=Travel&category=Food&exclude=n1&exclude=n2&exclude_author=1&diversity=0.5&debias=1&explain=1"
        )
        body = check(await client.get(f"/notes/n0/related?{query}"), 200, RelatedOut)

        assert len(body["items"]) == 3
        for item in body["items"]:
            assert item["note_id"] not in ("n0", "n1", "n2")
            explained = item["explain"]
            assert item["score"] == pytest.approx(explained["cosine"] - explained["popularity"], abs=2e-6)
            assert explained["hashtags_in_common"] == ["sea"]

    @pytest.mark.parametrize(
        "query",
        [
            "category=",
            "category=" + "x" * 129,
            "&".join(f"category=x-mark-x{n}" for n in range(21)),
            "exclude=x-mark-x!",
            "exclude=",
            "&".join(f"exclude=n{n}" for n in range(1001)),
            "exclude_author=2",
            "exclude_author=x-mark-x",
            "diversity=-0.1",
            "diversity=1.1",
            "diversity=nan",
            "diversity=inf",
            "debias=1e999",
            "debias=",
            "debias=0.1&debias=0.2",
            "explain=x-mark-x",
            "explain",
        ],
    )
    async def test_refuses_values_out_of_bounds(self, gateway, client, query):
        await gateway.publish(Note("n1", "harbor"))

        check_error(await client.get(f"/notes/n1/related?{query}"), 422, "invalid_request")


EVENT = {"event_id": "e1", "user_id": "u1", "note_id": "n1", "type": "click", "ts": 1767225600}


class TestEvents:
    async def test_are_counted_once_however_often_they_are_sent(self, gateway, client):
        other = EVENT | {"event_id": "e2", "source_note_id": "n2", "ts": "2026-01-01T08:00:00.5+08:00"}

        first = check(await client.post("/events", json={"events": [EVENT, other, EVENT]}), 202, EventsOut)
        again = check(await client.post("/events", json={"events": [EVENT]}), 202, EventsOut)

        assert first == {"accepted": 2, "duplicates": 1, "rejected": []}
        assert again == {"accepted": 0, "duplicates": 1, "rejected": []}
        assert gateway.events.kept["e1"] == Event("e1", "u1", "n1", "click", 1767225600.0)
        assert gateway.events.kept["e2"] == Event("e2", "u1", "n1", "click", 1767225600.5, "n2")

    @pytest.mark.parametrize(
        "broken",
        [
            {"event_id": ""},
            {"event_id": 1},
            {"event_id": "x-mark-x" * 20},
            {"user_id": None},
            {"note_id": "x-mark-x!"},
            {"source_note_id": ""},
            {"type": "x-mark-x"},
            {"ts": "x-mark-x"},
            {"ts": "2026-01-01"},
            {"ts": -1},
            {"ts": True},
            {"ts": 10**400},
            {"x-mark-x": 1},
        ],
    )
    async def test_that_are_broken_do_not_sink_the_others(self, client, broken):
        body = {"events": [EVENT | broken, "x-mark-x", EVENT]}

        response = await client.post("/events", json=body)

        answer = check(response, 202, EventsOut)
        assert (answer["accepted"], answer["duplicates"]) == (1, 0)
        assert [(one["position"], one["code"]) for one in answer["rejected"]] == [
            (0, "invalid_request"),
            (1, "invalid_request"),
        ]
        assert MARK not in response.text

    async def test_of_none_change_nothing_and_too_many_are_refused(self, client):
        assert check(await client.post("/events", json={"events": []}), 202, EventsOut)["accepted"] == 0
        many = {"events": [EVENT] * 1001}
        check_error(await client.post("/events", json=many), 422, "invalid_request")

    @pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
    async def test_refuse_hostile_bodies(self, client, body):
        check_error(await client.post("/events", content=body), 422, "invalid_request")


class TestConditions:
    async def test_a_read_is_304_until_something_changes(self, gateway, client):
        await client.put("/notes/n1", json=NOTE)
        pending = await client.get("/notes/n1")
        tag = pending.headers["etag"]

        same = await client.get("/notes/n1", headers={"If-None-Match": f'"other", W/{tag}'})
        await gateway.drain()
        changed = await client.get("/notes/n1", headers={"If-None-Match": tag})

        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert changed.status_code == 200

    async def test_an_edit_goes_through_only_at_the_version_it_was_made_for(self, client):
        first = await client.put("/notes/n1", json=NOTE)
        read = await client.get("/notes/n1")

        edit = await client.put("/notes/n1", json=NOTE | {"title": "b"}, headers={"If-Match": read.headers["etag"]})
        late = await client.put("/notes/n1", json=NOTE | {"title": "c"}, headers={"If-Match": first.headers["etag"]})
        next_ = await client.put("/notes/n1", json=NOTE | {"title": "d"}, headers={"If-Match": edit.headers["etag"]})

        assert (first.headers["etag"], edit.headers["etag"], next_.headers["etag"]) == ('"1"', '"2"', '"3"')
        check_error(late, 412, "precondition_failed")

    async def test_a_note_can_be_created_once_and_changed_only_if_it_exists(self, client):
        create, exists = {"If-None-Match": "*"}, {"If-Match": "*"}

        check_error(await client.put("/notes/n1", json=NOTE, headers=exists), 412, "precondition_failed")
        check(await client.put("/notes/n1", json=NOTE, headers=create), 202, WrittenOut)
        check_error(await client.put("/notes/n1", json=NOTE, headers=create), 412, "precondition_failed")
        check(await client.put("/notes/n1", json=NOTE, headers=exists), 202, WrittenOut)

    async def test_a_delete_at_another_version_leaves_the_note(self, client):
        await client.put("/notes/n1", json=NOTE)

        check_error(await client.delete("/notes/n1", headers={"If-Match": '"7"'}), 412, "precondition_failed")
        check(await client.get("/notes/n1"), 200, NoteOut)
        assert (await client.delete("/notes/n1", headers={"If-Match": '"1"'})).status_code == 204

    @pytest.mark.parametrize("tag", ["x-mark-x", '"x-mark-x"', "1", 'W/"1"', '"1', '"01x"', '""'])
    async def test_a_tag_that_is_none_of_ours_matches_nothing(self, client, tag):
        await client.put("/notes/n1", json=NOTE)

        check_error(await client.put("/notes/n1", json=NOTE, headers={"If-Match": tag}), 412, "precondition_failed")

    @pytest.mark.parametrize(
        "headers", [{"If-Match": '"1", "2"'}, {"If-None-Match": '"1"'}, {"If-Match": "*", "If-None-Match": "*"}]
    )
    async def test_what_a_note_cannot_be_asked_is_refused(self, client, headers):
        check_error(await client.put("/notes/n1", json=NOTE, headers=headers), 422, "invalid_request")


class TestTags:
    async def test_answer_has_the_shape_of_the_contract(self, gateway, client):
        body = check(await client.post("/notes/tags", json={"title": "harbor tram"}), 200, TagsOut)

        assert ANSWER_ID.fullmatch(body.pop("answer_id"))
        assert body == {
            "hashtags": [
                {"tag": "harbor", "score": 0.8, "source": "generated"},
                {"tag": "tram", "score": 0.4, "source": "generated"},
            ],
            "category": {"name": "Travel", "score": 0.93},
            "duplicate_of": None,
            "model": FINGERPRINT,
        }

    async def test_adds_related_notes_when_asked(self, gateway, client):
        await gateway.publish(Note("n7", "harbor boat", hashtags=("sea",)))

        body = check(await client.post("/notes/tags", json={"title": "harbor", "related": 3}), 200, TagsOut)

        assert [(item["note_id"], item["title"], item["hashtags"]) for item in body["related"]] == [
            ("n7", "harbor boat", ["sea"])
        ]

    async def test_says_when_no_worker_answers(self, gateway, client):
        gateway.drafter.down = True

        response = await client.post("/notes/tags", json={"title": "harbor"})

        check_error(response, 503, "worker_unavailable")
        assert response.headers["retry-after"] == "1"

    @pytest.mark.parametrize(
        "wish",
        [
            {"max_hashtags": 0},
            {"max_hashtags": 11},
            {"max_hashtags": 2.0},
            {"related": -1},
            {"related": 21},
            {"vocabulary": "x-mark-x"},
            {"vocabulary": None},
            {"category": "Travel"},
            {"note_id": "n1"},
        ],
    )
    async def test_refuses_what_cannot_be_wished(self, client, wish):
        check_error(await client.post("/notes/tags", json={"title": "a"} | wish), 422, "invalid_request")

    @pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
    async def test_refuses_hostile_bodies(self, client, body):
        check_error(await client.post("/notes/tags", content=body), 422, "invalid_request")


class TestEmbeddings:
    async def test_of_one_text_have_the_shape_of_openai(self, client):
        body = check(await client.post("/v1/embeddings", json={"input": "harbor tram", "model": "any"}), 200, OpenAi)

        [vector] = [entry.pop("embedding") for entry in body["data"]]
        assert np.array_equal(np.float32(vector), bag_of_words(Note("", content="harbor tram")))
        assert body == {
            "object": "list",
            "data": [{"object": "embedding", "index": 0}],
            "model": FINGERPRINT,
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }

    async def test_of_many_texts_stand_in_their_order_and_may_be_little_endian_bytes(self, client):
        texts = [" ".join(["harbor"] * count) for count in range(1, 65)]

        wanted = {"input": texts, "encoding_format": "base64"}
        body = check(await client.post("/v1/embeddings", json=wanted), 200, OpenAi)

        assert [entry["index"] for entry in body["data"]] == list(range(64))
        assert body["usage"] == {"prompt_tokens": 64 * 65 // 2, "total_tokens": 64 * 65 // 2}
        for text, entry in zip(texts, body["data"], strict=True):
            numbers = struct.unpack(f"<{DIM}f", base64.b64decode(entry["embedding"], validate=True))
            assert numbers == tuple(bag_of_words(Note("", content=text)).tolist())

    async def test_of_the_longest_texts_fit(self):
        async with MemoryGateway().client() as client:
            texts = ["\U0001f642" * 20_000] * 64
            assert (await client.post("/v1/embeddings", json={"input": texts})).status_code == 200

    async def test_need_a_worker(self, gateway, client):
        gateway.drafter.down = True
        response = await client.post("/v1/embeddings", json={"input": "harbor"})
        check_error(response, 503, "worker_unavailable")
        assert response.headers["retry-after"] == "1"

    @pytest.mark.parametrize(
        "body",
        [
            {},
            *({"input": bad} for bad in (None, "", [], [""], ["a"] * 65, ["a", 1], [[1, 2]], {"text": "a"}, 7)),
            *({"input": bad} for bad in ("x" * 20_001, ["a", "x" * 20_001], "a\0b", ["\ud800"])),
            *({"input": "a", "encoding_format": bad} for bad in ("hex", None, 1)),
            *({"input": "a", more: 3} for more in ("dimensions", "user", "x-mark-x")),
        ],
    )
    async def test_refuse_what_the_contract_does_not_name(self, client, body):
        response = await client.post("/v1/embeddings", content=json.dumps(body).encode())
        check_error(response, 422, "invalid_request")
        assert "x-mark-x" not in response.text

    async def test_name_the_text_that_they_refuse(self, client):
        response = await client.post("/v1/embeddings", json={"input": ["a", "b", ""]})
        assert check_error(response, 422, "invalid_request")["message"].startswith("input.2: ")

    @pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
    async def test_refuse_hostile_bodies(self, client, body):
        check_error(await client.post("/v1/embeddings", content=body), 422, "invalid_request")

    async def test_look_at_no_model(self, client):
        for model in ("text-embedding-3-small", None, 7, {"a": [1]}, "x" * 1000):
            assert (await client.post("/v1/embeddings", json={"input": "a", "model": model})).status_code == 200


class TestPut:
    async def test_is_pending_at_once_and_raises_the_version_only_by_a_change(self, client):
        answers = [
            check(await client.put("/notes/n1", json=body), 202, WrittenOut)
            for body in (NOTE, NOTE, NOTE | {"title": "other"})
        ]

        assert answers == [{"note_id": "n1", "version": version, "status": "pending"} for version in (1, 1, 2)]

    async def test_that_waits_is_200_once_searchable(self, gateway, client):
        write = asyncio.create_task(client.put("/notes/n1?wait=10", json=NOTE))
        while not gateway.store.jobs:
            await asyncio.sleep(0.001)
        await gateway.drain()

        assert check(await write, 200, WrittenOut) == {"note_id": "n1", "version": 1, "status": "searchable"}

    async def test_that_waits_in_vain_is_202(self, client):
        check(await client.put("/notes/n1?wait=0.05", json=NOTE), 202, WrittenOut)

    @pytest.mark.parametrize("wait", ["-1", "10.1", "NaN", "inf", "x-mark-x", "", "1e999"])
    async def test_refuses_other_waits(self, client, wait):
        check_error(await client.put(f"/notes/n1?wait={wait}", json=NOTE), 422, "invalid_request")

    @pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
    async def test_refuses_hostile_bodies_and_stores_nothing(self, client, body):
        check_error(await client.put("/notes/n1", content=body), 422, "invalid_request")
        check_error(await client.get("/notes/n1"), 404, "note_not_found")

    async def test_refuses_a_large_body_whether_or_not_it_says_its_length(self, client):
        async def chunks():
            for _ in range(30):
                yield b" " * 10_000

        check_error(await client.put("/notes/n1", content=b" " * 200_001), 413, "too_large")
        check_error(await client.put("/notes/n1", content=chunks()), 413, "too_large")
        lying = await client.put("/notes/n1", content=b"{}", headers={"content-length": "9" * 5000})
        check_error(lying, 422, "invalid_request")

    async def test_is_refused_when_the_store_is_down(self, gateway, client):
        gateway.store.down = True

        response = await client.put("/notes/n1", json=NOTE)

        check_error(response, 503, "store_unavailable")
        assert response.headers["retry-after"] == "1"


class TestGet:
    async def test_gives_back_what_was_put_with_what_became_of_it(self, gateway, client):
        note = NOTE | {
            "category": "Travel",
            "author": "a1",
            "exposure": 2**53 - 1,
            "created_at": "2026-01-31T12:00:00.5+08:00",
            "attributes": {"price": 3},
            "language": "en",
            "hidden": True,
        }
        await client.put("/notes/n1", json=note)
        pending = check(await client.get("/notes/n1"), 200, NoteOut)
        await gateway.drain()
        searchable = check(await client.get("/notes/n1"), 200, NoteOut)

        fixed = {"note_id": "n1", "version": 1, "reason": None, "detected_language": None}
        unread = {"status": "pending", "suggested_hashtags": None, "suggested_category": None}
        assert pending == note | fixed | unread
        assert searchable == note | fixed | {
            "status": "searchable",
            "suggested_hashtags": [{"tag": "suggested", "score": 0.5}],
            "suggested_category": {"name": "Travel", "score": 0.9},
        }

    async def test_says_why_a_note_failed(self, gateway, client):
        await client.put("/notes/n1", json=NOTE)
        gateway.store.suggest("n1", Suggestion(1, FINGERPRINT, failure="OverflowError"))

        body = check(await client.get("/notes/n1"), 200, NoteOut)

        assert (body["status"], body["reason"], body["suggested_hashtags"]) == (
            "failed",
            "OverflowError",
            None,
        )

    async def test_knows_no_parameters(self, client):
        check_error(await client.get("/notes/n1?k=1"), 422, "invalid_request")


class TestDelete:
    async def test_is_204_again_and_again_but_404_for_an_id_never_seen(self, client):
        await client.put("/notes/n1", json=NOTE)

        first, again = [await client.delete("/notes/n1") for _ in range(2)]

        assert (first.status_code, first.content, again.status_code) == (204, b"", 204)
        check_error(await client.get("/notes/n1"), 404, "note_not_found")
        check_error(await client.delete("/notes/never"), 404, "note_not_found")

    async def test_holds_for_related_before_the_index_has_heard_of_it(self, gateway, client):
        await gateway.publish(Note("n1", "harbor"), Note("n2", "harbor tram"))

        await client.delete("/notes/n2")

        assert (await client.get("/notes/n1/related")).json()["items"] == []


class TestPatch:
    FULL: ClassVar = {
        "title": "Kyoto",
        "content": "Temples.",
        "hashtags": ["sea"],
        "category": "Travel",
        "author": "a1",
        "exposure": 7,
        "created_at": "2026-01-31T12:00:00Z",
        "attributes": {"price": 3, "city": "Kyoto"},
        "language": "en",
        "hidden": False,
    }

    async def note(self, client) -> dict:
        await client.put("/notes/n1", json=self.FULL)
        return {name: (await client.get("/notes/n1")).json()[name] for name in self.FULL}

    @pytest.mark.parametrize(
        ("patch", "changed"),
        [
            ({"title": " Osaka "}, {"title": "Osaka"}),
            ({"title": None}, {"title": ""}),
            ({"content": None, "hashtags": ["a", "b"]}, {"content": "", "hashtags": ["a", "b"]}),
            (
                dict.fromkeys(("hashtags", "category", "author", "exposure", "created_at", "attributes", "language")),
                {"hashtags": [], "category": None, "author": None, "exposure": 0, "created_at": None, "attributes": {}}
                | {"language": None},
            ),
            ({"attributes": {"price": None, "sale": True}}, {"attributes": {"city": "Kyoto", "sale": True}}),
            ({"attributes": {"price": 4, "never": None}}, {"attributes": {"price": 4, "city": "Kyoto"}}),
            ({"hidden": True}, {"hidden": True}),
        ],
    )
    async def test_changes_what_it_names_and_null_gives_the_default(self, client, patch, changed):
        before = await self.note(client)

        written = check(await client.patch("/notes/n1", json=patch), 202, WrittenOut)

        assert (written["note_id"], written["version"]) == ("n1", 2)
        after = (await client.get("/notes/n1")).json()
        assert {name: after[name] for name in before} == before | changed
        again = await client.patch("/notes/n1", json=patch)
        assert (again.json()["version"], again.headers["etag"]) == (2, '"2"')

    async def test_of_nothing_changes_nothing_and_says_what_a_read_says(self, gateway, client):
        await client.put("/notes/n1", json=self.FULL)
        await gateway.drain()

        answer = await client.patch("/notes/n1", json={})
        assert answer.json() == {"note_id": "n1", "version": 1, "status": "searchable"}
        assert answer.status_code == 200

    async def test_that_leaves_the_text_alone_needs_no_model(self, gateway, client):
        await client.put("/notes/n1", json=self.FULL)
        await client.put("/notes/n2", json={"title": "Kyoto by bus"})
        await gateway.drain()

        await client.patch("/notes/n1", json={"attributes": {"price": 9}})
        assert gateway.store.jobs == []
        assert (await client.get("/notes/n1/related")).json()["stale"] is False
        await client.patch("/notes/n1", json={"title": "Nara"})
        assert gateway.store.jobs == [("n1", 3)]

    @pytest.mark.parametrize(
        "patch",
        [
            {"note_id": "n2"},
            {"title": 1},
            {"title": "", "content": " "},
            {"title": None, "content": None},
            {"hidden": "yes"},
            {"exposure": -1},
            {"language": "en-US"},
            {"attributes": []},
            {"attributes": {"title": 1}},
            {"attributes": {"price": {}}},
            {"attributes": {"price": [None]}},
            {"attributes": {"price": "3"}, "x": None},
            {"attributes": {f"a{n}": 1 for n in range(31)}},
            [],
            None,
            "x",
        ],
    )
    async def test_that_gives_no_note_is_refused_and_changes_nothing(self, client, patch):
        before = await self.note(client)

        check_error(await client.patch("/notes/n1", json=patch), 422, "invalid_request")
        after = (await client.get("/notes/n1")).json()
        assert {name: after[name] for name in before} == before
        assert after["version"] == 1

    async def test_to_another_type_is_allowed_once_no_note_carries_the_first(self, client):
        await self.note(client)
        refused = check_error(
            await client.patch("/notes/n1", json={"attributes": {"price": "3"}}), 422, "invalid_request"
        )
        assert refused["message"].startswith("attributes.price: ")
        await client.patch("/notes/n1", json={"attributes": {"price": None}})

        assert (await client.patch("/notes/n1", json={"attributes": {"price": "3"}})).json()["version"] == 3

    async def test_with_one_name_too_many_is_refused_like_any_write_of_it(self, client, monkeypatch):
        monkeypatch.setattr("service.store.memory.MOST_ATTRIBUTE_NAMES", 2)
        note = await self.note(client)
        more = {"attributes": {"price": 3, "new": 1}}
        writes = [client.patch("/notes/n1", json=more), client.put("/notes/n2", json={"title": "x"} | more)]
        for write in writes:
            refused = check_error(await write, 422, "invalid_request")
            assert refused["message"].startswith("attributes.new: a new name, and the notes already have ")

        bulk = [{"note_id": "n3", "title": "x"} | more, {"note_id": "n4", "title": "x"}]
        answer = (await client.post("/notes", json=bulk)).json()
        assert (answer["accepted"], [one["position"] for one in answer["rejected"]]) == (1, [0])
        assert (await client.get("/notes/n1")).json()["attributes"] == note["attributes"]
        assert (await client.patch("/notes/n1", json={"attributes": {"city": None, "new": 1}})).status_code in (
            200,
            202,
        )

    async def test_of_no_note_is_404(self, client):
        check_error(await client.patch("/notes/n1", json={"title": "a"}), 404, "note_not_found")
        await self.note(client)
        await client.delete("/notes/n1")
        check_error(await client.patch("/notes/n1", json={}), 404, "note_not_found")

    async def test_goes_through_only_at_the_version_it_was_made_for(self, client):
        await self.note(client)
        wrong = await client.patch("/notes/n1", json={"title": "b"}, headers={"If-Match": '"2"'})
        check_error(wrong, 412, "precondition_failed")
        for match in ('"1"', "*"):
            answer = await client.patch("/notes/n1", json={"title": match}, headers={"If-Match": match})
            assert answer.status_code == 202
        assert (await client.get("/notes/n1")).json()["version"] == 3

    @pytest.mark.parametrize(
        "kind", ["application/merge-patch+json", "application/json", "Application/JSON; charset=x"]
    )
    async def test_is_declared_as_what_it_is(self, client, kind):
        await self.note(client)
        answer = await client.patch("/notes/n1", content=b'{"title": "b"}', headers={"Content-Type": kind})
        assert answer.status_code == 202

    @pytest.mark.parametrize("kind", ["", "application/x-ndjson", "application/json-patch+json", "text/plain"])
    async def test_declared_otherwise_is_not_taken(self, client, kind):
        await self.note(client)
        answer = await client.patch("/notes/n1", content=b'{"title": "b"}', headers={"Content-Type": kind})
        check_error(answer, 415, "unsupported_media_type")

    async def test_sent_again_with_its_key_gets_the_same_answer(self, client):
        await self.note(client)
        headers = {"Idempotency-Key": "k", "If-Match": '"1"'}
        answers = [await client.patch("/notes/n1", json={"title": "b"}, headers=headers) for _ in range(2)]

        assert [answer.json()["version"] for answer in answers] == [2, 2]
        assert answers[1].headers["idempotency-replayed"] == "true"

    async def test_that_another_write_overtakes_is_made_of_the_newer_note(self, gateway, client):
        await self.note(client)
        get, overtaken = gateway.store.get, []

        async def slow(note_ids):
            found = await get(note_ids)
            if not overtaken:
                overtaken.append(True)
                await gateway.store.put([StoredNote(Note("n1", "Kyoto", "Rewritten."), 0)])
            return found

        gateway.store.get = slow
        await client.patch("/notes/n1", json={"title": "Nara"})

        note = (await client.get("/notes/n1")).json()
        assert (note["title"], note["content"], note["version"]) == ("Nara", "Rewritten.", 3)

    @pytest.mark.parametrize("kind", sorted(HOSTILE.keys() - {"null title"}))
    async def test_refuses_hostile_bodies(self, client, kind):
        await self.note(client)
        check_error(await client.patch("/notes/n1", content=HOSTILE[kind]), 422, "invalid_request")


class TestList:
    async def ids(self, client, **parameters) -> list[str]:
        """Of all pages."""
        after, ids = {}, []
        while True:
            listed = check(await client.get("/notes", params=parameters | after), 200, NotesOut)
            ids += [item["note_id"] for item in listed["items"]]
            if listed["next"] is None:
                return ids
            after = {"after": listed["next"]}

    async def fill(self, gateway, client) -> None:
        """Searchable, failed, hidden, deleted and pending notes."""
        await client.put("/notes/b", json={"title": "b", "category": " Caf\u00e9", "attributes": {"price": 3}})
        await client.put("/notes/a", json={"title": "a", "hashtags": ["#Street Foods"], "hidden": True})
        await client.put("/notes/C", json={"title": "C", "attributes": {"price": 30}, "language": "ja"})
        await client.put("/notes/gone", json={"title": "gone"})
        await client.delete("/notes/gone")
        await gateway.drain()
        gateway.store.suggest("C", Suggestion(1, "", failure="too long"))
        gateway.searcher.remove("C")
        await client.put("/notes/waits", json={"title": "waits", "created_at": "2026-01-31T12:00:00+08:00"})

    async def test_holds_every_live_note_as_a_read_shows_it_in_byte_order(self, gateway, client):
        await self.fill(gateway, client)

        listed = check(await client.get("/notes"), 200, NotesOut)

        assert [item["note_id"] for item in listed["items"]] == ["C", "a", "b", "waits"]
        assert [item["status"] for item in listed["items"]] == ["failed", "searchable", "searchable", "pending"]
        assert listed["next"] is None
        for item in listed["items"]:
            assert item == (await client.get(f"/notes/{item['note_id']}")).json()
        assert check(await client.get("/notes?limit=2&after=D"), 200, NotesOut) == {
            "items": listed["items"][1:3],
            "next": "b",
        }
        assert await self.ids(client, limit=1) == ["C", "a", "b", "waits"]

    @pytest.mark.parametrize(
        ("text", "ids"),
        [
            ('category = "cafe\u0301"', ["b"]),
            ('hashtags = "streetfood"', ["a"]),
            ("price EXISTS", ["C", "b"]),
            ("price < 10", ["b"]),
            ("NOT price < 10", ["C", "a", "waits"]),
            ('language = "ja"', ["C"]),
            ('created_at = "2026-01-31T04:00:00Z"', ["waits"]),
            ("exposure = 0 AND NOT never = true", ["C", "a", "b", "waits"]),
        ],
    )
    async def test_that_is_filtered_holds_those_that_match_on_pages_of_any_size(self, gateway, client, text, ids):
        await self.fill(gateway, client)

        for limit in (1, 2, 100):
            assert await self.ids(client, filter=text, limit=limit) == ids
        last = (await client.get("/notes", params={"filter": "created_at EXISTS", "limit": 1})).json()
        assert ([item["note_id"] for item in last["items"]], last["next"]) == (["waits"], None)

    async def test_that_is_filtered_knows_a_patch_at_once(self, gateway, client):
        await self.fill(gateway, client)
        await client.patch("/notes/waits", json={"attributes": {"price": 5}})

        assert await self.ids(client, filter="price = 5") == ["waits"]

    async def test_that_is_filtered_looks_at_so_many_notes_a_request(self, gateway, client, monkeypatch):
        monkeypatch.setattr("service.recommend.notes._MOST_LOOKED_AT", 6)
        monkeypatch.setattr("service.recommend.notes._LOOKED_AT", 3)
        for number in range(20):
            await client.put(f"/notes/n{number:02}", json={"title": "a", "exposure": number})

        first = (await client.get("/notes", params={"filter": "exposure = 19"})).json()
        assert first == {"items": [], "next": "n05"}
        assert await self.ids(client, filter="exposure = 19") == ["n19"]

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=1001",
            "limit=a",
            "after=",
            "after=a%20b",
            "x=1",
            "limit=1&limit=2",
            "filter=",
            f"filter={'x' * 4097}",
        ],
    )
    async def test_refuses_other_parameters(self, client, query):
        check_error(await client.get(f"/notes?{query}"), 422, "invalid_request")

    @pytest.mark.parametrize("text", ["price <", "(" * 9, MARK])
    async def test_says_where_a_filter_is_wrong(self, client, text):
        error = check_error(await client.get("/notes", params={"filter": text}), 422, "bad_filter")
        assert error["message"].startswith("filter: at character ")

    async def test_needs_the_store_and_not_the_index(self, gateway, client):
        await self.fill(gateway, client)
        gateway.searcher.down |= {0, 1}
        statuses = {item["status"] for item in (await client.get("/notes")).json()["items"]}
        assert statuses == {"pending", "failed"}
        gateway.store.down = True
        check_error(await client.get("/notes"), 503, "store_unavailable")


class TestAttributes:
    NOTE: ClassVar = {
        "title": "Kyoto",
        "attributes": {"price": 3.0, "half": 0.5, "sale": False, "city": "Kyoto", "seasons": ["spring", "fall"]},
        "language": "EN",
        "hidden": True,
    }

    async def test_come_back_as_they_were_written_and_are_optional(self, gateway, client):
        await client.put("/notes/n1", json=self.NOTE)
        await client.put("/notes/n2", json={"title": "Temples in the morning, markets at noon"})
        await client.put("/notes/n3", json={"title": "🍜 123"})
        await gateway.drain()
        full, plain, unsure = [check(await client.get(f"/notes/n{n}"), 200, NoteOut) for n in (1, 2, 3)]

        expected = {"language": "en", "hidden": True, "detected_language": None, "status": "searchable"}
        assert full | expected == full
        assert full["attributes"] == self.NOTE["attributes"]
        shown = ("attributes", "language", "hidden", "detected_language")
        assert [plain[name] for name in shown] == [{}, None, False, "en"]
        assert unsure["detected_language"] is None

    async def test_are_part_of_the_note_and_a_put_without_them_gives_the_defaults(self, client):
        first = await client.put("/notes/n1", json=self.NOTE)
        again = await client.put("/notes/n1", json=self.NOTE | {"attributes": self.NOTE["attributes"] | {"price": 3}})
        plain = await client.put("/notes/n1", json={"title": "Kyoto"})

        assert [answer.json()["version"] for answer in (first, again, plain)] == [1, 1, 2]
        note = (await client.get("/notes/n1")).json()
        assert (note["attributes"], note["language"], note["hidden"]) == ({}, None, False)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("language", value) for value in ("en-US", "e", "engl", "", 1, "e1", "en\n")),
            *(("hidden", value) for value in (None, 1, "true")),
            *(("attributes", value) for value in (None, [], "x", {f"a{n}": 1 for n in range(33)})),
            *(("attributes", {name: 1}) for name in ("", "A", "1a", "a-b", "a" * 41, "é", "a\n")),
            *(("attributes", {name: 1}) for name in sorted(RESERVED)),
            *(
                ("attributes", {"secret": value})
                for value in (None, "", "x" * 201, "a\0", {}, [], ["x"] * 21, [1], [""], [["x"]], ["x" * 201], 10**400)
            ),
        ],
    )
    async def test_out_of_bounds_are_refused_with_their_place(self, client, name, value):
        answer = await client.put("/notes/n1", json={"title": "a", name: value})

        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "invalid_request"
        assert name in answer.json()["error"]["message"]

    @pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
    async def test_are_finite_numbers(self, client, number):
        answer = await client.put("/notes/n1", content=b'{"title": "a", "attributes": {"a": %s}}' % number.encode())
        assert answer.status_code == 422

    async def test_may_be_as_large_as_they_may(self, client):
        values = ["x" * 200, 1e308, -1e30, True, ["x" * 200] * 20]
        attributes = {f"{'a' * 38}{n:02}": values[n % 5] for n in range(32)}

        await client.put("/notes/n1", json={"title": "a", "attributes": attributes})

        assert (await client.get("/notes/n1")).json()["attributes"] == attributes

    async def test_of_another_type_are_refused_with_both_named_and_in_a_bulk_alone(self, client):
        await client.put("/notes/n1", json={"title": "a", "attributes": {"price": 3}})
        wrong = {"title": "b", "attributes": {"price": "three euros"}}

        answer = await client.put("/notes/n2", json=wrong)
        assert answer.status_code == 422
        message = answer.json()["error"]["message"]
        assert message == "attributes.price: in other notes the type is number, here it is string"

        elements = [{"title": "no id"}, wrong | {"note_id": "n3"}, {"note_id": "n4", "title": "d"}, {}]
        bulk = check(await client.post("/notes", json=elements), 202, BulkOut)
        assert (bulk["accepted"], [one["position"] for one in bulk["rejected"]]) == (1, [0, 1, 3])
        assert bulk["rejected"][1] == {"position": 1, "code": "invalid_request", "message": message}
        assert (await client.get("/notes/n3")).status_code == 404


class TestBulk:
    @pytest.mark.parametrize(
        ("kind", "join"),
        [
            ("application/json", lambda elements: b"[" + b",".join(elements) + b"]"),
            ("application/json", lambda elements: b" \n[ " + b" ,\n ".join(elements) + b" ] \r\n"),
            ("application/x-ndjson", b"\n".join),
            ("application/x-ndjson", lambda elements: b"\n" + b"\r\n\r\n".join(elements) + b"\r\n"),
        ],
    )
    async def test_stores_the_good_and_names_the_bad(self, client, kind, join):
        elements = [
            b'{"note_id": "a", "title": "harbor"}',
            b'{"note_id": "b", "title": "\\ud800"}',
            b'{"title": "no id"}',
            b'{"note_id": "bad id", "title": "x"}',
            b'{"note_id": "c", "title": "c", "exposure": ' + b"9" * 5000 + b"}",
            b'{"note_id": "d", "title": "d", "x-mark-x": NaN}',
            b'{"note_id": "e", "title": "]}, \\" {["}',
        ]

        response = await client.post("/notes", content=join(elements), headers={"content-type": kind})

        body = check(response, 202, BulkOut)
        assert body["accepted"] == 2
        assert [rejected["position"] for rejected in body["rejected"]] == [1, 2, 3, 4, 5]
        assert {rejected["code"] for rejected in body["rejected"]} == {"invalid_request"}
        assert MARK not in response.text
        assert (await client.get("/notes/a")).json()["title"] == "harbor"
        assert (await client.get("/notes/e")).json()["title"] == ']}, " {['
        check_error(await client.get("/notes/c"), 404, "note_not_found")

    async def test_of_one_line_that_is_not_utf_8_loses_that_line(self, client):
        lines = b'{"note_id": "a", "title": "\xff"}\n{"note_id": "b", "title": "b"}'

        body = check(await client.post("/notes", content=lines), 202, BulkOut)

        assert (body["accepted"], [rejected["position"] for rejected in body["rejected"]]) == (1, [0])

    @pytest.mark.parametrize("kind", ["application/x-ndjson", "application/X-NDJSON; charset=utf-8"])
    @pytest.mark.parametrize("first", [b"null", b"[]", b"x-mark-x", b"\xff", b"[" * 5000, b'["a", "b"]'])
    async def test_of_lines_of_which_the_first_is_no_note_keeps_the_others(self, client, kind, first):
        lines = first + b'\n{"note_id": "b", "title": "b"}'

        response = await client.post("/notes", content=lines, headers={"content-type": kind})

        body = check(response, 202, BulkOut)
        assert (body["accepted"], [rejected["position"] for rejected in body["rejected"]]) == (1, [0])
        assert MARK not in response.text

    async def test_with_an_id_twice_keeps_the_later(self, client):
        elements = [{"note_id": "n1", "title": title} for title in ("first", "second")]

        body = check(await client.post("/notes", json=elements), 202, BulkOut)

        assert body == {"accepted": 2, "rejected": []}
        assert (await client.get("/notes/n1")).json()["title"] == "second"

    async def test_takes_a_thousand_and_no_more(self, gateway, client):
        elements = [{"note_id": f"n{number}", "title": "x"} for number in range(1001)]

        full = await client.post("/notes", json=elements[:1000])
        over = await client.post("/notes", json=elements)

        assert check(full, 202, BulkOut) == {"accepted": 1000, "rejected": []}
        check_error(over, 422, "invalid_request")
        check_error(await client.get("/notes/n1000"), 404, "note_not_found")

    async def test_of_nothing_is_accepted_without_the_store(self, gateway, client):
        gateway.store.down = True

        assert check(await client.post("/notes", content=b"[]"), 202, BulkOut) == {
            "accepted": 0,
            "rejected": [],
        }

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"null",
            b"1",
            b"\x00",
            b"[",
            b"[1",
            b"[1,",
            b"[,]",
            b"[1,]",
            b"[1 2]",
            b"[] []",
            b'[{"note_id": "a", "title": "a"} {"note_id": "b", "title": "b"}]',
            b'[{"note_id": "a", "title": "a"]',
            b'[{"note_id": "a", "title": "a}]',
            b'[{"note_id": "a", "title": "a"}]}',
            b"[{]}]",
            b"[" * 100_000,
            b"[" + b"[]," * 300_000 + b"[]]",
        ],
    )
    async def test_refuses_bodies_that_have_no_elements(self, client, body):
        check_error(await client.post("/notes", content=body), 422, "invalid_request")

    @pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
    async def test_accepts_nothing_hostile(self, client, body):
        response = await client.post("/notes", content=body)
        wrapped = await client.post("/notes", content=b"[" + body + b"]")

        for answer in (response, wrapped):
            if answer.status_code == 202:
                assert check(answer, 202, BulkOut)["accepted"] == 0
                assert MARK not in answer.text
            else:
                check_error(answer, 422, "invalid_request")

    async def test_has_its_own_limit_of_bytes(self, client):
        note = {"note_id": "a", "content": "x" * 20_000}

        check(await client.post("/notes", json=[note] * 45), 202, BulkOut)
        check_error(await client.post("/notes", json=[note] * 50), 413, "too_large")


class TestStatus:
    async def test_answer_has_the_shape_of_the_contract(self, gateway, client, monkeypatch):
        await gateway.publish(Note("a", "harbor"), Note("b", "tram"))
        await client.put("/notes/c", json=NOTE)

        async def one_shard(*, timeout_s: float) -> list[ShardStatus]:
            return [ShardStatus(1, 2, 5, "flat", FINGERPRINT, "7-0", None, 2)]

        monkeypatch.setattr(gateway.searcher, "status", one_shard)

        assert check(await client.get("/status"), 200, StatusOut) == {
            "notes": {"live": 3, "searchable": 2, "pending": 1, "failed": 0},
            "queue": {"depth": 1, "oldest_s": 0.5},
            "index": {
                "generation": 5,
                "shards_ok": 1,
                "shards_total": 2,
                "shards": [
                    {
                        "shard": 1,
                        "notes": 2,
                        "generation": 5,
                        "recipe": "flat",
                        "fingerprint": FINGERPRINT,
                        "cursor": "7-0",
                        "recall": None,
                        "delta": 2,
                    }
                ],
            },
            "model": FINGERPRINT,
            "freshness_s": {"p50": None, "p99": None},
            "reach": None,
            "watch": None,
            "warnings": [],
        }

    async def test_says_what_is_wrong_with_the_store(self, gateway, client):
        gateway.app.state.warnings = lambda: ["it may lose notes"]

        assert check(await client.get("/status"), 200, StatusOut)["warnings"] == ["it may lose notes"]

    async def test_without_the_index_has_no_generation(self, gateway, client):
        gateway.searcher.down = {0, 1}

        body = check(await client.get("/status"), 200, StatusOut)

        assert (body["index"]["generation"], body["index"]["shards_ok"]) == (None, 0)

    async def test_needs_the_store(self, gateway, client):
        gateway.store.down = True

        check_error(await client.get("/status"), 503, "store_unavailable")


class TestIdempotency:
    KEY: ClassVar = {"Idempotency-Key": "k1"}

    async def test_a_write_sent_again_gets_the_same_answer_and_changes_nothing(self, gateway, client):
        first = await client.put("/notes/n1", json=NOTE, headers=self.KEY)
        await client.put("/notes/n1", json=NOTE | {"title": "newer"})
        again = await client.put("/notes/n1", json=NOTE, headers=self.KEY)

        assert (again.status_code, again.content, again.headers["etag"]) == (202, first.content, first.headers["etag"])
        assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
        assert (await client.get("/notes/n1")).json()["title"] == "newer"

    async def test_a_key_belongs_to_one_request(self, client):
        await client.put("/notes/n1", json=NOTE, headers=self.KEY)

        other = await client.put("/notes/n2", json=NOTE, headers=self.KEY)

        check_error(other, 422, "idempotency_key_reused")

    async def test_a_key_of_one_caller_does_not_answer_another(self, tmp_path):
        secrets = [create_key(tmp_path / "keys.json", ["write"])[1] for _ in range(2)]
        async with MemoryGateway(Keyring(tmp_path / "keys.json")).client() as client:
            answers = [
                await client.put("/notes/n1", json=NOTE, headers=self.KEY | {"Authorization": f"Bearer {secret}"})
                for secret in (*secrets, *secrets)
            ]

        assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, None, "true", "true"]

    async def test_deletes_bulks_and_events_take_a_key_too(self, client):
        for _ in range(2):
            bulk = await client.post("/notes", json=[NOTE | {"note_id": "n1"}], headers={"Idempotency-Key": "a"})
            events = await client.post("/events", json={"events": [EVENT]}, headers={"Idempotency-Key": "b"})
            gone = await client.delete("/notes/n1", headers={"Idempotency-Key": "c"})

            assert check(bulk, 202, BulkOut)["accepted"] == 1
            assert check(events, 202, EventsOut) == {"accepted": 1, "duplicates": 0, "rejected": []}
            assert (gone.status_code, gone.content) == (204, b"")

    @pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9"])
    async def test_a_key_is_plain_text(self, client, key):
        response = await client.put("/notes/n1", json=NOTE, headers={"Idempotency-Key": key.encode("latin-1")})

        check_error(response, 422, "invalid_request")


class TestHeaders:
    async def test_a_head_is_the_answer_without_its_body(self, gateway, client):
        await gateway.publish(Note("n1", "harbor"))

        for path in ("/notes/n1", "/notes/n1/related", "/status"):
            got, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == got.headers["content-length"]

    async def test_a_long_answer_is_packed_for_those_who_can_unpack_it(self, gateway, client):
        await gateway.publish(*(Note(f"n{n}", f"harbor {n}") for n in range(30)))
        path = "/notes/n0/related?k=20"

        packed = await client.get(path, headers={"Accept-Encoding": "gzip"})
        plain = await client.get(path, headers={"Accept-Encoding": "identity"})

        assert packed.headers["content-encoding"] == "gzip"
        assert packed.json() | {"answer_id": ""} == plain.json() | {"answer_id": ""}
        assert int(packed.headers["content-length"]) < len(plain.content) / 2

    async def test_nobody_keeps_an_answer_but_a_reader_may_keep_a_note(self, gateway, client):
        await gateway.publish(Note("n1", "harbor"))

        assert (await client.get("/notes/n1/related")).headers["cache-control"] == "no-store"
        assert (await client.get("/notes/never")).headers["cache-control"] == "no-store"
        assert (await client.get("/notes/n1")).headers["cache-control"] == "private, no-cache"

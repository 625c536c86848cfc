"""The HTTP contract, sentence by sentence, asked of the real service by a client that knows nothing else."""

import gzip
import json
import os
import re
import signal
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from support.checkpoint import CATEGORIES
from support.service import Service, until

IDS = "AZaz09._~:-"
EMOJI = "\U0001f642"
ROUTES = (
    ("GET", "/notes/never/related"),
    ("POST", "/notes/tags"),
    ("POST", "/v1/embeddings"),
    ("PUT", "/notes/any"),
    ("PATCH", "/notes/any"),
    ("POST", "/notes"),
    ("GET", "/notes"),
    ("GET", "/notes/never"),
    ("DELETE", "/notes/never"),
    ("POST", "/events"),
    ("GET", "/status"),
)
WORDS = ["harbor", "tram", "noodle", "garden", "temple", "market", "sunrise", "river", "lantern", "bicycle"]


def refused(answer: httpx.Response, status: int, code: str) -> None:
    """The answer is an error of the one shape."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert (error["code"], error["request_id"]) == (code, answer.headers["x-request-id"])
    assert isinstance(error["message"], str)
    assert error["message"]
    assert len(answer.content) <= 2048


def note(number: int) -> dict[str, Any]:
    return {
        "note_id": f"corpus-{number}",
        "title": f"{WORDS[number % 10]} {WORDS[number // 10 % 10]} {number}",
        "content": " ".join(WORDS[: number % 7]),
        "hashtags": [WORDS[number % 3], f"tag{number % 5}"],
        "category": ("Travel", "Baking", "Home Decor")[number % 3],
        "author": f"author-{number % 4}",
        "exposure": 10**4 if number % 10 == 0 else 0,
    }


@pytest.fixture(scope="module")
def corpus(http: httpx.Client) -> list[str]:
    """150 notes that can be found."""
    notes = [note(number) for number in range(150)]
    answer = http.post("/notes", json=notes)
    assert answer.json() == {"accepted": 150, "rejected": []}
    ids = [one["note_id"] for one in notes]
    for note_id in ids:
        until(lambda note_id=note_id: http.get(f"/notes/{note_id}").json()["status"] == "searchable")
    return ids


def related(http: httpx.Client, query: str = "", note_id: str = "corpus-1") -> dict[str, Any]:
    answer = http.get(f"/notes/{note_id}/related{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(answer: dict[str, Any]) -> list[str]:
    return [item["note_id"] for item in answer["items"]]


@contextmanager
def stopped(service: Service, name: str) -> Iterator[None]:
    """One of the service's processes does not answer meanwhile."""
    process = service.children()[name]
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)
        until(service.ready)


class TestEverything:
    def test_operations_are_on_a_second_listener(self, service, http):
        ops = f"http://127.0.0.1:{(service.state / 'run' / 'gateway.ops').read_text()}"
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(ops + path).status_code == 200
            refused(http.get(path), 404, "not_found")

    def test_every_response_carries_x_request_id(self, http):
        http.put("/notes/request-id?wait=10", json={"title": "a"})
        etag = http.get("/notes/request-id").headers["etag"]
        answers = [
            http.get("/status"),
            http.head("/status"),
            http.get("/openapi.json"),
            http.get("/nowhere"),
            http.patch("/status"),
            http.post("/notes", content=b"x"),
            http.get("/notes/request-id", headers={"If-None-Match": etag}),
            http.delete("/notes/request-id"),
        ]

        assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 405, 422, 304, 204]
        given = [answer.headers["x-request-id"] for answer in answers]
        assert len(set(given)) == len(given)

    @pytest.mark.parametrize(("method", "path"), ROUTES)
    def test_every_error_has_one_shape_and_never_echoes_the_input(self, http, method, path):
        answer = http.request(method, f"{path}?q-secret-q=1", content=b'{"q-secret-q": "q-secret-q"}')

        refused(answer, 422, "invalid_request")
        assert "q-secret-q" not in answer.text

    @pytest.mark.parametrize("path", ["/", "/notes", "/notes/a/related", "/nowhere/at/all", "/status/"])
    def test_every_error_of_a_path_or_method_has_the_one_shape(self, http, path):
        refused(
            http.request("PATCH", path),
            *((405, "method_not_allowed") if path in ("/", "/notes", "/notes/a/related") else (404, "not_found")),
        )

    def test_bodies_are_utf_8_both_ways(self, http):
        text = "京都の夜 · Ελλάδα · مرحبا · 👩‍👩‍👧‍👦 · e\u0301"
        http.put("/notes/utf-8", content=json.dumps({"title": text}, ensure_ascii=False).encode())
        http.put("/notes/escaped", content=json.dumps({"title": text}).encode())

        for note_id in ("utf-8", "escaped"):
            answer = http.get(f"/notes/{note_id}")
            assert answer.headers["content-type"].partition(";")[0] == "application/json"
            assert json.loads(answer.content.decode("utf-8"))["title"] == text

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", "/notes/unknown-field", {"title": "a"}),
            ("POST", "/notes/tags", {"title": "a"}),
            ("POST", "/v1/embeddings", {"input": "a"}),
            ("POST", "/events", {"events": []}),
        ],
    )
    def test_unknown_fields_are_refused(self, http, method, path, body):
        assert http.request(method, path, json=body).status_code in (200, 202)
        refused(http.request(method, path, json=body | {"colour": "red"}), 422, "invalid_request")

    def test_openapi_json_is_complete(self, http):
        document = http.get("/openapi.json").json()

        described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        assert {(method, re.sub("never|any", "{note_id}", path)) for method, path in ROUTES} <= described


class TestPut:
    def test_answers_202_with_id_version_and_pending(self, service, http):
        with stopped(service, "worker"):
            answer = http.put("/notes/put-1", json={"title": "a"})

        assert (answer.status_code, answer.json()) == (202, {"note_id": "put-1", "version": 1, "status": "pending"})

    def test_with_wait_answers_200_as_soon_as_it_is_searchable(self, http):
        start = time.monotonic()
        answer = http.put("/notes/put-2?wait=10", json={"title": "a"})

        assert (answer.status_code, answer.json()) == (200, {"note_id": "put-2", "version": 1, "status": "searchable"})
        assert time.monotonic() - start < 10
        assert http.get("/notes/put-2/related").status_code == 200

    def test_of_the_same_body_again_says_what_get_says(self, service, http):
        with stopped(service, "worker"):
            pending = [http.put("/notes/put-5", json={"title": "same"}) for _ in range(2)]
            assert http.get("/notes/put-5").json()["status"] == "pending"
        until(lambda: http.get("/notes/put-5").json()["status"] == "searchable")
        searchable = http.put("/notes/put-5", json={"title": "same"})

        assert [(answer.status_code, answer.json()["status"]) for answer in (*pending, searchable)] == [
            *[(202, "pending")] * 2,
            (200, "searchable"),
        ]

    def test_with_wait_in_vain_answers_the_202(self, service, http):
        with stopped(service, "worker"):
            answer = http.put("/notes/put-3?wait=0.3", json={"title": "a"})

        assert (answer.status_code, answer.json()["status"]) == (202, "pending")

    @pytest.mark.parametrize("wait", ["0", "10", "0.5"])
    def test_takes_a_wait_of_0_to_10(self, http, wait):
        assert http.put(f"/notes/put-4?wait={wait}", json={"title": "a"}).status_code in (200, 202)

    @pytest.mark.parametrize("wait", ["-0.1", "10.1", "11", "x", "", "nan", "inf", "1&wait=2"])
    def test_takes_no_other_wait(self, http, wait):
        refused(http.put(f"/notes/put-5?wait={wait}", json={"title": "a"}), 422, "invalid_request")

    def test_replaces_the_whole_note(self, http):
        http.put("/notes/put-6", json={"title": "a", "content": "b", "hashtags": ["c"], "category": "d", "exposure": 5})
        http.put("/notes/put-6", json={"title": "new"})
        now = http.get("/notes/put-6").json()

        assert (now["title"], now["content"], now["hashtags"], now["category"], now["exposure"]) == (
            "new",
            "",
            [],
            None,
            0,
        )

    def test_raises_the_version_by_one_but_not_for_the_same_body(self, http):
        first, second = {"title": "a", "exposure": 1}, {"title": "a", "exposure": 2}
        answers = [http.put("/notes/put-7", json=body) for body in (first, first, second, second, first)]

        assert [answer.json()["version"] for answer in answers] == [1, 1, 2, 2, 3]

    def test_of_the_same_body_with_wait_is_searchable_at_once(self, http):
        http.put("/notes/put-8?wait=10", json={"title": "a"})

        assert http.put("/notes/put-8?wait=10", json={"title": "a"}).json() == {
            "note_id": "put-8",
            "version": 1,
            "status": "searchable",
        }


class TestTheNote:
    FULL: ClassVar = {
        "title": "t" * 300,
        "content": "c" * 20_000,
        "hashtags": [f"{number:02}" + "h" * 62 for number in range(30)],
        "category": "Travel",
        "author": "a-1",
        "exposure": 2**31,
        "created_at": "2026-03-14T09:30:00+09:00",
    }

    def test_comes_back_as_it_was_written(self, http):
        http.put("/notes/full", json=self.FULL)
        read = http.get("/notes/full").json()

        assert {name: read[name] for name in self.FULL} == self.FULL

    def test_has_defaults(self, http):
        http.put("/notes/defaults", json={"content": "b"})
        read = http.get("/notes/defaults").json()

        expected = {"title": "", "hashtags": [], "category": None, "author": None, "exposure": 0, "created_at": None}
        assert {name: read[name] for name in expected} == expected

    @pytest.mark.parametrize("character", ["é", "京", EMOJI])
    @pytest.mark.parametrize("escaped", [False, True], ids=["raw", "escaped"])
    def test_may_be_as_long_as_its_parts_may_be_in_any_script(self, http, character, escaped):
        longest = {
            "title": character * 300,
            "content": character * 20_000,
            "hashtags": [character * 64] * 30,
            "category": character * 64,
            "author": character * 64,
        }

        answer = http.put("/notes/longest", content=json.dumps(longest, ensure_ascii=escaped).encode())

        assert answer.status_code == 202, answer.text

    @pytest.mark.parametrize(
        "taken",
        [
            {"title": " " + "t" * 300 + "\n"},
            {"title": "", "content": "b"},
            {"title": "  ", "content": "b"},
            {"title": "a", "content": ""},
            {"title": "a", "hashtags": []},
            {"title": "a", "category": None, "author": None, "created_at": None},
            {"title": "a", "exposure": 0},
            {"title": "a", "created_at": "2026-01-31T12:00:00Z"},
            {"title": "a", "created_at": "2026-01-31T12:00:00.123456-08:00"},
            {"title": "[EMB] <|endoftext|> <script>alert(1)</script> \u202e \x01"},
        ],
    )
    def test_is_taken_within_its_bounds(self, http, taken, request):
        note_id = f"bounds-{request.node.callspec.id}"  # the same note again would change nothing
        assert http.put(f"/notes/{note_id}", json=taken).status_code == 202

    @pytest.mark.parametrize(
        "broken",
        [
            {},
            {"title": ""},
            {"title": "   ", "content": ""},
            {"title": "t" * 301},
            {"title": "a", "content": "c" * 20_001},
            {"title": "a", "hashtags": ["h"] * 31},
            {"title": "a", "hashtags": [""]},
            {"title": "a", "hashtags": ["h" * 65]},
            {"title": "a", "hashtags": "h"},
            {"title": "a", "hashtags": None},
            {"title": None},
            {"title": 1},
            {"title": "a", "content": None},
            {"title": "a", "category": 1},
            {"title": "a", "author": ["x"]},
            {"title": "a", "exposure": -1},
            {"title": "a", "exposure": 1.5},
            {"title": "a", "exposure": "1"},
            {"title": "a", "exposure": None},
            {"title": "a", "created_at": "yesterday"},
            {"title": "a", "created_at": "2026-01-31"},
            {"title": "a", "created_at": "2026-01-31T12:00:00"},
            {"title": "a", "created_at": 1767225600},
            {"title": "a", "note_id": "b"},
            {"title": "a", "version": 3},
        ],
    )
    def test_is_refused_outside_of_them(self, http, broken):
        refused(http.put("/notes/bounds", json=broken), 422, "invalid_request")

    @pytest.mark.parametrize("note_id", [*IDS, IDS, "x" * 128])
    def test_has_an_id_of_1_to_128_of_these_characters(self, http, note_id):
        path = note_id.replace(".", "%2E")  # a client would tidy a path of dots
        assert http.put(f"/notes/{path}", json={"title": "a"}).status_code == 202
        assert http.get(f"/notes/{path}").json()["note_id"] == note_id
        assert http.delete(f"/notes/{path}").status_code == 204

    @pytest.mark.parametrize(
        "note_id", ["x" * 129, "a b", "a!", "a@b", "caf%C3%A9", "%00", "a%0A", "%E4%BA%AC", "a+b", "a*"]
    )
    def test_has_no_other_id(self, http, note_id):
        refused(http.put(f"/notes/{note_id}", json={"title": "a"}), 422, "invalid_request")
        refused(http.get(f"/notes/{note_id}"), 422, "invalid_request")
        refused(http.get(f"/notes/{note_id}/related"), 422, "invalid_request")
        refused(http.delete(f"/notes/{note_id}"), 422, "invalid_request")


class TestBulk:
    NOTES: ClassVar = [
        {"note_id": "bulk-1", "title": "a"},
        {"note_id": "bulk-2"},
        {"note_id": "bulk-3", "title": "c", "colour": "red"},
        {"title": "no id"},
        {"note_id": "bulk 5", "title": "e"},
        {"note_id": "bulk-6", "title": "f"},
    ]

    @pytest.mark.parametrize("form", ["array", "ndjson"])
    def test_takes_a_json_array_or_ndjson_and_one_bad_note_never_sinks_the_rest(self, http, form):
        lines = "\n".join(map(json.dumps, self.NOTES)) + "\n"
        content, kind = (
            (json.dumps(self.NOTES), "application/json") if form == "array" else (lines, "application/x-ndjson")
        )

        answer = http.post("/notes", content=content.encode(), headers={"Content-Type": kind})

        assert (answer.status_code, set(answer.json())) == (202, {"accepted", "rejected"})
        assert answer.json()["accepted"] == 2
        for one in answer.json()["rejected"]:
            assert set(one) == {"position", "code", "message"}
        assert [one["position"] for one in answer.json()["rejected"]] == [1, 2, 3, 4]
        assert http.get("/notes/bulk-6").json()["title"] == "f"
        refused(http.get("/notes/bulk-2"), 404, "note_not_found")

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    def test_rejects_what_is_too_long_or_not_utf_8_or_no_object_alone(self, http, packed, mark):
        good = b'{"note_id": "bulk-8", "title": "a"}'
        bad = [
            b'{"note_id": "bulk-9", "title": "\xff"}',
            b"7",
            b"[%b]" % b",".join([b"0"] * 600_000),
            b'"%b"' % (b"x" * 10**6),
        ]
        headers = {"Content-Encoding": "gzip"} if packed else {}
        for kind, body in (("json", b"[%b]" % b",".join([*bad, good])), ("x-ndjson", b"\n".join([*bad, good]))):
            body = gzip.compress(mark + body) if packed else mark + body
            headers["Content-Type"] = f"application/{kind}"
            answer = http.post("/notes", content=body, headers=headers)

            assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
            assert [one["position"] for one in answer.json()["rejected"]] == [0, 1, 2, 3]

    @pytest.mark.parametrize("first", ["not json", "null", "[]", "1", '"text"', "{"])
    def test_takes_ndjson_whose_first_line_is_bad(self, http, first):
        content = f'{first}\n{{"note_id": "bulk-7", "title": "a"}}\n'.encode()

        answer = http.post("/notes", content=content, headers={"Content-Type": "application/x-ndjson"})

        assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
        assert [one["position"] for one in answer.json()["rejected"]] == [0]

    def test_takes_up_to_1000_notes_and_no_more(self, http):
        notes = [{"note_id": f"thousand-{number}", "title": "a"} for number in range(1001)]

        assert http.post("/notes", json=notes[:1000]).json() == {"accepted": 1000, "rejected": []}
        refused(http.post("/notes", json=notes), 422, "invalid_request")
        refused(http.get("/notes/thousand-1000"), 404, "note_not_found")

    def test_takes_1000_notes_of_the_longest_content(self, http):
        notes = [{"note_id": "long-1", "title": "a", "content": "c" * 20_000}] * 1000

        answer = http.post("/notes", json=notes)

        assert (answer.status_code, answer.json()) == (202, {"accepted": 1000, "rejected": []})

    def test_with_the_same_id_twice_keeps_the_later(self, http):
        notes = [{"note_id": "twice", "title": "first"}, {"note_id": "twice", "title": "second"}]

        assert http.post("/notes", json=notes).json()["accepted"] == 2
        assert http.get("/notes/twice").json()["title"] == "second"

    @pytest.mark.parametrize("body", [b"", b"null", b'"a"', b"[", b"[1", b"nothing"])
    def test_that_is_neither_is_refused(self, http, body):
        refused(http.post("/notes", content=body), 422, "invalid_request")


class TestGet:
    def test_gives_the_note_its_version_and_status_and_what_the_model_suggests(self, http, corpus):
        read = http.get("/notes/corpus-1").json()

        assert read == note(1) | {
            "attributes": {},
            "language": None,
            "detected_language": read["detected_language"],
            "hidden": False,
            "created_at": None,
            "version": 1,
            "status": "searchable",
            "reason": None,
            "suggested_hashtags": read["suggested_hashtags"],
            "suggested_category": read["suggested_category"],
        }
        assert read["suggested_category"]["name"] in CATEGORIES
        for tag in read["suggested_hashtags"]:
            assert set(tag) == {"tag", "score"}

    def test_says_pending_and_suggests_nothing_until_then(self, service, http):
        with stopped(service, "worker"):
            http.put("/notes/get-1", json={"title": "a"})
            read = http.get("/notes/get-1").json()

        assert (read["status"], read["suggested_hashtags"], read["suggested_category"]) == ("pending", None, None)

    def test_of_an_id_never_seen_or_deleted_is_404(self, http):
        http.put("/notes/get-2", json={"title": "a"})
        http.delete("/notes/get-2")

        refused(http.get("/notes/get-2"), 404, "note_not_found")
        refused(http.get("/notes/never"), 404, "note_not_found")


class TestDelete:
    def test_is_204_also_when_already_deleted_and_404_when_never_seen(self, http):
        http.put("/notes/delete-1", json={"title": "a"})
        answers = [http.delete("/notes/delete-1") for _ in range(3)]

        assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 3
        refused(http.delete("/notes/never"), 404, "note_not_found")

    def test_holds_from_the_acknowledgement_on(self, http):
        for number in range(5):
            http.put(f"/notes/delete-2-{number}?wait=10", json={"title": "velvet owl"})
        for gone in range(1, 5):
            before = ids_of(related(http, "?k=100&duplicates=keep", "delete-2-0"))
            assert http.delete(f"/notes/delete-2-{gone}").status_code == 204
            after = ids_of(related(http, "?k=100&duplicates=keep", "delete-2-0"))
            assert (f"delete-2-{gone}" in before, f"delete-2-{gone}" in after) == (True, False)
        refused(http.get("/notes/delete-2-1/related"), 404, "note_not_found")

    def test_ends_when_the_note_is_written_again_with_a_higher_version(self, http):
        http.put("/notes/delete-3", json={"title": "a"})
        http.delete("/notes/delete-3")
        again = http.put("/notes/delete-3?wait=10", json={"title": "a"})

        assert (again.status_code, again.json()["status"]) == (200, "searchable")
        assert again.json()["version"] > 1


class TestEvents:
    EVENT: ClassVar = {
        "event_id": "sentence-1",
        "user_id": "u-1",
        "note_id": "n-1",
        "source_note_id": "n-2",
        "type": "click",
        "ts": "2026-03-15T20:01:07Z",
    }

    def test_are_idempotent_by_event_id(self, http):
        first = http.post("/events", json={"events": [self.EVENT]})
        again = http.post("/events", json={"events": [self.EVENT, self.EVENT | {"event_id": "sentence-2"}]})

        assert (first.status_code, first.json()) == (202, {"accepted": 1, "duplicates": 0, "rejected": []})
        assert (again.status_code, again.json()) == (202, {"accepted": 1, "duplicates": 1, "rejected": []})

    @pytest.mark.parametrize("kind", ["view", "click", "like", "save", "impression", "dismiss"])
    def test_are_of_six_types_and_need_no_source(self, http, kind):
        event = {name: value for name, value in self.EVENT.items() if name != "source_note_id"}

        answer = http.post("/events", json={"events": [event | {"event_id": f"type-{kind}", "type": kind}]})

        assert answer.json() == {"accepted": 1, "duplicates": 0, "rejected": []}

    @pytest.mark.parametrize(
        "broken",
        [
            *({name: None} for name in ("event_id", "user_id", "note_id", "type", "ts")),
            {"event_id": ""},
            {"type": "buy"},
            {"note_id": "a b"},
            {"ts": "yesterday"},
            {"colour": "red"},
        ],
    )
    def test_that_are_broken_are_rejected_one_by_one(self, http, broken):
        good = self.EVENT | {"event_id": f"beside-{json.dumps(broken)}"}

        answer = http.post("/events", json={"events": [self.EVENT | broken, good]})

        assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
        [rejected] = answer.json()["rejected"]
        assert (set(rejected), rejected["position"]) == ({"position", "code", "message"}, 0)

    def test_come_in_deliveries_of_up_to_1000(self, http):
        events = [self.EVENT | {"event_id": f"many-{number}", "user_id": EMOJI * 128} for number in range(1001)]

        assert http.post("/events", json={"events": events[:1000]}).json()["accepted"] == 1000
        refused(http.post("/events", json={"events": events}), 422, "invalid_request")

    @pytest.mark.parametrize("body", [b"[]", b"{}", b"null", b'{"events": null}', b'{"events": {}}', b""])
    def test_come_in_one_list(self, http, body):
        refused(http.post("/events", content=body), 422, "invalid_request")


def test_status_tells_notes_queue_index_model_and_freshness(http, corpus):
    status = http.get("/status").json()

    assert set(status["notes"]) == {"live", "searchable", "pending", "failed"}
    assert set(status["queue"]) == {"depth", "oldest_s"}
    assert status["index"]["generation"] >= 0
    assert (status["index"]["shards_ok"], status["index"]["shards_total"]) == (2, 2)
    assert status["model"] == related(http)["model"]
    assert set(status["freshness_s"]) == {"p50", "p99"}


class TestRelated:
    def test_has_the_shape_of_the_contract(self, http, corpus):
        answer = related(http)

        assert set(answer) == {"answer_id", "note_id", "items", "model", "generation", "stale", "degraded", "shards"}
        assert (answer["note_id"], answer["degraded"], answer["shards"]) == ("corpus-1", False, {"ok": 2, "total": 2})
        for item in answer["items"]:
            assert set(item) == {"note_id", "score", "title", "category", "hashtags"}
            if item["note_id"] in corpus:
                written = note(int(item["note_id"].removeprefix("corpus-")))
                assert {name: item[name] for name in ("title", "category", "hashtags")} == {
                    name: written[name] for name in ("title", "category", "hashtags")
                }

    @pytest.mark.parametrize(("query", "count"), [("", 10), ("?k=1", 1), ("?k=37", 37), ("?k=100", 100)])
    def test_holds_k_items_10_unless_told(self, http, corpus, query, count):
        assert len(related(http, query)["items"]) == count

    @pytest.mark.parametrize(
        "query",
        ["?k=100", "?k=100&diversity=0.5", "?k=100&debias=1", "?k=50&diversity=1&debias=0.5", "?k=100&category=Travel"],
    )
    def test_is_ordered_by_score_without_itself_and_nothing_twice(self, http, corpus, query):
        answer = related(http, query)
        scores = [item["score"] for item in answer["items"]]

        assert scores == sorted(scores, reverse=True)
        assert len(set(ids_of(answer))) == len(scores) > 1
        assert "corpus-1" not in ids_of(answer)

    def test_of_one_category_still_holds_k_items(self, http, corpus):
        answer = related(http, "?k=45&category=Baking")

        assert len(answer["items"]) == 45
        assert {item["category"] for item in answer["items"]} == {"Baking"}

    def test_takes_several_categories(self, http, corpus):
        answer = related(http, "?k=90&category=Baking&category=Home%20Decor")

        assert len(answer["items"]) == 90
        assert {item["category"] for item in answer["items"]} == {"Baking", "Home Decor"}

    def test_of_a_category_that_nobody_has_is_empty(self, http, corpus):
        assert related(http, "?category=Astronomy")["items"] == []

    def test_leaves_out_what_is_excluded_and_still_holds_k_items(self, http, corpus):
        first = ids_of(related(http, "?k=20"))
        excluded = first[::2]

        answer = ids_of(related(http, "?k=20&" + "&".join(f"exclude={note_id}" for note_id in excluded)))

        assert len(answer) == 20
        assert not set(answer) & set(excluded)
        assert [note_id for note_id in answer if note_id in first] == first[1::2]

    def test_leaves_out_the_author(self, http, corpus):
        answer = ids_of(related(http, "?k=100&exclude_author=1&category=Travel&category=Baking&category=Home%20Decor"))

        authors = {http.get(f"/notes/{note_id}").json()["author"] for note_id in answer}
        assert len(answer) == 100
        assert "author-1" not in authors
        assert ids_of(related(http, "?k=100&exclude_author=0")) == ids_of(related(http, "?k=100"))

    def test_with_diversity_of_0_is_the_plain_answer_and_with_1_another(self, http, corpus):
        plain = ids_of(related(http, "?k=20"))

        assert ids_of(related(http, "?k=20&diversity=0.0")) == plain
        assert ids_of(related(http, "?k=20&diversity=1")) != plain

    def test_debias_takes_popularity_out_of_the_score(self, http, corpus):
        plain = {item["note_id"]: item["score"] for item in related(http, "?k=100")["items"]}
        debiased = {item["note_id"]: item["score"] for item in related(http, "?k=100&debias=1")["items"]}
        half = {item["note_id"]: item["score"] for item in related(http, "?k=100&debias=0.5")["items"]}
        popular = {f"corpus-{number}" for number in range(0, 150, 10)}

        for note_id in debiased.keys() & plain.keys() & half.keys():
            if note_id in popular:
                assert debiased[note_id] < half[note_id] < plain[note_id]
                taken_off = plain[note_id] - debiased[note_id]
                assert plain[note_id] - half[note_id] == pytest.approx(taken_off / 2, abs=1e-5)
            else:
                assert debiased[note_id] == pytest.approx(plain[note_id], abs=1e-5)

    def test_explains_cosine_popularity_and_hashtags_in_common(self, http, corpus):
        own = set(note(1)["hashtags"])
        for item in related(http, "?k=50&debias=1&explain=1")["items"]:
            explained = item["explain"]
            assert set(explained) == {"cosine", "popularity", "half_life", "boosts", "hashtags_in_common"}
            assert item["score"] == pytest.approx(explained["cosine"] - explained["popularity"], abs=1e-5)
            assert set(explained["hashtags_in_common"]) == own & set(item["hashtags"])

    @pytest.mark.parametrize(
        "query",
        [
            *("k=0", "k=101", "k=-1", "k=1.5", "k=ten", "k=", "k=1&k=2", "k=1_0", "k=%2B5"),
            *("diversity=-0.1", "diversity=1.1", "diversity=x", "diversity=nan", "debias=-1", "debias=2", "debias=inf"),
            *("exclude_author=2", "exclude_author=yes", "explain=maybe", "exclude=a%20b", "category="),
            *("limit=5", "K=5", "colour=red"),
        ],
    )
    def test_takes_no_other_parameter_or_value(self, http, corpus, query):
        refused(http.get(f"/notes/corpus-1/related?{query}"), 422, "invalid_request")

    def test_of_a_note_never_seen_or_deleted_is_404(self, http):
        http.put("/notes/related-1?wait=10", json={"title": "a"})
        http.delete("/notes/related-1")

        refused(http.get("/notes/related-1/related"), 404, "note_not_found")
        refused(http.get("/notes/never/related"), 404, "note_not_found")

    def test_of_a_note_that_is_accepted_and_not_searchable_yet_is_409_with_retry_after(self, service, http):
        with stopped(service, "worker"):
            http.put("/notes/related-2", json={"title": "a"})
            answer = http.get("/notes/related-2/related")

        refused(answer, 409, "note_pending")
        assert int(answer.headers["retry-after"]) >= 1

    def test_of_a_note_whose_edit_waits_answers_from_the_version_that_the_index_holds(self, service, http):
        for number in (3, 4):
            http.put(f"/notes/related-{number}?wait=10", json={"title": "harbor tram at night"})
        before = related(http, "?k=20&duplicates=keep", "related-3")
        with stopped(service, "worker"):
            http.put("/notes/related-3", json={"title": "noodle market"})
            waiting = related(http, "?k=20&duplicates=keep", "related-3")
            http.delete("/notes/related-4")
            without = related(http, "?k=20&duplicates=keep", "related-3")
        http.put("/notes/related-3?wait=10", json={"title": "noodle market"})
        after = related(http, "?k=20&duplicates=keep", "related-3")

        assert [answer["stale"] for answer in (before, waiting, without, after)] == [False, True, True, False]
        assert ids_of(waiting) == ids_of(before)
        assert "related-4" in ids_of(waiting)
        assert {"related-3", "related-4"}.isdisjoint(ids_of(without))


class TestEmbeddings:
    def test_are_the_vectors_of_the_index_for_notes_of_that_content_alone(self, http):
        texts = {f"text-{number}": f"a {word} at night, and no {WORDS[-number]}" for number, word in enumerate(WORDS)}
        assert http.post("/notes", json=[{"note_id": id_, "content": text} for id_, text in texts.items()]).is_success
        until(lambda: all(http.get(f"/notes/{id_}").json()["status"] == "searchable" for id_ in texts))

        answer = http.post("/v1/embeddings", json={"input": list(texts.values()), "model": "any"}).json()

        own = dict(zip(texts, (np.array(entry["embedding"]) for entry in answer["data"]), strict=True))
        assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in own.values())
        for id_, vector in own.items():
            scores = {item["note_id"]: item["score"] for item in related(http, "?k=100", id_)["items"]}
            for other, score in scores.items():
                if other in own:
                    assert score == pytest.approx(float(vector @ own[other]), abs=1e-5)
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


class TestTags:
    DRAFT: ClassVar = {"title": "harbor tram", "content": "noodle market at sunrise"}

    def tags(self, http: httpx.Client, **wishes: object) -> dict[str, Any]:
        answer = http.post("/notes/tags", json=self.DRAFT | wishes)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def test_has_the_shape_of_the_contract(self, http, corpus):
        answer = self.tags(http)

        assert set(answer) == {"answer_id", "hashtags", "category", "duplicate_of", "model"}
        assert set(answer["category"]) == {"name", "score"}
        for tag in answer["hashtags"]:
            assert set(tag) == {"tag", "score", "source"}
            assert tag["source"] in {"generated", "neighbors", "both"}
            assert 0 <= tag["score"] <= 1

    def test_names_a_category_of_the_closed_set(self, http):
        for title in ("harbor", "a" * 300, "[EMB]", "京都", "Ill."):
            answer = http.post("/notes/tags", json={"title": title}).json()
            assert answer["category"]["name"] in CATEGORIES
            assert 0 <= answer["category"]["score"] <= 1

    def test_hashtags_are_clean_not_twice_and_most_likely_first(self, http, corpus):
        answer = self.tags(http, max_hashtags=10)
        tags = [tag["tag"] for tag in answer["hashtags"]]

        for tag in tags:
            assert re.fullmatch(r"\w{1,40}", tag)
            assert unicodedata.is_normalized("NFC", tag)
        assert len({tag.casefold() for tag in tags}) == len(tags)
        scores = [tag["score"] for tag in answer["hashtags"]]
        assert scores == sorted(scores, reverse=True)

    def test_are_5_at_most_unless_told(self, http, corpus):
        assert len(self.tags(http)["hashtags"]) <= 5
        assert len(self.tags(http, max_hashtags=1)["hashtags"]) == 1
        assert 5 < len(self.tags(http, max_hashtags=10)["hashtags"]) <= 10

    def test_of_the_known_vocabulary_are_in_use_by_somebody(self, http):
        """The hashtag is this note's alone, and the draft has its text: it is known exactly as long as the note."""
        twin = self.DRAFT | {"title": "a zebra finch"}
        http.put("/notes/tags-1?wait=10", json=twin | {"hashtags": ["zebrafinch"]})
        open_ = http.post("/notes/tags", json=twin | {"max_hashtags": 10}).json()
        known = http.post("/notes/tags", json=twin | {"max_hashtags": 10, "vocabulary": "known"}).json()
        http.delete("/notes/tags-1")
        after = http.post("/notes/tags", json=twin | {"max_hashtags": 10, "vocabulary": "known"}).json()

        tags = [{tag["tag"] for tag in answer["hashtags"]} for answer in (open_, known, after)]
        assert ["zebrafinch" in some for some in tags] == [True, True, False]
        assert tags[1] <= tags[0]

    def test_of_the_known_vocabulary_are_none_that_the_model_made_up(self, http, corpus):
        """The model of these tests is random: for some drafts it writes words that nobody uses."""
        made_up = set()
        for number in range(20):
            draft = self.DRAFT | {"title": f"night train {number}", "max_hashtags": 10}
            open_, known = (
                {tag["tag"] for tag in http.post("/notes/tags", json=draft | more).json()["hashtags"]}
                for more in ({}, {"vocabulary": "known"})
            )
            made_up |= open_ - known
        assert made_up

    def test_leave_out_those_that_the_draft_has(self, http, corpus):
        first = self.tags(http)["hashtags"][0]["tag"]

        assert first not in {tag["tag"] for tag in self.tags(http, hashtags=[first])["hashtags"]}

    @pytest.mark.parametrize("count", [1, 20])
    def test_bring_related_notes_for_a_draft_that_was_never_stored(self, http, corpus, count):
        answer = self.tags(http, related=count)
        scores = [item["score"] for item in answer["related"]]

        assert len(scores) == count
        assert scores == sorted(scores, reverse=True)
        assert len({item["note_id"] for item in answer["related"]}) == count
        for item in answer["related"]:
            assert set(item) == {"note_id", "score", "title", "category", "hashtags"}

    @pytest.mark.parametrize(
        "wish",
        [
            *({"max_hashtags": value} for value in (0, 11, 2.5, "3", None)),
            *({"related": value} for value in (-1, 21, 1.5, "3", None)),
            *({"vocabulary": value} for value in ("closed", None, 1)),
            {"title": "", "content": ""},
            {"title": "t" * 301},
            {"hashtags": ["h"] * 31},
            {"note_id": "a"},
            {"category": "Travel"},
        ],
    )
    def test_take_no_other_wish(self, http, wish):
        refused(http.post("/notes/tags", json=self.DRAFT | wish), 422, "invalid_request")

    def test_are_503_with_retry_after_when_no_worker_answers_in_time(self, service, http):
        with stopped(service, "worker"):
            answer = http.post("/notes/tags", json=self.DRAFT)

        refused(answer, 503, "worker_unavailable")
        assert int(answer.headers["retry-after"]) >= 1


class TestWhenPartsAreDown:
    def test_with_a_shard_down_related_is_200_and_says_so(self, service, http, corpus):
        with stopped(service, "indexer"):
            answers = [http.get(f"/notes/corpus-{number}/related?k=50") for number in range(8)]

        found = [answer.json() for answer in answers if answer.status_code == 200]
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert found
        for answer in found:
            assert (answer["degraded"], answer["shards"]) == (True, {"ok": 1, "total": 2})
            assert answer["items"]
        for answer in answers:
            if answer.status_code == 503:  # the note's own shard is the one that is down
                refused(answer, 503, "index_unavailable")
                assert int(answer.headers["retry-after"]) >= 1

    def test_with_redis_down_related_is_200_with_ids_and_scores_only(self, service, http, corpus):
        with stopped(service, "redis"):
            answer = related(http, "?k=20")

        assert answer["degraded"] is True
        assert len(answer["items"]) == 20
        for item in answer["items"]:
            assert set(item) == {"note_id", "score"}

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", "/notes/down", {"title": "a"}),
            ("POST", "/notes", [{"note_id": "down", "title": "a"}]),
            ("DELETE", "/notes/corpus-1", None),
            ("GET", "/notes/corpus-1", None),
            ("POST", "/events", {"events": [TestEvents.EVENT]}),
            ("GET", "/status", None),
        ],
    )
    def test_with_redis_down_everything_else_is_503_with_retry_after_in_time(self, service, http, method, path, body):
        with stopped(service, "redis"):
            start = time.monotonic()
            answer = http.request(method, path, json=body)
            seconds = time.monotonic() - start

        refused(answer, 503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert seconds < 10

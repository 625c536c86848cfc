"""The contract's section on the note, sentence by sentence, asked of the real service: fields, patches, the list."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from support.service import Service, until

NOTES = 24
OURS = "by_sentence = true"  # the notes of other tests in this service have no such attribute
SOON_S = 1.0


def note(number: int) -> dict[str, Any]:
    return {
        "note_id": f"sentence-{number:02}",
        "title": f"Lantern {number}",
        "content": f"Temples in the morning, markets at noon, and the quiet garden number {number} before dinner.",
        "hashtags": ["Sentence Tag" if number % 2 else "sentencetags"],
        "category": "Travel",
        "attributes": {"by_sentence": True, "price": number},
    }


@pytest.fixture(scope="module", autouse=True)
def corpus(http: httpx.Client) -> None:
    notes = [note(number) for number in range(NOTES)]
    assert http.post("/notes", json=notes).json() == {"accepted": NOTES, "rejected": []}
    for one in notes:
        until(lambda note_id=one["note_id"]: http.get(f"/notes/{note_id}").json()["status"] == "searchable")


@contextmanager
def without_a_worker(service: Service) -> Iterator[None]:
    worker = service.children()["worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)
        until(service.ready)


def listed(http: httpx.Client, **parameters: Any) -> list[str]:
    """The ids of all pages."""
    ids: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/notes", params=parameters | after).json()
        ids += [item["note_id"] for item in page["items"]]
        if page["next"] is None:
            return ids
        after = {"after": page["next"]}


def related(http: httpx.Client, condition: str, note_id: str = "sentence-01") -> set[str]:
    query = {"filter": f"{OURS} AND {condition}", "duplicates": "keep", "k": 100}
    answer = http.get(f"/notes/{note_id}/related", params=query)
    assert answer.status_code == 200, answer.text
    return {item["note_id"] for item in answer.json()["items"]}


def soon(condition: Any) -> None:
    """It holds within the second that the contract gives it."""
    until(condition, SOON_S)


class TestPatch:
    def test_that_leaves_the_text_alone_holds_in_filters_within_a_second_without_the_model(self, service, http):
        with without_a_worker(service):
            answer = http.patch("/notes/sentence-02", json={"attributes": {"price": 1000}})
            assert answer.status_code in (200, 202)
            version = answer.json()["version"]
            assert listed(http, filter=f"{OURS} AND price = 1000") == ["sentence-02"]
            soon(lambda: related(http, "price = 1000") == {"sentence-02"})
            soon(lambda: "sentence-02" not in related(http, "price = 2"))
            soon(lambda: http.get("/notes/sentence-02").json()["status"] == "searchable")
            own = http.get("/notes/sentence-02/related").json()
            assert own["stale"] is False
        assert http.get("/notes/sentence-02").json()["version"] == version

    def test_of_the_text_waits_for_the_model_and_answers_as_a_put_does(self, http):
        answer = http.patch("/notes/sentence-03?wait=10", json={"content": "Another garden, at night."})
        assert (answer.status_code, answer.json()["status"]) == (200, "searchable")
        shown = http.get("/notes/sentence-03").json()
        assert (shown["title"], shown["content"]) == ("Lantern 3", "Another garden, at night.")

    def test_is_a_merge_patch_and_nothing_of_one_is_a_no_op(self, http):
        before = http.get("/notes/sentence-04").json()
        answer = http.patch("/notes/sentence-04", json={})
        assert (answer.status_code, answer.json()["version"]) == (200, before["version"])
        merge = {"Content-Type": "application/merge-patch+json"}
        http.patch("/notes/sentence-04", content=b'{"category":null,"attributes":{"price":null,"x":1}}', headers=merge)
        after = http.get("/notes/sentence-04").json()
        assert (after["category"], after["attributes"]) == (None, {"by_sentence": True, "x": 1})
        assert (
            http.patch("/notes/sentence-04", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        )
        refused = http.patch("/notes/sentence-04", json={"title": "x"}, headers={"If-Match": '"1"'})
        assert (refused.status_code, refused.json()["error"]["code"]) == (412, "precondition_failed")
        assert http.patch("/notes/sentence-never", json={}).json()["error"]["code"] == "note_not_found"

    def test_to_another_type_is_refused_with_both_named(self, http):
        answer = http.patch("/notes/sentence-05", json={"attributes": {"price": "5"}})
        assert answer.status_code == 422
        message = answer.json()["error"]["message"]
        assert all(word in message for word in ("price", "number", "string"))


class TestHidden:
    def test_a_note_stands_in_nobodys_answer_from_the_acknowledgement_on_and_comes_back(self, http):
        before = related(http, "price != 77")
        assert "sentence-06" in before
        for _ in range(3):
            assert http.patch("/notes/sentence-06", json={"hidden": True}).status_code in (200, 202)
            assert "sentence-06" not in related(http, "price != 77")
            http.patch("/notes/sentence-06", json={"hidden": False})
            soon(lambda: related(http, "price != 77") == before)

    def test_it_is_read_and_listed_and_may_be_asked_for_its_related_notes_and_be_a_positive(self, http):
        http.patch("/notes/sentence-07?wait=5", json={"hidden": True})
        assert http.get("/notes/sentence-07").json()["status"] == "searchable"
        assert "sentence-07" in listed(http, filter=OURS)
        assert related(http, "price != 77", "sentence-07")
        answer = http.post("/related", json={"positives": ["sentence-07"], "filter": OURS})
        assert answer.status_code == 200
        assert answer.json()["items"]

    def test_it_counts_in_no_hashtags(self, http):
        def notes() -> int:
            [tag] = http.get("/hashtags?prefix=sentencetag").json()["items"]
            return int(tag["notes"])

        before = notes()
        http.patch("/notes/sentence-08", json={"hidden": True})
        assert notes() == before - 1
        http.patch("/notes/sentence-08", json={"hidden": None})
        assert notes() == before


class TestLanguage:
    @pytest.mark.parametrize(
        ("given", "content", "shown"),
        [
            (None, "Wie man zu Hause ein gutes Sauerteigbrot backt", (None, "de")),
            (None, "三天京都之旅，吃拉麵", (None, "zh")),
            (None, "🍜 123", (None, None)),
            ("fr", "How to make the best sourdough bread at home", ("fr", None)),
        ],
    )
    def test_is_given_or_detected_and_filters_compare_it(self, http, given, content, shown):
        body = {"content": content, "language": given, "attributes": {"by_sentence": True}}
        http.put("/notes/sentence-language?wait=10", json=body)
        try:
            found = http.get("/notes/sentence-language").json()
            assert (found["language"], found["detected_language"]) == shown
            language = shown[0] or shown[1]
            condition = f'language = "{language}"' if language else "NOT language EXISTS"
            assert listed(http, filter=f"{OURS} AND {condition}")[-1] == "sentence-language"
            soon(lambda: "sentence-language" in related(http, condition))
        finally:
            http.delete("/notes/sentence-language")


class TestList:
    def test_meets_every_note_once_in_byte_order_on_pages_of_any_size(self, http):
        every = [f"sentence-{number:02}" for number in range(NOTES)]
        for limit in (1, 7, 1000):
            assert listed(http, filter=OURS, limit=limit) == every
        everything = listed(http, limit=50)
        assert everything == sorted(set(everything))
        assert set(every) <= set(everything)

    def test_shows_what_a_read_shows_and_begins_after_an_id_that_need_not_exist(self, http):
        page = http.get("/notes", params={"after": "sentence-10x", "limit": 2, "filter": OURS}).json()
        assert [item["note_id"] for item in page["items"]] == ["sentence-11", "sentence-12"]
        assert page["next"] == "sentence-12"
        for item in page["items"]:
            assert item == http.get(f"/notes/{item['note_id']}").json()

    def test_holds_a_note_from_its_acknowledgement_on_and_no_deleted_one(self, service, http):
        with without_a_worker(service):
            http.put("/notes/sentence-new", json={"title": "new", "attributes": {"by_sentence": True, "price": 500}})
            assert listed(http, filter="price = 500") == ["sentence-new"]
            http.delete("/notes/sentence-new")
            assert listed(http, filter="price = 500") == []

    def test_of_a_thousand_takes_no_longer_than_a_request_may(self, http):
        start = time.monotonic()
        assert http.get("/notes?limit=1000").status_code == 200
        assert time.monotonic() - start < 2

"""The contract's rules of lists, sentence by sentence, asked of the real service: what stands in them, in which order.

The expected lists are made from one answer that leaves nothing out: every note's cosine.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from support.service import until

NOTES = 40
CITIES = ["Osaka", "Kyoto", "Nara"]
NOW = datetime.now(UTC)


def note(number: int) -> dict[str, Any]:
    one: dict[str, Any] = {
        "note_id": f"rule-{number}",
        "title": f"Lantern {number} of house {number * 7}",
        "content": f"harbor tram noodle garden {' '.join(f'w{number}x{place}' for place in range(number % 9))}",
        "hashtags": ["lantern", f"tag{number % 5}"],
        "category": ("Travel", "Baking")[number % 2],
        "author": f"rule-author-{number % 4}",
        "exposure": 10**4 if number % 10 == 0 else 0,
        "language": ("en", "zh")[number % 3 == 0],
        "attributes": {"rules": True, "price": number, "sale": number % 4 == 0, "city": CITIES[number % 3]},
    }
    if number % 2:
        one["created_at"] = (NOW - timedelta(days=number)).isoformat()
    return one


ALL = {one["note_id"]: one for one in map(note, range(NOTES))}


@pytest.fixture(scope="module", autouse=True)
def corpus(http: httpx.Client) -> None:
    assert http.post("/notes", json=list(ALL.values())).json() == {"accepted": NOTES, "rejected": []}
    for note_id in ALL:
        until(lambda note_id=note_id: http.get(f"/notes/{note_id}").json()["status"] == "searchable")


OURS = "rules = true"


def ask(http: httpx.Client, path: str = "/notes/rule-1/related", status: int = 200, **body: Any) -> dict[str, Any]:
    """A list of this module's notes alone; those of other tests have no such attribute."""
    own = f"({body.pop('filter')}) AND {OURS}" if "filter" in body else OURS
    answer = http.post(path, json={"filter": own, "duplicates": "keep", "k": 100} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["note_id"] for item in answer["items"]]


@pytest.fixture(scope="module")
def cosines(http: httpx.Client, corpus: None) -> dict[str, float]:
    """Of all notes but rule-1, to rule-1."""
    items = ask(http, explain=True)["items"]
    assert len(items) == NOTES - 1
    return {item["note_id"]: item["explain"]["cosine"] for item in items}


def ordered(cosines: dict[str, float], score: Callable[[dict[str, Any], float], float]) -> list[float]:
    return sorted((score(ALL[note_id], cosine) for note_id, cosine in cosines.items()), reverse=True)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    message: str = answer.json()["error"]["message"]
    return message


class TestGetRelated:
    def test_takes_a_filter(self, http, cosines):
        params = {"k": 100, "duplicates": "keep", "filter": 'price < 10 AND city = "Osaka"'}
        answer = http.get("/notes/rule-1/related", params=params).json()

        assert set(ids(answer)) == {f"rule-{number}" for number in (0, 3, 6, 9)}

    @pytest.mark.parametrize(
        ("text", "position"), [("price <", 7), ("price = 1 AND", 13), ("price in [1]", 6), ("x IN []", 6)]
    )
    def test_says_where_a_filter_is_none(self, http, text, position):
        message = refused(http.get("/notes/rule-1/related", params={"filter": text}), 422, "bad_filter")

        assert str(position) in message

    @pytest.mark.parametrize(
        "query",
        [
            "k=0", "k=101", "offset=-1", "offset=1001", "k=100&offset=901", "min_score=1.1", "min_score=-1.1",
            "min_score=nan", "language=en-US", "language=english", "language=EN", "duplicates=drop", "per_group=2",
            "group_by=author&per_group=0", "group_by=author&per_group=101", "group_by=title", "group_by=Price",
            "group_by=hashtags", "half_life_days=0", "half_life_days=-1", "half_life_days=inf", "filter=", "for_user=",
            f"for_user={'u' * 129}",
             f"filter={'x' * 4097}", "boosts=[]", "explain=yes", "k=1&k=2",
        ],
    )  # fmt: skip
    def test_refuses_what_is_out_of_bounds(self, http, query):
        refused(http.get(f"/notes/rule-1/related?{query}"), 422, "invalid_request")

    def test_skips_an_offset_and_counts_k_behind_it(self, http, cosines):
        whole = http.get("/notes/rule-1/related?k=30&duplicates=keep").json()
        part = http.get("/notes/rule-1/related?k=10&offset=5&duplicates=keep").json()

        assert ids(part) == ids(whole)[5:15]
        assert http.get("/notes/rule-1/related?k=1&offset=999").json()["items"] == []

    @pytest.mark.parametrize("language", ["zh", "same"])
    def test_keeps_to_a_language(self, http, cosines, language):
        expected = {"zh": 14, "same": 25}[language]
        answer = ask(http, language=language)

        assert {ALL[note_id]["language"] for note_id in ids(answer)} == {"zh" if language == "zh" else "en"}
        assert len(ids(answer)) == expected


class TestScores:
    def test_a_half_life_halves_them_and_no_time_is_no_age(self, http, cosines):
        answer = ask(http, half_life_days=3.0, explain=True)
        since_days = (datetime.now(UTC) - NOW) / timedelta(days=1)

        def score(one: dict[str, Any], cosine: float) -> float:
            age_days = one["attributes"]["price"] + since_days
            return cosine * 0.5 ** (age_days / 3 if "created_at" in one else 0)

        assert [item["score"] for item in answer["items"]] == pytest.approx(ordered(cosines, score), abs=1e-3)
        for item in answer["items"]:
            half_life = score(ALL[item["note_id"]], 1.0)
            assert item["explain"]["half_life"] == pytest.approx(half_life, abs=1e-3)

    def test_boosts_multiply_a_score_and_divide_a_negative_one(self, http, cosines):
        boosts = [{"filter": "sale = true", "factor": 3.0}, {"filter": 'city != "Nara"', "factor": 0.5}]

        def score(one: dict[str, Any], cosine: float) -> float:
            factor = (3.0 if one["attributes"]["sale"] else 1.0) * (0.5 if one["attributes"]["city"] != "Nara" else 1.0)
            return cosine * factor if cosine > 0 else cosine / factor

        answer = ask(http, boosts=boosts)

        assert [item["score"] for item in answer["items"]] == pytest.approx(ordered(cosines, score), abs=1e-4)

    def test_the_least_one_counts_after_them(self, http, cosines):
        boosts = [{"filter": "sale = true", "factor": 0.1}]
        least = sorted(cosines.values())[len(cosines) // 2]
        answer = ask(http, boosts=boosts, min_score=least)

        expected = {
            note_id
            for note_id, cosine in cosines.items()
            if cosine >= least and (not ALL[note_id]["attributes"]["sale"] or cosine < 0)
        }
        assert set(ids(answer)) == expected

    @pytest.mark.parametrize(
        "boosts",
        [
            [{"filter": "x = 1", "factor": 0.09}], [{"filter": "x = 1", "factor": 10.1}], [{"filter": "x = 1"}],
            [{"filter": "x = 1", "factor": 1, "more": 1}], [{"filter": "x = 1", "factor": 1}] * 9,
        ],
    )  # fmt: skip
    def test_boosts_have_bounds(self, http, boosts):
        refused(http.post("/notes/rule-1/related", json={"boosts": boosts}), 422, "invalid_request")

    def test_a_boost_of_a_bad_filter_names_its_place(self, http):
        boosts = [{"filter": "x = 1", "factor": 2}, {"filter": "x =", "factor": 2}]

        assert "boosts" in refused(http.post("/notes/rule-1/related", json={"boosts": boosts}), 422, "bad_filter")


class TestGroups:
    @pytest.mark.parametrize(
        ("name", "per_group", "expected"), [("author", 1, 4), ("city", 2, 6), ("none_such", 1, 39)]
    )
    def test_hold_so_many_notes_at_most(self, http, cosines, name, per_group, expected):
        answer = ask(http, group_by=name, per_group=per_group)

        assert len(ids(answer)) == expected

    def test_hold_the_best_of_each(self, http, cosines):
        best: dict[str, str] = {}
        for note_id in sorted(cosines, key=lambda note_id: -cosines[note_id]):
            best.setdefault(ALL[note_id]["attributes"]["city"], note_id)

        assert set(ids(ask(http, group_by="city"))) == set(best.values())


@pytest.fixture(scope="module")
def copies(http: httpx.Client) -> Iterator[None]:
    """copy-0 to copy-3 say the same words, copy-4 others."""
    text = "A very quiet evening walk along the old harbor wall with two good friends and one small lantern"
    texts = [text, text.upper(), f"🍵 {text}!!! #walk", text.replace("quiet", "silent")]
    for number, one in enumerate([*texts, "Quite another evening by the sea with nobody but me"]):
        body = {"title": one, "hashtags": [f"copy{number}"], "attributes": {"copies": True}}
        assert http.put(f"/notes/copy-{number}?wait=10", json=body).status_code == 200
    yield
    for number in range(5):
        http.delete(f"/notes/copy-{number}")


@pytest.mark.usefixtures("copies")
class TestDuplicates:
    def ask(self, http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
        return http.post(path, json={"filter": "copies = true", "explain": True} | body).json()

    def test_of_the_note_itself_are_left_out(self, http):
        answer = self.ask(http, "/notes/copy-0/related")

        assert ids(answer) == ["copy-4"]
        assert answer["duplicates_left_out"] == 3

    def test_stay_when_they_are_wanted(self, http):
        answer = self.ask(http, "/notes/copy-0/related", duplicates="keep")

        assert set(ids(answer)) == {"copy-1", "copy-2", "copy-3", "copy-4"}
        assert answer["duplicates_left_out"] == 0

    def test_of_notes_above_are_left_out_and_others_take_their_places(self, http):
        answer = self.ask(http, "/notes/copy-4/related", k=2, filter="copies = true OR price < 2")

        assert len(ids(answer)) == 2
        assert sum(note_id.startswith("copy") for note_id in ids(answer)) <= 1

    def test_a_text_is_compared_with_nothing(self, http):
        copied = "A very quiet evening walk along the old harbor wall with two good friends and one small lantern"
        answer = self.ask(http, "/related", text={"title": copied})

        assert len(ids(answer)) == 2
        assert len(ids(self.ask(http, "/search", q=copied))) == 2

    def test_a_draft_is_told_of_the_note_that_it_copies(self, http):
        copied = "a very quiet evening walk along the OLD harbor wall with two good friends and one small lantern 🍵"
        answer = http.post("/notes/tags", json={"title": copied}).json()

        assert answer["duplicate_of"]["note_id"] in {"copy-0", "copy-1", "copy-2"}
        assert answer["duplicate_of"]["similarity"] == 1.0
        assert http.post("/notes/tags", json={"title": "words of its own"}).json()["duplicate_of"] is None


class TestSeveral:
    def test_none_of_them_stands_in_the_answer(self, http, cosines):
        answer = ask(http, "/related", positives=["rule-1", "rule-2"], negatives=["rule-3"])

        assert len(ids(answer)) == NOTES - 3
        assert not {"rule-1", "rule-2", "rule-3"} & set(ids(answer))
        assert "note_id" not in answer

    def test_one_positive_is_related(self, http, cosines):
        assert ask(http, "/related", positives=["rule-1"])["items"] == ask(http)["items"]

    def test_a_text_counts_as_one(self, http, cosines):
        answer = ask(http, "/related", positives=["rule-1"], text={"title": ALL["rule-5"]["title"]})
        assert len(ids(answer)) == NOTES - 1

    def test_the_author_of_each_positive_is_left_out(self, http, cosines):
        answer = ask(http, "/related", positives=["rule-1", "rule-2"], exclude_author=True)

        assert {ALL[note_id]["author"] for note_id in ids(answer)} == {"rule-author-0", "rule-author-3"}

    def test_a_negative_pushes_its_like_away(self, http, cosines):
        near = ids(ask(http, "/related", positives=["rule-1"]))[0]
        score = {item["note_id"]: item["score"] for item in ask(http, "/related", positives=["rule-1"])["items"]}
        answer = ask(http, "/related", positives=["rule-1"], negatives=[near])
        less = {item["note_id"]: item["score"] for item in answer["items"]}

        [like] = ids(ask(http, "/related", positives=[near], k=1, exclude=["rule-1"]))
        assert less[like] < score[like]

    @pytest.mark.parametrize(
        "body",
        [
            {}, {"negatives": ["rule-1"]}, {"positives": []}, {"positives": ["rule-1"] * 65},
            {"positives": ["rule-1"] * 60, "negatives": ["rule-2"] * 5}, {"positives": "rule-1"}, {"text": {}},
            {"text": {"title": ""}}, {"positives": ["a b"]}, {"positives": ["rule-1"], "more": 1},
            {"positives": ["rule-1"], "q": "x"},
        ],
    )  # fmt: skip
    def test_bodies_that_are_none(self, http, body):
        refused(http.post("/related", json=body), 422, "invalid_request")

    def test_an_unknown_id_names_its_place(self, http):
        answer = http.post("/related", json={"positives": ["rule-1", "rule-2"], "negatives": ["rule-3", "never-there"]})

        message = refused(answer, 404, "note_not_found")
        assert "negatives[1]" in message
        assert "never-there" not in message


class TestBatch:
    def test_answers_each_in_order_with_its_status(self, http, cosines):
        requests = [
            {"note_id": "rule-1", "k": 3},
            {"positives": ["rule-2"], "k": 2},
            {"note_id": "never-there"},
            {"note_id": "rule-1", "no_such_field": 1},
            {"note_id": "rule-1", "filter": "x ="},
            "text",
        ]
        answer = http.post("/related/batch", json={"requests": requests})

        answers = answer.json()["answers"]
        assert [one["status"] for one in answers] == [200, 200, 404, 422, 422, 422]
        assert [len(one["items"]) for one in answers[:2]] == [3, 2]
        assert [one["error"]["code"] for one in answers[2:]] == [
            "note_not_found", "invalid_request", "bad_filter", "invalid_request",
        ]  # fmt: skip
        assert {one["error"]["request_id"] for one in answers[2:]} == {answer.headers["x-request-id"]}
        single = http.post("/notes/rule-1/related", json={"k": 3}).json()
        assert answers[0]["items"] == single["items"]
        assert answers[0]["note_id"] == "rule-1"

    @pytest.mark.parametrize("body", [{"requests": []}, {"requests": [{"note_id": "rule-1"}] * 65}, [], {}])
    def test_holds_1_to_64_requests(self, http, body):
        refused(http.post("/related/batch", json=body), 422, "invalid_request")

    def test_is_at_most_4_mib(self, http):
        refused(http.post("/related/batch", content=b" " * (4 * 1024 * 1024 + 1)), 413, "too_large")


class TestSearch:
    def test_finds_by_words_from_the_same_index(self, http, cosines):
        by_get = http.get("/search", params={"q": "lantern harbor", "k": 5, "filter": OURS}).json()
        by_post = http.post("/search", json={"q": "lantern harbor", "k": 5, "filter": OURS}).json()

        assert by_get["items"] == by_post["items"]
        assert len(by_get["items"]) == 5
        assert "note_id" not in by_get

    @pytest.mark.parametrize(
        "query", ["", "q=", f"q={'x' * 1001}", "q=a&exclude_author=1", "q=a&language=same", "q=a&k=0", "q=a&x=1"]
    )
    def test_refuses_what_is_out_of_bounds(self, http, query):
        refused(http.get(f"/search?{query}"), 422, "invalid_request")

    def test_takes_every_rule(self, http, cosines):
        body = {
            "q": "lantern", "k": 10, "min_score": -1, "language": "en", "group_by": "city", "half_life_days": 10.0,
            "offset": 1, "category": ["Travel", "Baking"], "exclude": ["rule-2"], "diversity": 0.2, "debias": 0.2,
            "explain": True, "boosts": [{"filter": "sale = true", "factor": 2}], "filter": OURS, "for_user": "nobody",
        }  # fmt: skip
        answer = http.post("/search", json=body)

        assert answer.status_code == 200, answer.text
        assert len(answer.json()["items"]) == 1  # two cities are in English, and the first is skipped


class TestAnswers:
    def test_each_has_an_id_of_its_own(self, http, cosines):
        answers = [
            http.get("/notes/rule-1/related").json(),
            http.get("/notes/rule-1/related").json(),
            http.get("/search?q=lantern").json(),
            http.post("/related", json={"positives": ["rule-1"]}).json(),
            http.post("/notes/tags", json={"title": "a lantern"}).json(),
        ]
        given = {answer["answer_id"] for answer in answers}

        assert len(given) == 5
        assert all(0 < len(one) <= 64 for one in given)

    def test_name_attributes_that_no_note_has(self, http, cosines):
        answer = http.get("/notes/rule-1/related", params={"filter": "zz_unknown = 1 OR price = 1 OR a_unknown EXISTS"})

        assert answer.headers["x-unknown-attributes"] == "a_unknown, zz_unknown"
        listed = http.get("/notes", params={"filter": "zz_unknown = 1 OR price = 1 OR a_unknown EXISTS"})
        assert listed.headers["x-unknown-attributes"] == "a_unknown, zz_unknown"
        known = http.get("/notes/rule-1/related", params={"filter": "price = 1 OR exposure = 0"})
        assert "x-unknown-attributes" not in known.headers

    def test_post_excludes_up_to_10_000(self, http, cosines):
        excluded = [f"never-{number}" for number in range(10_000 - NOTES)] + list(ALL)

        assert ask(http, exclude=excluded)["items"] == []
        refused(http.post("/notes/rule-1/related", json={"exclude": [*excluded, "x"]}), 422, "invalid_request")


class TestReaders:
    @pytest.mark.parametrize("kind", ["view", "click", "like", "save", "dismiss"])
    def test_do_not_see_again_what_they_have_seen(self, http, cosines, kind):
        first, second = ids(ask(http, k=2))
        reader = f"reader of {kind}/é"
        event = {"event_id": f"seen-{kind}", "user_id": reader, "note_id": first, "type": kind, "ts": time.time()}
        impression = event | {"event_id": f"shown-{kind}", "note_id": second, "type": "impression"}
        assert http.post("/events", json={"events": [event, impression]}).json()["accepted"] == 2

        until(lambda: first not in ids(ask(http, for_user=reader)))
        assert second in ids(ask(http, for_user=reader))
        assert len(ids(ask(http, for_user="another"))) == NOTES - 1
        by_query = http.get("/notes/rule-1/related", params={"for_user": reader, "k": 100, "filter": OURS}).json()
        assert first not in ids(by_query)

    def test_see_again_what_they_saw_long_ago(self, http, cosines):
        [first] = ids(ask(http, k=1))
        long_ago = time.time() - 91 * 86_400
        event = {"event_id": "seen-long-ago", "user_id": "old reader", "note_id": first, "type": "view", "ts": long_ago}
        assert http.post("/events", json={"events": [event]}).json()["accepted"] == 1

        assert first in ids(ask(http, for_user="old reader"))

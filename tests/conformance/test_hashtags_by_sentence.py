"""The contract's sentences on hashtags and on the erasure of readers, asked of the real service."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from redis import Redis
from support.service import until

from service.store.schema import EVENTS, RULES, SEEN

TITLE = "marble quarry at dawn"


def marble(number: int, *hashtags: str, days_ago: int) -> dict[str, Any]:
    created_at = datetime.now(UTC) - timedelta(days=days_ago)
    return {
        "note_id": f"marble-{number}",
        "title": f"{TITLE} {number}",
        "hashtags": list(hashtags),
        "created_at": created_at.isoformat(timespec="seconds"),
    }


@pytest.fixture(scope="module")
def redis(service) -> Iterator[Redis]:
    """The service's own."""
    with Redis(unix_socket_path=str((service.state / "run").resolve() / "redis.sock")) as redis:
        yield redis


@pytest.fixture(scope="module", autouse=True)
def notes(http: httpx.Client) -> list[dict[str, Any]]:
    """40 old notes, and 10 of this week, all of which can be found."""
    old = [marble(number, "zzStone", "zz tools"[: 8 * (number % 2)] or "zzdust", days_ago=60) for number in range(40)]
    new = [marble(number, "zzStones", "zzfair", days_ago=1) for number in range(40, 50)]
    assert http.post("/notes", json=old + new).json() == {"accepted": 50, "rejected": []}
    until(lambda: all(_status(http, one["note_id"]) == "searchable" for one in (*old, *new)))
    return old + new


def _status(http: httpx.Client, note_id: str) -> str:
    return http.get(f"/notes/{note_id}").json()["status"]


def listed(http: httpx.Client, **query: object) -> dict[str, Any]:
    answer = http.get("/hashtags", params={"prefix": "#ZZ"} | query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def suggested(http: httpx.Client) -> set[str]:
    wishes = {"title": TITLE, "max_hashtags": 10, "vocabulary": "known"}
    return {tag["tag"] for tag in http.post("/notes/tags", json=wishes).json()["hashtags"]}


def rule(http: httpx.Client, tag: str, **body: object) -> httpx.Response:
    return http.put(f"/hashtags/{quote(tag, safe='')}", json=body)


class TestLists:
    def test_have_the_most_used_first_with_their_spellings_page_by_page(self, http):
        whole = listed(http)
        assert [(item["tag"], item["notes"]) for item in whole["items"]] == [
            ("zzstone", 50),
            ("zzdust", 20),
            ("zztool", 20),
            ("zzfair", 10),
        ]
        assert whole["next"] is None
        assert whole["items"][0]["spellings"] == [
            {"spelling": "zzStone", "notes": 40},
            {"spelling": "zzStones", "notes": 10},
        ]
        walked, after = [], ""
        while after is not None:
            page = listed(http, limit=1, after=after)
            walked += page["items"]
            after = page["next"]
        assert walked == whole["items"]

    def test_leave_out_hidden_and_deleted_notes_from_the_acknowledgement_on(self, http, notes):
        assert http.patch("/notes/marble-40", json={"hidden": True}).status_code in (200, 202)
        assert listed(http, prefix="zzfair")["items"][0]["notes"] == 9
        assert http.patch("/notes/marble-40", json={"hidden": False}).status_code in (200, 202)
        assert listed(http, prefix="zzfair")["items"][0]["notes"] == 10

    def test_say_what_trends(self, http):
        items = http.get("/hashtags/trending", params={"days": 7, "limit": 1000}).json()["items"]
        found = {item["tag"]: item for item in items}

        assert found["zzfair"]["notes"] == 10
        assert found["zzfair"]["lift"] > 1
        assert "zzdust" not in found
        assert [item["lift"] for item in items] == sorted((item["lift"] for item in items), reverse=True)
        assert "zzstone" not in found or found["zzstone"]["lift"] < found["zzfair"]["lift"]


class TestRules:
    def test_hold_in_suggestions_until_they_are_removed(self, http):
        until(lambda: {"zzStone", "zzfair"} <= suggested(http))
        assert rule(http, "ZZ Fairs", alias_of="zzmarket").json() == {"tag": "zzfair", "alias_of": "zzmarket"}
        assert rule(http, "zzstone", blocked=True).json() == {"tag": "zzstone", "blocked": True}

        now = suggested(http)
        assert "zzmarket" in now
        assert not {tag for tag in now if tag.lower().startswith(("zzstone", "zzfair"))}
        rules = http.get("/hashtags/rules").json()["items"]
        assert {"tag": "zzfair", "alias_of": "zzmarket"} in rules
        assert rule(http, "zzmarket", alias_of="zzfair").json()["error"]["code"] == "alias_loop"
        assert rule(http, "zzmarket", blocked=True).status_code == 200
        assert not {"zzmarket", "zzfair"} & suggested(http)
        for tag in ("zzfair", "zzstone", "zzmarket", "zzmarket"):
            assert http.delete(f"/hashtags/{tag}").status_code == 204
        assert {"zzStone", "zzfair"} <= suggested(http)

    def test_of_another_gateway_hold_within_a_second(self, http, redis):
        """It is told to Redis, as another gateway would."""
        redis.hset(RULES, "zzfair", "")
        redis.hincrby(RULES, "", 1)
        told = time.monotonic()
        until(lambda: "zzfair" not in suggested(http))
        assert time.monotonic() - told < 1.0
        assert http.delete("/hashtags/zzfair").status_code == 204


class TestErasure:
    def test_leaves_nothing_of_the_reader_and_remembers_the_events(self, http, redis):
        reader = "erased/reader é"
        events = [
            {"event_id": f"erase-{n}", "user_id": reader, "note_id": f"marble-{n}", "type": "view", "ts": time.time()}
            for n in range(5)
        ]
        assert http.post("/events", json={"events": events}).json()["accepted"] == 5
        assert redis.exists(SEEN + reader)

        for _ in range(2):
            assert http.delete(f"/users/{quote(reader, safe='')}").status_code == 204

        assert not redis.exists(SEEN + reader)
        assert not any(reader.encode() in b"".join(fields.values()) for _, fields in redis.xrange(EVENTS))
        assert http.post("/events", json={"events": events}).json()["duplicates"] == 5
        answer = http.get("/notes/marble-9/related", params={"for_user": reader, "k": 100})
        assert {"marble-0", "marble-1"} <= {item["note_id"] for item in answer.json()["items"]}

"""The erasure of a reader over HTTP, and the events that are kept of one."""

import json
import time
from urllib.parse import quote

import pytest
from support.bodies import MARK
from support.gateway import MemoryGateway

from service.api import audit
from service.store.records import digest_of

EVENT = {"event_id": "e1", "user_id": "u1", "note_id": "n1", "type": "view", "ts": 1767225600}


@pytest.fixture
def gateway() -> MemoryGateway:
    return MemoryGateway()


@pytest.fixture
async def client(gateway):
    async with gateway.client() as client:
        yield client


class TestErasure:
    @pytest.mark.parametrize(
        "user_id", ["u1", "a/b", "/", "//x/", "..", "a b", "é京", "a\nb", "\n", "%2F", "?#", "x" * 128, "é" * 128]
    )
    async def test_takes_every_id_that_an_event_may_have(self, gateway, client, user_id):
        event = EVENT | {"user_id": user_id, "ts": time.time()}
        assert (await client.post("/events", json={"events": [event]})).json()["accepted"] == 1

        for _ in range(2):
            answer = await client.delete("/users/" + quote(user_id, safe="").replace(".", "%2E"))
            assert (answer.status_code, answer.content) == (204, b"")

        assert gateway.events.kept == {}
        assert (await client.post("/events", json={"events": [event]})).json()["duplicates"] == 1

    @pytest.mark.parametrize("user_id", ["x" * 129, "%00", "a%00b"])
    async def test_refuses_what_no_event_can_have(self, client, user_id):
        answer = await client.delete(f"/users/{user_id}")

        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")

    async def test_of_nobody_is_no_route(self, client):
        assert (await client.delete("/users/")).status_code == 404
        assert (await client.get("/users/u1")).status_code == 405
        assert (await client.delete("/users/u1?x=1")).status_code == 422

    async def test_needs_the_store(self, gateway, client):
        gateway.events.down = True

        assert (await client.delete("/users/u1")).json()["error"]["code"] == "store_unavailable"

    async def test_leaves_a_line_in_the_audit_log_without_the_id(self, client, caplog):
        await client.delete(f"/users/{MARK}/?", headers={"X-Request-ID": "r-1"})

        [line] = [record for record in caplog.records if record.name == audit.log.name]
        assert (line.message, line.method, line.route, line.status) == ("write", "DELETE", "/users/{user_id}", 204)
        assert line.erased == [digest_of(f"{MARK}/")]
        assert MARK not in json.dumps(line.erased) + line.route


class TestEvents:
    @pytest.mark.parametrize(
        "fields",
        [
            {"type": "impression"},
            {"type": "dismiss"},
            {"value": 1},
            {"value": -0.5},
            {"answer_id": "x" * 64, "position": 1},
            {"position": 2**53 - 1},
            {"value": None, "answer_id": None, "position": None},
            {"ts": 1767225600.25},
            {"ts": "2026-01-01T00:00:00.123456789+05:30"},
            {"ts": "2016-12-31T23:59:60Z"},
            {"ts": "2017-01-01T08:59:60.5+09:00"},
        ],
    )
    async def test_may_say_more(self, gateway, client, fields):
        answer = await client.post("/events", json={"events": [EVENT | fields]})

        assert answer.json() == {"accepted": 1, "duplicates": 0, "rejected": []}
        kept = gateway.events.kept["e1"]
        assert all(getattr(kept, name) == value for name, value in fields.items() if name != "ts")

    async def test_of_a_leap_second_are_of_the_next_one(self, gateway, client):
        await client.post("/events", json={"events": [EVENT | {"ts": "2016-12-31T23:59:60.25Z"}]})

        assert gateway.events.kept["e1"].ts == 1483228800.25

    @pytest.mark.parametrize(
        "fields",
        [
            {"type": "shown"},
            {"value": "1"},
            {"value": True},
            {"answer_id": ""},
            {"answer_id": "x" * 65},
            {"answer_id": 1},
            {"position": 0},
            {"position": 1.5},
            {"position": 2**53},
            {"ts": "2016-12-30T23:59:60Z"},
        ],
    )
    async def test_have_bounds(self, client, fields):
        answer = (await client.post("/events", json={"events": [EVENT | fields, EVENT | {"event_id": "e2"}]})).json()

        assert (answer["accepted"], [one["position"] for one in answer["rejected"]]) == (1, [0])

    async def test_have_finite_values(self, client):
        body = json.dumps({"events": [EVENT]})[:-3] + ', "value": 1e999}]}'

        assert (await client.post("/events", content=body)).json()["rejected"]

"""What a gateway takes on and what it refuses, over real sockets, with a store that answers when it is told to."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from support.gateway import MemoryGateway
from support.http import Answer, ask, connected, exchange, listening, parse

from model.note import Note
from service.api.auth import KINDS
from service.keys import Keyring, create_key
from service.server.admission import Admission, Bucket, due_s
from service.setting_groups import LimitSettings

NOTE = json.dumps({"title": "Harbor tram"}).encode()
JSON = b"Content-Type: application/json"
RELATED = b"GET /notes/n1/related HTTP/1.1\r\nHost: localhost\r\n"


class Service:
    """A gateway behind its admission, with note n1, and with two keys if it has any."""

    def __init__(self, gateway: MemoryGateway, admission: Admission, port: int, keys: list[str]) -> None:
        self.gateway = gateway
        self.admission = admission
        self.port = port
        self.keys = [f"Authorization: Bearer {key}".encode() for key in keys]

    async def ask(self, method: str, path: str, *headers: bytes, body: bytes = b"") -> Answer:
        return await ask(self.port, method, path, *headers, body=body)

    def begin(self, *requests: tuple[Any, ...]) -> list[asyncio.Task[Answer]]:
        return [asyncio.create_task(self.ask(*request)) for request in requests]

    async def in_flight(self, kind: str) -> float | None:
        await self.admission.report()
        return REGISTRY.get_sample_value("notellm_http_in_flight", {"kind": kind})

    async def until_in_flight(self, kind: str, count: int) -> None:
        give_up = time.monotonic() + 30
        while await self.in_flight(kind) != count:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.005)

    async def until_idle(self) -> None:
        for kind in KINDS:
            await self.until_in_flight(kind, 0)

    async def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < give_up
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    file: Path | None = None, clock: Callable[[], float] = time.monotonic, **limits: float
) -> AsyncIterator[Service]:
    keys = [create_key(file, ["admin"])[1] for _ in range(2)] if file else []
    keyring = Keyring(file) if file else None
    gateway = MemoryGateway(keyring, related_s=60, write_s=60)
    await gateway.publish(Note("n1", "harbor"))
    admission = Admission(gateway.app, LimitSettings.model_validate(limits), keyring, gateway.app.routes, clock)
    async with listening(admission) as port:
        try:
            yield Service(gateway, admission, port, keys)
        finally:
            gateway.store.open.set()


def error_of(answer: Answer) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    if answer.status in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1
    return answer.status, error["code"]


OVERLOADED = (503, "overloaded")
RATE_LIMITED = (429, "rate_limited")


class TestPermits:
    async def test_more_than_there_are_is_refused_at_once_and_what_runs_is_finished(self):
        async with serving(related=3) as service:
            service.gateway.store.open.clear()
            running = service.begin(*[("GET", "/notes/n1/related")] * 3)
            await service.until_in_flight("related", 3)

            refused = [await service.ask("GET", "/notes/n1/related") for _ in range(5)]
            service.gateway.store.open.set()

            assert {error_of(answer) for answer in refused} == {OVERLOADED}
            assert len({answer.headers["x-request-id"] for answer in refused}) == 5
            assert [answer.status for answer in await asyncio.gather(*running)] == [200] * 3
            assert (await service.ask("GET", "/notes/n1/related")).status == 200

    async def test_of_one_kind_are_not_those_of_another(self):
        async with serving(related=1, reads=1, writes=1) as service:
            service.gateway.store.open.clear()
            running = service.begin(("GET", "/notes/n1/related"))
            await service.until_in_flight("related", 1)
            running += service.begin(("GET", "/status"), ("GET", "/openapi.json"))
            await service.until_in_flight("reads", 1)

            assert error_of(await service.ask("GET", "/notes/n1/related")) == OVERLOADED
            assert error_of(await service.ask("GET", "/notes/n1")) == OVERLOADED
            assert (await service.ask("PUT", "/notes/n2", body=b"{")).status == 422
            service.gateway.store.open.set()
            assert [answer.status for answer in await asyncio.gather(*running)] == [200] * 3

    async def test_come_back_whatever_becomes_of_the_request(self):
        async with serving(related=1, writes=1, bulk=1, tags=1, reads=1, public=1) as service:
            for _ in range(3):
                assert (await service.ask("GET", "/notes/nowhere/related")).status == 404
                assert (await service.ask("GET", "/notes/n1/related?k=0")).status == 422
                assert (await service.ask("PUT", "/notes/n2", body=NOTE)).status == 202
                assert (await service.ask("PUT", "/notes/n2", body=b"{")).status == 422
                assert (await service.ask("DELETE", "/notes/n2")).status == 204
                assert (await service.ask("POST", "/notes/tags", body=NOTE)).status == 200
                assert (await service.ask("POST", "/notes", body=b"[]")).status == 202
                assert (await service.ask("GET", "/nowhere")).status == 404
                assert (await service.ask("POST", "/notes/n1")).status == 405
                async with connected(service.port) as (_, writer):
                    writer.write(put(9))
            await service.until_idle()

    async def test_are_not_taken_twice_by_requests_that_are_ready_together(self):
        """All of them are read before the first of them runs."""
        async with serving(related=2) as service:
            answers = await asyncio.gather(*(service.ask("GET", "/notes/n1/related") for _ in range(20)))

        statuses = [answer.status for answer in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 2

    async def test_of_requests_on_one_connection_are_taken_one_after_the_other(self):
        async with serving(related=1) as service:
            answer = await exchange(service.port, (RELATED + b"\r\n") * 4 + RELATED + b"Connection: close\r\n\r\n")

        assert answer.count(b"HTTP/1.1 200 OK") == 5

    async def test_refused_requests_keep_their_connection(self):
        async with serving(related=1) as service:
            service.gateway.store.open.clear()
            running = service.begin(("GET", "/notes/n1/related"))
            await service.until_in_flight("related", 1)
            parts = [RELATED + b"\r\n", (RELATED + b"\r\n") * 3, RELATED + b"X-Long: ", b"x\r\n\r\n"]
            get_icon = b"GET /favicon.svg HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

            answers = await exchange(service.port, *parts, get_icon)

            assert answers.count(b"HTTP/1.1 503 ") == 5
            assert answers.count(b'"overloaded"') == 5
            assert answers.count(b"HTTP/1.1 200 OK") == 1
            service.gateway.store.open.set()
            await asyncio.gather(*running)

    @pytest.mark.parametrize("path", ["/notes/n1/related", "/notes/n%31/related"])
    async def test_a_refused_head_request_gets_no_body(self, path):
        async with serving(related=1) as service:
            service.gateway.store.open.clear()
            running = service.begin(("GET", "/notes/n1/related"))
            await service.until_in_flight("related", 1)
            answer = await service.ask("HEAD", path)
            service.gateway.store.open.set()
            await asyncio.gather(*running)

        assert (answer.status, answer.body) == (503, b"")


class TestKeys:
    async def test_one_cannot_take_all_permits(self, tmp_path):
        async with serving(tmp_path / "keys.json", related=4) as service:
            service.gateway.store.open.clear()
            greedy, modest = service.keys
            running = service.begin(*[("GET", "/notes/n1/related", greedy)] * 3)
            await service.until_in_flight("related", 3)

            assert error_of(await service.ask("GET", "/notes/n1/related", greedy)) == RATE_LIMITED
            running += service.begin(("GET", "/notes/n1/related", modest))
            await service.until_in_flight("related", 4)
            assert error_of(await service.ask("GET", "/notes/n1/related", modest)) == OVERLOADED
            service.gateway.store.open.set()
            assert [answer.status for answer in await asyncio.gather(*running)] == [200] * 4
            assert (await service.ask("GET", "/notes/n1/related", greedy)).status == 200

    async def test_strangers_take_none_of_the_permits_for_keys(self, tmp_path):
        async with serving(tmp_path / "keys.json", public=1) as service:
            kept = service.admission.admit(scope("GET", "/notes/n1/related"))
            assert await service.in_flight("related") == 0
            assert await service.in_flight("public") == 1

            assert error_of(await service.ask("GET", "/notes/n1/related", b"Authorization: Bearer x")) == OVERLOADED
            assert (await service.ask("GET", "/notes/n1/related", service.keys[0])).status == 200
            assert kept

    async def test_who_asks_too_often_is_told_when_to_come_back(self, tmp_path):
        now_s = 0.0
        async with serving(tmp_path / "keys.json", lambda: now_s, rate_per_s=0.5, burst=2) as service:
            hasty, patient = service.keys
            answers = [await service.ask("GET", "/status", hasty) for _ in range(3)]
            assert [answer.status for answer in answers] == [200, 200, 429]
            assert error_of(answers[2]) == RATE_LIMITED
            assert answers[2].headers["retry-after"] == "2"

            assert (await service.ask("PUT", "/notes/n2", hasty, body=NOTE)).status == 429
            assert (await service.ask("GET", "/status", patient)).status == 200
            now_s += 2
            assert [(await service.ask("GET", "/status", hasty)).status for _ in range(2)] == [200, 429]

    async def test_without_a_rate_may_ask_as_often_as_they_like(self, tmp_path):
        async with serving(tmp_path / "keys.json", burst=1) as service:
            assert {(await service.ask("GET", "/status", service.keys[0])).status for _ in range(10)} == {200}


def put(length: int, *headers: bytes) -> bytes:
    lines = [b"PUT /notes/n2 HTTP/1.1", b"Host: localhost", JSON, b"Content-Length: %d" % length, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@asynccontextmanager
async def half_sent(port: int, count: int) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """So many connections on which a note's last byte is missing."""
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(port)) for _ in range(count)]
        for _, writer in connections:
            writer.write(put(len(NOTE)) + NOTE[:-1])
        await asyncio.sleep(0.05)
        yield connections


class TestBodies:
    async def test_that_are_on_their_way_hold_no_permits(self):
        async with serving(writes=1) as service, half_sent(service.port, 5):
            assert (await service.ask("PUT", "/notes/n3", body=NOTE)).status == 202

    async def test_need_a_permit_when_they_are_whole(self):
        async with serving(writes=1) as service, half_sent(service.port, 3) as connections:
            service.gateway.store.open.clear()
            running = service.begin(("DELETE", "/notes/n1"))
            await service.until_in_flight("writes", 1)

            for _, writer in connections:
                writer.write(NOTE[-1:])
            refused = [parse(await reader.readuntil(b"}}")) for reader, _ in connections]
            service.gateway.store.open.set()

            assert {error_of(answer) for answer in refused} == {OVERLOADED}
            assert [answer.status for answer in await asyncio.gather(*running)] == [204]

    async def test_are_refused_before_they_come_when_their_kind_is_full(self):
        async with serving(writes=1) as service:
            service.gateway.store.open.clear()
            running = service.begin(("DELETE", "/notes/n1"))
            await service.until_in_flight("writes", 1)

            answer = parse(await exchange(service.port, put(100_000, b"Expect: 100-continue")))
            service.gateway.store.open.set()

            assert error_of(answer) == OVERLOADED
            assert answer.headers["connection"] == "close"
            assert [task.status for task in await asyncio.gather(*running)] == [204]

    async def test_that_are_refused_are_read_over_up_to_the_next_request(self):
        async with serving(writes=1) as service:
            service.gateway.store.open.clear()
            running = service.begin(("DELETE", "/notes/n1"))
            await service.until_in_flight("writes", 1)
            next_one = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

            answers = await exchange(service.port, put(200), b"GET / HTTP" * 10, b"GET / HTTP" * 10 + next_one)
            service.gateway.store.open.set()

            assert answers.count(b"HTTP/1.1 503 ") == answers.count(b"HTTP/1.1 200 OK") == 1
            assert answers.count(b"HTTP/1.1 ") == 2
            await asyncio.gather(*running)

    @pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
    @pytest.mark.parametrize("path", [b"PUT /notes/n2", b"POST /notes", b"POST /notes/tags"])
    async def test_that_do_not_come_are_refused_and_their_connection_ends(self, framing, path):
        async with serving(body_s=0.2) as service:
            answer = parse(
                await exchange(
                    service.port, path + b" HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"\r\n" + framing + b"\r\n\r\n"
                )
            )

        assert error_of(answer) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"

    async def test_that_come_in_drops_are_refused_before_their_time_is_over(self, monkeypatch):
        monkeypatch.setattr("service.server.admission._BODY_GRACE_S", 0.1)
        async with serving(body_bytes_per_s=1000) as service:
            answer = parse(await exchange(service.port, put(1000), *[b"x"] * 20))

        assert error_of(answer) == (408, "request_timeout")

    async def test_together_take_no_more_memory_than_they_may(self):
        async with serving(bodies_bytes=len(NOTE) * 3) as service:
            async with half_sent(service.port, 2):
                await service.until(lambda: service.admission.body_bytes == 2 * (len(NOTE) - 1))
                assert (await service.ask("PUT", "/notes/n3", body=NOTE)).status == 202
                assert error_of(await service.ask("PUT", "/notes/n3", body=NOTE + b"   ")) == OVERLOADED
            await service.until(lambda: service.admission.body_bytes == 0)

    async def test_of_strangers_are_not_waited_for(self, tmp_path):
        async with serving(tmp_path / "keys.json") as service:
            answer = parse(await exchange(service.port, put(200, b"Connection: close")))

        assert answer.status == 401


class TestTraces:
    async def test_refusals_are_told_to_metrics_and_audit_log_in_one_line_for_many(self, tmp_path, caplog):
        def refused() -> float:
            labels = {"route": "/notes/{note_id}/related", "code": "rate_limited"}
            return REGISTRY.get_sample_value("notellm_http_refused_total", labels) or 0.0

        before = refused()
        async with serving(tmp_path / "keys.json", rate_per_s=0.001, burst=1) as service:
            for _ in range(4):
                await service.ask("GET", "/notes/x-mark-x/related", service.keys[0])
            with caplog.at_level(logging.INFO):
                await service.admission.report()
                await service.admission.report()

        assert refused() == before + 3
        [line] = [record for record in caplog.records if record.name == "notellm.audit"]
        [key, _] = json.loads((tmp_path / "keys.json").read_text())["keys"]
        assert (line.message, line.count, line.status, line.code) == ("refusals", 3, 429, "rate_limited")
        assert (line.key, line.method, line.route) == (key["id"], "GET", "/notes/{note_id}/related")
        assert "x-mark-x" not in str(vars(line))

    async def test_what_is_under_way_is_a_metric(self):
        admission = Admission(nothing, LimitSettings())
        permit = admission.admit(scope("GET", "/"))
        await admission.report()

        assert REGISTRY.get_sample_value("notellm_http_in_flight", {"kind": "public"}) == 1
        assert permit


async def nothing(scope, receive, send) -> None:
    """Never asked."""


def scope(method: str, path: str) -> dict[str, Any]:
    return {"method": method, "path": path, "headers": []}


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_a_bucket_grants_its_burst_and_its_rate_and_no_more(rate, burst, pauses):
    """In every stretch of time, whenever it begins."""
    now_s, granted = 0.0, []
    bucket = Bucket(rate, burst, now_s)
    for pause_s in pauses:
        now_s += pause_s
        if not bucket.take(now_s):
            granted.append(now_s)
    for first, start_s in enumerate(granted):
        for last, end_s in enumerate(granted[first:], start=1):
            assert last <= burst + rate * (end_s - start_s) + 1e-6


@given(rate=st.floats(0.1, 100), burst=st.integers(1, 20), asked=st.integers(1, 50))
def test_who_waits_as_long_as_a_bucket_says_gets_a_token(rate, burst, asked):
    bucket = Bucket(rate, burst, 0.0)
    waits = [bucket.take(0.0) for _ in range(asked)]

    assert [wait_s == 0 for wait_s in waits] == [number < burst for number in range(asked)]
    assert bucket.take(max(waits) + 1 / rate + 1e-6) == 0


def test_a_body_is_due_after_its_time_and_sooner_when_it_hardly_comes():
    limits = LimitSettings(body_s=9, body_bytes_per_s=1000)

    assert [due_s(received, limits) for received in (0, 1000, 3000, 7000, 10**9)] == [2, 3, 5, 9, 9]

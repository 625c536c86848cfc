"""What surrounds the routes: request ids, errors, the access log and metrics."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY
from starlette.requests import ClientDisconnect
from support.gateway import MemoryGateway

from model.note import Note
from service.errors import BadRequest
from service.logs import JsonFormatter

MARK = "x-mark-x"


@pytest.fixture
def gateway() -> MemoryGateway:
    return MemoryGateway()


@pytest.fixture
async def client(gateway):
    async with gateway.client() as client:
        yield client


def error_of(response) -> dict[str, str]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "request_id"}
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    return body["error"]


class TestRequestId:
    async def test_of_the_caller_comes_back(self, client):
        response = await client.get("/status", headers={"X-Request-ID": "trace-1.2:3_4"})

        assert response.headers["x-request-id"] == "trace-1.2:3_4"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 65, "caf\u00e9", '"}', "a\tb", "<script>"])
    async def test_that_is_not_sane_is_replaced(self, client, given):
        response = await client.get("/nowhere", headers={"X-Request-ID": given.encode()})

        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
        error_of(response)

    async def test_is_new_for_every_request(self, client):
        ids = {(await client.get("/status")).headers["x-request-id"] for _ in range(20)}

        assert len(ids) == 20


class TestErrors:
    @pytest.mark.parametrize("path", ["/x-mark-x", "/notes/a/b/c", "/status/", "/docs/", "/%ff", "/notes//related"])
    async def test_of_paths_without_a_route_are_404(self, client, path):
        response = await client.get(path)

        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
        assert MARK not in response.text

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("POST", "/status", "GET, HEAD"),
            ("POST", "/notes/a", "DELETE, GET, HEAD, PATCH, PUT"),
            ("DELETE", "/notes", "GET, HEAD, POST"),
            ("HEAD", "/events", "POST"),
            ("BREW", "/status", "GET, HEAD"),
        ],
    )
    async def test_of_other_methods_are_405_and_say_which_are_allowed(self, client, method, path, allowed):
        response = await client.request(method, path)

        assert (response.status_code, response.headers["allow"]) == (405, allowed)
        if method != "HEAD":
            assert error_of(response)["code"] == "method_not_allowed"

    async def test_of_ours_say_nothing_to_the_client_and_no_text_to_the_log(self, gateway, client, monkeypatch, caplog):
        async def broken(*args: object, **kwargs: object) -> None:
            raise ZeroDivisionError(MARK)

        monkeypatch.setattr(gateway.recommender.notes, "details", broken)
        with caplog.at_level(logging.INFO):
            response = await client.get("/notes/n1")

        assert response.status_code == 500
        assert error_of(response)["code"] == "internal"
        assert MARK not in response.text
        [failed] = [record for record in caplog.records if record.message == "request_failed"]
        assert failed.error == "ZeroDivisionError"
        assert failed.request_id == response.headers["x-request-id"]
        assert any("broken" in place for place in failed.places)
        assert MARK not in str([vars(record) for record in caplog.records])

    async def test_with_long_reasons_stay_under_2_kib(self, gateway, client, monkeypatch):
        async def verbose(*args: object, **kwargs: object) -> None:
            raise BadRequest("🙂\1" * 5000)

        monkeypatch.setattr(gateway.recommender.notes, "details", verbose)

        response = await client.get("/notes/n1")

        assert len(error_of(response)["message"]) == 300
        assert len(response.content) <= 2048

    async def test_when_the_client_hangs_up_in_the_body_are_no_500(self, client, monkeypatch):
        async def breaks(self: object):
            yield b"{"
            raise ClientDisconnect

        monkeypatch.setattr("starlette.requests.Request.stream", breaks)

        assert (await client.put("/notes/n1", content=b"{}")).status_code == 400


class TestTraces:
    async def test_each_request_leaves_one_line_with_the_template_and_not_the_path(self, gateway, client, caplog):
        with caplog.at_level(logging.INFO):
            await client.put("/notes/x-mark-x", json={"title": MARK})
            await client.get("/notes/x-mark-x%20?x-mark-x=1")
            await client.get("/x-mark-x")

        lines = [record for record in caplog.records if record.message == "request"]
        assert [(line.method, line.route, line.status) for line in lines] == [
            ("PUT", "/notes/{note_id}", 202),
            ("GET", "/notes/{note_id}", 422),
            ("GET", "unmatched", 404),
        ]
        assert all(line.duration_ms >= 0 and line.request_id for line in lines)
        ours = [record for record in caplog.records if record.name.startswith("service")]
        assert MARK not in str([vars(record) for record in ours])

    async def test_what_is_logged_for_a_request_carries_its_id_and_what_follows_does_not(
        self, gateway, client, monkeypatch
    ):
        async def talks(*args: object, **kwargs: object) -> None:
            logging.getLogger("service.test").warning("half_way")
            raise BadRequest("no")

        monkeypatch.setattr(gateway.recommender.notes, "details", talks)
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter())
        logger = logging.getLogger("service.test")
        logger.addHandler(handler)
        try:
            await asyncio.create_task(client.get("/notes/n1", headers={"X-Request-ID": "abc"}))
            logger.warning("afterwards")
        finally:
            logger.removeHandler(handler)

        during, after = map(json.loads, stream.getvalue().splitlines())
        assert (during["event"], during["request_id"]) == ("half_way", "abc")
        assert "request_id" not in after

    async def test_requests_are_counted_by_template_method_and_status(self, gateway, client):
        def count(route: str, method: str, status: str) -> float:
            labels = {"route": route, "method": method, "status": status}
            return REGISTRY.get_sample_value("notellm_http_requests_total", labels) or 0.0

        await gateway.publish(Note("n1", "harbor"))
        expected = [
            ("/notes/{note_id}/related", "GET", "200"),
            ("/notes/{note_id}/related", "GET", "404"),
            ("unmatched", "GET", "404"),
            ("/status", "other", "405"),
        ]
        before = [count(*labels) for labels in expected]
        await client.get("/notes/n1/related")
        await client.get("/notes/n2/related")
        await client.get("/a/b/c")
        await client.request("BREW", "/status")

        assert [count(*labels) - was for labels, was in zip(expected, before, strict=True)] == [1.0] * 4

    async def test_degraded_answers_are_counted(self, gateway, client):
        await gateway.publish(Note("n1", "harbor"))
        before = REGISTRY.get_sample_value("notellm_related_degraded_total")
        gateway.store.down = True
        await client.get("/notes/n1/related")

        assert REGISTRY.get_sample_value("notellm_related_degraded_total") == before + 1


def test_the_gateway_needs_neither_torch_nor_faiss():
    script = "import sys, service.api.app; print(sorted({'torch', 'transformers', 'faiss'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

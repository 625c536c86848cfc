"""What leaves a line in the audit log, and what stands in it."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.gateway import MemoryGateway

from model.note import Note
from service.api import audit
from service.keys import Key, Keyring, create_key

MARK = "x-mark-x"
NOTE = {"title": MARK, "content": MARK, "hashtags": [MARK], "category": MARK, "author": MARK}


class Callers:
    """Clients of one gateway, each with another key."""

    def __init__(self, file: Path) -> None:
        self.writer, writer_secret = create_key(file, ["write"])
        self.reader, reader_secret = create_key(file, ["read"])
        self.gateway = MemoryGateway(Keyring(file), max_body_bytes=1000)
        self._secrets = {self.writer: writer_secret, self.reader: reader_secret, None: "garbage"}

    async def ask(self, key: Key | None, method: str, path: str, **options: object) -> httpx.Response:
        async with self.gateway.client() as client:
            headers = {"Authorization": f"Bearer {self._secrets[key]}"}
            return await client.request(method, path, headers=headers, **options)


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path / "keys.json")


@pytest.fixture
def lines(tmp_path: Path) -> Iterator["Lines"]:
    """The audit file; the logger is put back as it was."""
    audit.configure(tmp_path / "audit.log")
    yield Lines(tmp_path / "audit.log")
    for handler in list(audit.log.handlers):
        audit.log.removeHandler(handler)
        handler.close()
    audit.log.propagate = True


class Lines:
    """An audit file, read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


async def test_a_write_says_who_wrote_which_note_and_how_it_ended(callers, lines):
    response = await callers.ask(callers.writer, "PUT", "/notes/n1", json=NOTE)

    [line] = lines()
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "notellm.audit",
        "event": "write",
        "request_id": response.headers["x-request-id"],
        "key": callers.writer.id,
        "method": "PUT",
        "route": "/notes/{note_id}",
        "status": 202,
        "notes": ["n1"],
    }


async def test_a_bulk_names_every_note_that_it_stored(callers, lines):
    notes = [{"note_id": "a", "title": MARK}, {"note_id": MARK, "titel": MARK}, {"note_id": "b", "title": MARK}]

    await callers.ask(callers.writer, "POST", "/notes", json=notes)

    assert [(line["event"], line["route"], line["notes"]) for line in lines()] == [("write", "/notes", ["a", "b"])]
    assert MARK not in lines.path.read_text()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("DELETE", "/notes/n9", b"", 404),
        ("PUT", "/notes/n9", b"{", 422),
        ("PUT", "/notes/n9?x=1", b"{}", 422),
        ("PUT", "/notes/n9", b"x" * 2000, 413),
        ("POST", "/notes", b"", 422),
    ],
)
async def test_writes_that_came_to_nothing_leave_a_line_too(callers, lines, method, path, body, status):
    assert (await callers.ask(callers.writer, method, path, content=body)).status_code == status

    [line] = lines()
    assert (line["event"], line["key"], line["status"]) == ("write", callers.writer.id, status)
    assert line.get("notes") == (["n9"] if "n9" in path else None)


async def test_a_write_that_the_store_refuses_leaves_a_line(callers, lines):
    callers.gateway.store.down = True

    await callers.ask(callers.writer, "DELETE", "/notes/n1")

    assert [(line["status"], line["notes"]) for line in lines()] == [(503, ["n1"])]


async def test_refusals_leave_a_line_on_every_route_and_name_the_key_if_there_was_one(callers, lines):
    await callers.ask(None, "GET", "/status")
    await callers.ask(callers.reader, "POST", "/notes/tags", json=NOTE)
    await callers.ask(callers.reader, "DELETE", "/notes/n1")
    await callers.ask(None, "DELETE", "/notes/n1")

    assert [(line["event"], line["key"], line["route"], line["status"]) for line in lines()] == [
        ("refusal", None, "/status", 401),
        ("refusal", callers.reader.id, "/notes/tags", 403),
        ("write", callers.reader.id, "/notes/{note_id}", 403),
        ("write", None, "/notes/{note_id}", 401),
    ]


async def test_reading_leaves_none(callers, lines):
    await callers.gateway.publish(Note("n1", "harbor"))
    for path in ("/notes/n1", "/notes/n1/related", "/notes/n2", "/status", "/nowhere", "/notes/n1?x=1"):
        await callers.ask(callers.reader, "GET", path)

    assert lines() == []


async def test_what_is_no_id_does_not_get_in_as_one(callers, lines):
    await callers.ask(callers.writer, "PUT", f"/notes/{MARK}%20", json=NOTE)
    await callers.ask(callers.writer, "PUT", f"/notes/{MARK * 20}", json=NOTE)

    assert [line["status"] for line in lines()] == [422, 422]
    assert MARK not in lines.path.read_text()


async def test_without_a_file_the_lines_go_where_the_others_go_at_any_level(callers, caplog):
    caplog.set_level(logging.ERROR)
    caplog.handler.setLevel(logging.NOTSET)

    await callers.ask(callers.writer, "DELETE", "/notes/n1")

    assert [record.message for record in caplog.records if record.name == "notellm.audit"] == ["write"]


async def test_a_file_that_was_moved_away_is_begun_anew(callers, lines):
    await callers.ask(None, "GET", "/status")
    lines.path.rename(lines.path.with_suffix(".1"))

    await callers.ask(None, "GET", "/status")

    assert len(lines()) == 1


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        audit.configure(tmp_path / "nowhere" / "audit.log")


class TestManyRefusals:
    """Callers without a key may not decide how much is written."""

    async def test_what_is_beyond_some_lines_a_second_is_one_line_with_a_count(self, callers, lines, caplog):
        caplog.set_level(logging.INFO)
        for _ in range(300):
            await callers.ask(None, "DELETE", f"/notes/{'n' * 100}")
        for _ in range(50):
            await callers.ask(None, "GET", "/nowhere")
        before = len(lines())
        await callers.gateway.app.state.refusals.report()

        assert before == audit.Refusals.LINES
        [told] = lines()[before:]
        assert (told["event"], told["key"], told["method"]) == ("refusals", None, "DELETE")
        assert (told["route"], told["status"], told["count"]) == ("/notes/{note_id}", 401, 300 - before)
        assert "notes" not in told
        access = [record for record in caplog.records if record.name == "service.api.app"]
        assert [record.message for record in access] == ["request"] * before + ["requests"] * 2
        assert sum(getattr(record, "count", 1) for record in access) == 350

    async def test_nobody_takes_the_lines_of_another_key(self, callers, lines):
        for _ in range(50):
            await callers.ask(None, "DELETE", "/notes/n1")
        await callers.ask(callers.reader, "DELETE", "/notes/n1")

        assert lines()[-1]["key"] == callers.reader.id

    async def test_the_next_second_has_lines_again_and_says_nothing_twice(self, callers, lines):
        for _ in range(50):
            await callers.ask(None, "GET", "/status")
        await callers.gateway.app.state.refusals.report()
        await callers.gateway.app.state.refusals.report()
        before = len(lines())
        await callers.ask(None, "GET", "/status")

        assert [line["event"] for line in lines()[before - 1 :]] == ["refusals", "refusal"]

    async def test_a_write_that_happened_or_may_have_is_never_summed(self, callers, lines):
        for number in range(50):
            await callers.ask(callers.writer, "PUT", f"/notes/n{number}", json=NOTE)
        callers.gateway.store.down = True
        for _ in range(50):
            await callers.ask(callers.writer, "DELETE", "/notes/n1")

        assert [line["status"] for line in lines()] == [202] * 50 + [503] * 50

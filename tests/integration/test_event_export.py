"""Events out of Redis into files by day: each once, whatever ends a run, and pairs as counted by hand."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.redis import RedisServer
from support.service import NOTELLM, PATIENCE_S, UNSET

from model.data.events import load_events
from model.data.files import DataError
from model.data.notes import load_notes
from model.data.pairs import load_pairs
from model.note import Note
from service.backup import notes
from service.backup.events import CURSOR, Exported, ExportError, export
from service.cli.main import cli
from service.errors import StoreUnavailable
from service.store.attribution.answers import ServedAnswer
from service.store.attribution.log import RedisAnswerLog
from service.store.attribution.readers import name_of, sync_key_of
from service.store.connection import open_sync_redis
from service.store.events import RedisEvents
from service.store.notes import RedisStore
from service.store.records import Event, StoredNote
from service.store.schema import EVENTS, RESTORING, SERVED, SERVED_COUNTS


@pytest.fixture
def client(redis_server: RedisServer, redis: Redis) -> Iterator[SyncRedis]:
    with open_sync_redis(redis_server.url) as client:
        yield client


def event(number: int, user: str = "u", note: str = "n", kind: str = "click", ts: float = 0.0) -> Event:
    return Event(f"e{number}", user, note, kind, ts or 1767225600 + number / 4, "n0" if number % 2 else None)


def exported(folder: Path) -> list[str]:
    """Ids of the events in the files that a reader of Parquet folders sees, in order."""
    files = sorted(path for path in folder.glob("dt=*/*") if path.name[0] not in "._")
    return [id_ for file in files for id_ in pq.read_table(file, partitioning=None).column("event_id").to_pylist()]


async def test_the_live_notes_are_a_file_as_training_reads_it_with_the_exposure_that_was_counted(
    redis, client, tmp_path, monkeypatch
):
    monkeypatch.setattr(notes, "_BATCH", 10)
    store = RedisStore(redis, 1000)
    whole = Note("b", "Kyoto by bus", "Two days.", ("travel", "京都"), "Travel", 7)
    written = [whole, *(Note(f"n{number:02}", f"title {number}") for number in range(40))]
    await store.put([StoredNote(note, 0) for note in written])
    await store.delete("n01")
    await RedisEvents(redis).append([event(1, note="n00", kind="impression"), event(2, note="b", kind="impression")])

    assert notes.export([client], tmp_path / "notes.parquet") == 40

    found = {note.id: note for note in load_notes(tmp_path / "notes.parquet")}
    assert list(found) == sorted({note.id for note in written} - {"n01"})
    assert (found["b"], found["n00"].exposure) == (whole, 1)
    client.set(RESTORING, "1")
    with pytest.raises(StoreUnavailable):
        notes.export([client], tmp_path / "half.parquet")


async def test_events_come_once_each_and_as_they_were(redis, client, tmp_path):
    log = RedisEvents(redis)
    await log.append([event(number) for number in range(5)])
    assert export(client, tmp_path / "events") == Exported(5, 0)
    assert export(client, tmp_path / "events") == Exported(0, 0)
    await log.append([event(number) for number in range(3, 8)])
    assert export(client, tmp_path / "events") == Exported(3, 0)

    assert exported(tmp_path / "events") == [f"e{number}" for number in range(8)]
    today = {f"dt={datetime.fromtimestamp(when, UTC):%Y-%m-%d}" for when in (time.time() - 60, time.time())}
    days = sorted((tmp_path / "events").glob("dt=*"))
    assert {day.name for day in days} <= today
    [first, *_] = sorted(days[0].iterdir())
    assert pq.read_table(first, partitioning=None).to_pylist()[1] == {
        "user_id": name_of("u", sync_key_of(client)),
        "note_id": "n",
        "event": "click",
        "ts": 1767225600_250000,
        "source_note_id": "n0",
        "event_id": "e1",
        "value": None,
        "answer_id": None,
        "position": None,
    }


async def test_a_reader_who_was_erased_leaves_the_files_with_the_next_export_and_may_come_back(
    redis, client, tmp_path, monkeypatch
):
    monkeypatch.setattr("service.backup.events.BATCH", 3)
    log, folder = RedisEvents(redis), tmp_path / "events"
    await log.append([event(number, user="uäz"[number % 2 :]) for number in range(6)])
    export(client, folder)
    await log.append([event(number, user="uäz"[number % 2 :]) for number in range(6, 9)])
    await log.erase("äz")
    await log.append([event(9, user="äz"), event(10, user="uäz"), event(1, user="äz")])
    before = {path: path.read_bytes() for path in folder.glob("dt=*/*")}

    assert export(client, folder) == Exported(4, 0, erased=3)

    assert exported(folder) == ["e0", "e2", "e4", "e6", "e8", "e9", "e10"]
    assert [path.read_bytes() for path in before] != [*before.values()]
    rows = [row for path in folder.glob("dt=*/*") for row in pq.read_table(path, partitioning=None).to_pylist()]
    assert [row["event_id"] for row in rows if row["user_id"] == name_of("äz", sync_key_of(client))] == ["e9"]
    assert not list(folder.glob("dt=*/.part*"))
    # Nothing is written for an erasure of somebody who is in no file, or in those alone that the cursor has passed.
    await log.erase("nobody")
    kept = {path: path.stat().st_ino for path in folder.glob("dt=*/*")}
    assert export(client, folder) == Exported(0, 0)
    assert {path: path.stat().st_ino for path in folder.glob("dt=*/*")} == kept


async def test_an_erasure_that_was_interrupted_is_applied_by_the_next_run(redis, client, tmp_path, monkeypatch):
    log = RedisEvents(redis)
    await log.append([event(1, user="a"), event(2, user="b")])
    export(client, tmp_path)
    await log.erase("a")

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("service.backup.events._write_cursor", killed)
    with pytest.raises(RuntimeError):
        export(client, tmp_path)
    monkeypatch.undo()

    assert exported(tmp_path) == ["e2"]
    assert export(client, tmp_path) == Exported(0, 0)
    assert exported(tmp_path) == ["e2"]


def answers_in(folder: Path) -> list[dict[str, object]]:
    files = sorted((folder / "_answers").glob("dt=*/part-*"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


class TestAnswers:
    async def test_come_beside_the_events_as_they_were(self, redis, client, tmp_path):
        log = RedisAnswerLog(redis, 100, 1)
        served = ServedAnswer(
            "a1", 1767225600.25, "tags", "m", ["京都", "tram"], "d", "u", "e", "B", "n", "Travel", 0.25
        )
        await log.append([served])
        assert export(client, tmp_path) == Exported(0, 0, answers=1)
        await log.append([served._replace(answer_id="a2", reader="")])
        assert export(client, tmp_path, remove=True) == Exported(0, 0, answers=1)

        first, second = answers_in(tmp_path)
        assert first.pop("reader") == name_of("u", sync_key_of(client))
        assert first == {
            "answer_id": "a1",
            "ts": 1767225600_250000,
            "scenario": "tags",
            "model": "m",
            "ids": ["京都", "tram"],
            "parameters": "d",
            "experiment": "e",
            "arm": "B",
            "note_id": "n",
            "category": "Travel",
            "seconds": 0.25,
        }
        assert (second["answer_id"], second["reader"]) == ("a2", "")
        assert (client.xlen(SERVED), client.hget(SERVED_COUNTS, "answers")) == (0, b"0")

    async def test_an_erased_reader_leaves_both_kinds_of_files(self, redis, client, tmp_path):
        answers = RedisAnswerLog(redis, 100, 1)
        log = RedisEvents(redis, answers)
        await log.append([event(1, user="a"), event(2, user="b")])
        await answers.append([ServedAnswer(f"a{n}", 1.0, "related", "m", ["n"], reader="ab"[n % 2]) for n in range(6)])
        export(client, tmp_path)

        await log.erase("a")

        assert export(client, tmp_path).erased == 1
        assert exported(tmp_path) == ["e2"]
        assert {row["answer_id"] for row in answers_in(tmp_path)} == {"a1", "a3", "a5"}

    async def test_days_older_than_those_to_keep_are_removed(self, redis, client, tmp_path):
        await RedisEvents(redis).append([event(1)])
        await RedisAnswerLog(redis, 100, 1).append([ServedAnswer("a", 1.0, "related", "m", [])])
        export(client, tmp_path)
        for folder in (tmp_path, tmp_path / "_answers"):
            (folder / "dt=2026-01-01").mkdir()

        export(client, tmp_path, keep_days=2)

        assert {path.name for path in tmp_path.rglob("dt=*")} == {f"dt={datetime.now(UTC):%Y-%m-%d}"}


async def test_readers_in_files_of_an_older_release_get_their_names_and_can_still_be_erased(redis, client, tmp_path):
    log = RedisEvents(redis)
    await log.append([event(number, user="abcab"[number]) for number in range(5)])
    export(client, tmp_path)
    [part] = tmp_path.glob("dt=*/part-*")
    table = pq.read_table(part, partitioning=None)
    ids = table.set_column(0, "user_id", [list("abcab")]).replace_schema_metadata(None)
    pq.write_table(ids.drop_columns(["value", "answer_id", "position"]), part)
    cursor = json.loads((tmp_path / CURSOR).read_bytes())
    (tmp_path / CURSOR).write_text(json.dumps({"entry": cursor["entry"]}))
    await log.erase("b")

    assert export(client, tmp_path) == Exported(0, 0, erased=2)

    users = pq.read_table(part, partitioning=None).column("user_id").to_pylist()
    assert users == [name_of(user, sync_key_of(client)) for user in "aca"]


async def test_parts_of_an_older_release_are_read_with_later_ones(redis, client, tmp_path):
    """And impressions and dismissals make no pair."""
    data = tmp_path / "data"
    log = RedisEvents(redis)
    await log.append([event(1, "u", "n1", ts=1.0), event(2, "u", "n2", ts=2.0)])
    export(client, data / "events")
    [part] = (data / "events").glob("dt=*/*")
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.drop_columns(["value", "answer_id", "position"]), part)
    await log.append(
        [
            Event("e3", "u", "n3", "impression", 0.5, value=1.5, answer_id="a", position=3),
            Event("e4", "u", "n3", "dismiss", 3.0),
            event(5, "v", "n2", ts=1.0),
            event(6, "v", "n3", ts=2.0),
            event(7, "w", "n1", "impression"),
        ]
    )
    export(client, data / "events")
    (data / "notes.jsonl").write_text(
        "".join(json.dumps({"note_id": id_, "title": id_}) + "\n" for id_ in ("n1", "n2", "n3"))
    )

    command = ["pairs", str(data), "--out", str(tmp_path / "pairs.parquet"), "--holdout", "0"]
    answer = CliRunner().invoke(cli, command)

    assert answer.exit_code == 0, answer.output
    assert load_pairs(tmp_path / "pairs.parquet").ends() == [("n1", "n2"), ("n2", "n3")]
    rows = [
        row
        for path in sorted((data / "events").glob("dt=*/*"))[1:]
        for row in pq.read_table(path, partitioning=None).to_pylist()
    ]
    assert {name: rows[0][name] for name in ("event", "value", "answer_id", "position")} == {
        "event": "impression",
        "value": 1.5,
        "answer_id": "a",
        "position": 3,
    }


async def test_events_lie_by_the_day_on_which_they_came(redis, client, tmp_path):
    for day, number in (("2026-01-31", 1), ("2026-02-01", 2), ("2026-02-01", 3)):
        ms = int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp() * 1000)
        client.xadd(EVENTS, {"event": event(number).encode()}, id=f"{ms}-{number}")

    export(client, tmp_path)

    found = {path.name: exported_day(path) for path in tmp_path.glob("dt=*")}
    assert found == {"dt=2026-01-31": ["e1"], "dt=2026-02-01": ["e2", "e3"]}


def exported_day(folder: Path) -> list[str]:
    return [id_ for file in folder.iterdir() for id_ in pq.read_table(file, partitioning=None)["event_id"].to_pylist()]


async def test_pairs_of_exported_events_are_those_counted_by_hand(redis, client, tmp_path, monkeypatch):
    """Eq. 1 written out: s(A -> B) adds 1/N for each of the users who viewed A before they clicked B."""
    monkeypatch.setattr("service.backup.events.BATCH", 7)
    users, notes = [f"u{n}" for n in range(6)], [f"n{n}" for n in range(8)]
    met = {
        (user, note): (1767225600 + (7 * u + 3 * n) % 29 + 0.25, "view" if (u + n) % 4 == 0 else "like")
        for (u, user), (n, note) in product(enumerate(users), enumerate(notes))
        if (3 * u + 5 * n) % 7 < 5
    }
    await RedisEvents(redis).append(
        [event(number, *who, kind, ts) for number, (who, (ts, kind)) in enumerate(met.items())]
    )
    data = tmp_path / "data"
    export(client, data / "events")
    (data / "notes.jsonl").write_text("".join(json.dumps({"note_id": id_, "title": id_}) + "\n" for id_ in notes))

    command = ["pairs", str(data), "--out", str(tmp_path / "pairs.parquet"), "--holdout", "0"]
    answer = CliRunner().invoke(cli, command)

    expected: Counter[tuple[str, str]] = Counter()
    for user in users:
        clicked = [note for note in notes if met.get((user, note), (0, "view"))[1] == "like"]
        for seen, note in product(notes, clicked):
            if seen != note and (user, seen) in met and met[user, seen][0] < met[user, note][0]:
                expected[seen, note] += 1 / len(clicked)
    assert answer.exit_code == 0, answer.output
    assert len(expected) > 20
    pairs = load_pairs(tmp_path / "pairs.parquet")
    assert dict(zip(pairs.ends(), pairs.scores.tolist(), strict=True)) == pytest.approx(dict(expected))
    assert len(list((data / "events").glob("dt=*/*"))) > 3


async def test_what_was_exported_may_leave_redis_and_nothing_else_does(redis, client, tmp_path):
    log = RedisEvents(redis)
    await log.append([event(number) for number in range(5)])
    export(client, tmp_path)
    await log.append([event(5)])
    assert client.xlen(EVENTS) == 6

    assert export(client, tmp_path, remove=True) == Exported(1, 0)
    assert client.xlen(EVENTS) == 0
    assert await log.append([event(5), event(6)]) == 1
    assert export(client, tmp_path) == Exported(1, 0)
    assert exported(tmp_path) == [f"e{number}" for number in range(7)]


@pytest.mark.timeout(120)
async def test_kill_9_at_any_moment_loses_no_event_and_brings_none_twice(redis, redis_server, client, tmp_path):
    log, count = RedisEvents(redis), 60_000
    for start in range(0, count, 10_000):
        await log.append([event(number) for number in range(start, start + 10_000)])
    folder = tmp_path / "events"
    command = [*NOTELLM, "events", "export", "--to", str(folder), "--remove"]

    def unfinished() -> int:
        return len(list(folder.glob("dt=*/.part*")))

    def cursor() -> str:
        return json.loads((folder / CURSOR).read_bytes())["entry"] if (folder / CURSOR).exists() else "0-0"

    # Killed while it writes its first part, or some time after the cursor has moved.
    for pause_s in (None, 0.0, 0.05, None, 0.1):
        parts, start = unfinished(), cursor()
        run = subprocess.Popen(command, env=UNSET | {"NOTELLM_REDIS_URL": redis_server.url})
        while run.poll() is None and (unfinished() == parts if pause_s is None else cursor() == start):
            time.sleep(0.001)
        time.sleep(pause_s or 0.0)
        run.kill()
        run.wait(PATIENCE_S)
    assert cursor() != "0-0"
    subprocess.run(command, env=UNSET | {"NOTELLM_REDIS_URL": redis_server.url}, check=True)

    found = exported(folder)
    assert len(found) == count
    assert set(found) == {f"e{number}" for number in range(count)}
    assert not unfinished()


async def test_a_folder_that_is_not_ours_is_refused_and_left_as_it_is(redis, client, tmp_path):
    await RedisEvents(redis).append([event(1)])
    export(client, tmp_path / "events")
    parts = exported(tmp_path / "events")
    (tmp_path / "events" / CURSOR).write_text("{}")
    with pytest.raises(ExportError, match="cannot be read: name a new folder"):
        export(client, tmp_path / "events")
    (tmp_path / "events" / CURSOR).unlink()
    with pytest.raises(ExportError, match=r"holds other files and no _cursor\.json"):
        export(client, tmp_path / "events")
    assert exported(tmp_path / "events") == parts


async def test_a_run_that_was_killed_before_its_first_cursor_leaves_a_folder_to_go_on_with(redis, client, tmp_path):
    await RedisEvents(redis).append([event(1)])
    (tmp_path / f".{CURSOR}.part").write_text("{")

    assert export(client, tmp_path) == Exported(1, 0)


async def test_a_damaged_event_is_passed_over_and_counted(redis, client, tmp_path):
    client.xadd(EVENTS, {"event": b"\xc1"})
    await RedisEvents(redis).append([event(1)])

    assert export(client, tmp_path) == Exported(1, 1)
    assert exported(tmp_path) == ["e1"]


async def test_ids_mean_the_same_in_all_files_of_a_folder(redis, client, tmp_path, monkeypatch):
    monkeypatch.setattr("service.backup.events.BATCH", 9)
    rows = [(f"u{n % 7}", f"n{n * 37 % 23}") for n in range(100)]
    await RedisEvents(redis).append([event(n, *row) for n, row in enumerate(rows)])
    export(client, tmp_path / "events")

    read = load_events(tmp_path)

    assert [read.note_ids[code] for code in read.notes] == [note for _, note in rows]
    assert len(set(zip(read.users.tolist(), [user for user, _ in rows], strict=True))) == read.num_users == 7


def test_a_folder_without_events_and_an_ambiguous_one_are_told_apart(tmp_path):
    (tmp_path / "events").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet and no \.jsonl file in this folder"):
        load_events(tmp_path)
    (tmp_path / "events" / "dt=2026-01-31").mkdir()
    (tmp_path / "events" / "dt=2026-01-31" / "part.parquet").write_bytes(b"")
    (tmp_path / "events.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"events/ and events\.jsonl are both in this folder"):
        load_events(tmp_path)


async def test_parts_beyond_the_cursor_are_of_a_run_that_was_killed_and_are_written_again(
    redis, client, tmp_path, monkeypatch
):
    monkeypatch.setattr("service.backup.events.BATCH", 4)
    await RedisEvents(redis).append([event(number) for number in range(10)])
    export(client, tmp_path)
    cursors = sorted(path.stem.removeprefix("part-") for path in tmp_path.glob("dt=*/part-*"))
    ms, number = map(int, cursors[0].split("-"))
    (tmp_path / CURSOR).write_text(json.dumps({"entry": f"{ms}-{number}"}))
    monkeypatch.setattr("service.backup.events.BATCH", 5)

    assert export(client, tmp_path) == Exported(6, 0)
    assert exported(tmp_path) == [f"e{number}" for number in range(10)]

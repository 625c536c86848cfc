"""Backup, wipe, restore: of a Redis that was used in every way, and of the real `notellm serve`."""

import asyncio
import gzip
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.checkpoint import tiny_checkpoint
from support.indexers import Indexers
from support.redis import RedisServer
from support.service import NOTELLM, PATIENCE_S, UNSET, Service, running
from support.service import until as wait_until
from support.working import until

from indexer.serving.client import ShardedSearcher
from indexer.types import ShardUnavailable
from model.inference.hashing import DIM, text_vector
from model.note import Note
from service.backup import backup, files
from service.backup.backup import back_up
from service.backup.files import MANIFEST, SUMS, BackupError
from service.backup.restore import restore
from service.client import NoteLLMClient
from service.errors import NotAsExpected, StoreUnavailable
from service.settings import MINI
from service.store import schema
from service.store.attribution.answers import ServedAnswer, new_answer_id
from service.store.attribution.figures import AnswerCounts
from service.store.attribution.log import RedisAnswerLog
from service.store.attribution.quality import Quality
from service.store.cells.ring import Cells
from service.store.changes import RedisChangeStream
from service.store.connection import open_sync_redis
from service.store.events import RedisEvents
from service.store.experiments.experiments import Experiments
from service.store.experiments.findings import Findings
from service.store.experiments.records import Arm
from service.store.experiments.watches import Watches
from service.store.hashtags.completion import Completion
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.idempotency import RedisAnswers
from service.store.interfaces import Answer, HashtagRule, Suggestion
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import Event, StoredNote, StoredPrediction, digest_of
from service.store.registry import Registry
from service.store.schema import RESTORING
from service.store.webhook.notices import RedisNotices

MODELS = ("00000000000000aa", "00000000000000bb")
TABLE_ROW = re.compile(r"^``(notellm:v1:[a-z]+:?)[^`]*`` +(\w+)", re.MULTILINE)
# What a backup says of every key: family -> kept, rebuilt or dropped.
FATES: dict[str, str] = dict(TABLE_ROW.findall(backup.__doc__ or ""))
# Rebuilt by the next worker, and begun anew: they are not as before.
NOT_AS_BEFORE = {schema.JOBS, schema.WRITES}


@pytest.fixture
def elsewhere() -> Iterator[RedisServer]:
    """Another Redis, with nothing in it."""
    server = RedisServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def source(redis_server: RedisServer, redis: Redis) -> Iterator[SyncRedis]:
    with open_sync_redis(redis_server.url) as client:
        yield client


@pytest.fixture
def target(elsewhere: RedisServer) -> Iterator[SyncRedis]:
    with open_sync_redis(elsewhere.url) as client:
        yield client


def family(key: bytes) -> str:
    """The part of a key that is the same for all of its kind; the key itself where nobody knows it."""
    name = key.decode()
    return next((known for known in sorted(FATES, reverse=True) if name == known or _is_of(name, known)), name)


def _is_of(name: str, known: str) -> bool:
    return known.endswith(":") and name.startswith(known)


def contents(redis: SyncRedis) -> dict[bytes, Any]:
    """Every key that has to be as before, with its value."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"stream": redis.xrange,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
    }
    kept = {name for name, fate in FATES.items() if fate != "dropped"} - NOT_AS_BEFORE
    return {key: read[redis.type(key)](key) for key in redis.scan_iter() if family(key) in kept}


async def read_all(redis: Redis, model: str, *, bad: str = "", most: int = 10_000) -> None:
    """Play a worker of this model for all waiting jobs; the note ``bad`` is dead-lettered."""
    queue = JobQueue(redis, "w0", model, DIM)
    await queue.open()
    while most > 0 and (claimed := await queue.claim(min(256, most), 0.01)):
        most -= len(claimed)
        records = await queue.notes(claimed)
        predictions = []
        for item, record in zip(claimed, records, strict=True):
            if item.job.note_id == bad:
                await queue.dead_letter(item, "it is bad")
            elif record and record.version == item.job.version and not record.deleted:
                vector = text_vector(model + record.note.title)
                said = StoredPrediction(
                    record.version, model, vector, (("旅行", 0.1 + 0.2),), ("Travel", 0.9), b"s" * 16
                )
                predictions.append((item, said))
        await queue.publish(predictions)


def note(number: int, title: str = "") -> StoredNote:
    tags = ("Kyoto", "kyoto", "citywalk")[number % 3 :]
    content = "京都 by bus\n" * (number % 5)
    about = Note(f"n{number}", title or f"Day {number}", content, tags, "Travel" if number % 2 else None, number)
    author, created_at = f"a{number % 7}" if number % 3 else None, "2026-01-31T12:00:00Z"
    if number % 2 == 0:  # one that may trend
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
    attributes = {"price": number / 3, "seasons": ("spring",), "city": "京都"} if number % 2 else {}
    language = "ja" if number % 5 == 1 else None
    detected = None if language else ("", "en", None)[number % 3]
    return StoredNote(
        about,
        0,
        author,
        created_at,
        attributes=attributes,
        language=language,
        hidden=number % 4 == 1,
        detected=detected,
    )


async def use(redis: Redis, notes: int = 60) -> RedisStore:
    """Leave something under every key there is, but that of a restore."""
    store = RedisStore(redis, 1_000_000)
    await store.put([note(number) for number in range(notes)])
    for model in MODELS:
        await read_all(redis, model, bad="n7", most=notes if model == MODELS[0] else notes // 2)
    await store.put([note(number, "written again") for number in range(10)])
    await read_all(redis, MODELS[0], bad="n8", most=5)
    for number in range(5, 25):
        await store.delete(f"n{number}")
    await store.put([note(number, "back again") for number in range(20, 25)])
    events = [Event(f"e{n}", f"u{n % 5}", f"n{n % 20}", "click", 1767225600.25 + n, None) for n in range(30)]
    await RedisEvents(redis).append([*events, Event("now", "u1", "n30", "view", time.time())])
    answer_id = new_answer_id("related", MODELS[0])
    await RedisEvents(redis).append([Event("shown", "u1", "n30", "impression", time.time(), answer_id=answer_id)])
    await redis.set(schema.ERASING + "u3", "0-0")
    await redis.set(schema.FENCE, "")
    await redis.set(schema.FORMAT, schema.STORE_FORMAT)
    await redis.set(schema.CELLS, 1)
    await redis.hset(schema.TYPES, "price", "number")
    answers = RedisAnswerLog(redis, 10, 1)
    await answers.append([ServedAnswer("a1", time.time(), "related", MODELS[0], ["n1"], reader="u1")])
    await answers.erase("u3")
    await RedisAnswers(redis).once("k", b"request", _answer)
    for rule in (HashtagRule("citywalk", "urban_walk"), HashtagRule("spam")):
        await RedisHashtags(redis).put_rule(rule)
    arms = Arm("A", MODELS[0], {}), Arm("B", MODELS[1], {"diversity": 0.2, "duplicates": "keep"})
    assert await Experiments(redis).start("spread", arms, 0.3) == "done"
    await Findings(redis).tell("turn", "learn-1", "{}")
    for model in (MODELS[1], MODELS[0]):
        assert await Registry(redis).activate(model)
    assert await Watches(redis).lease("g1")
    counts = AnswerCounts()
    counts.failed(MODELS[0])
    await Quality(redis, counts).flush()
    notices = RedisNotices(Cells.of([redis]))
    assert await notices.hold()
    await notices.tell((await notices.read()).told)
    await Completion(redis)()
    stream = RedisChangeStream(open_sync_redis(_url(redis)), MODELS[0], "shard-0")
    stream.refuse(replace(stream.read("0-0", 10_000, 0)[-1], id="n30", version=1), "no unit vector")
    stream.keep("0-0")
    stream._redis.close()
    return store


async def _answer() -> Answer:
    return Answer(202, b"{}")


def _url(redis: Redis) -> str:
    return f"unix://{redis.connection_pool.connection_kwargs['path']}"


def ends(*_: object) -> None:
    """A restore that ended with everything but its last step."""
    raise StoreUnavailable("killed")


def wiped(redis: SyncRedis) -> None:
    redis.flushall()


async def test_every_key_of_a_store_in_use_is_in_the_table(redis, source):
    await use(redis)

    assert {family(key) for key in source.scan_iter()} == FATES.keys() - {RESTORING}
    assert {row.partition("<")[0] for row in re.findall(r"^``(notellm:v1:[^`]+)``", schema.__doc__, re.M)} == {*FATES}
    assert set(FATES.values()) == {"kept", "rebuilt", "dropped"}


async def test_what_is_restored_is_what_was_there_to_the_byte(redis, source, target, tmp_path):
    await use(redis)
    manifest = back_up(Cells.of([source]), tmp_path / "b")
    before = contents(source)

    restored = restore(Cells.of([target]), tmp_path / "b")

    assert contents(target) == before
    assert (restored.live, restored.deleted) == (manifest.live, manifest.deleted) == (45, 15)
    assert {family(key) for key in target.scan_iter()} == {family(key) for key in before} | {schema.WRITES}
    lives = [redis.pttl("notellm:v1:event:e1") for redis in (source, target)]
    assert lives[1] == pytest.approx(lives[0], abs=60_000)


def test_a_line_of_an_older_release_is_the_note_that_it_was():
    line = files.note_line(replace(note(2), version=3))
    for name in ("attributes", "language", "hidden", "detected"):
        del line[name]

    assert files.note_of(line) == replace(note(2), version=3, hidden=False, detected=None)


async def test_a_reader_who_was_erased_stays_so_also_in_a_store_of_before(
    redis, source, elsewhere, target, tmp_path, monkeypatch
):
    """By the events of the backup, and by the audit log, of which somebody thought in time."""
    log = RedisEvents(redis)
    await log.append([Event(f"{user}{n}", user, f"n{n}", "view", time.time()) for user in "abc" for n in range(3)])
    await log.erase("a")
    back_up(Cells.of([source]), tmp_path / "b")
    answered = {"event": "write", "method": "DELETE", "status": 204, "time": "2999-01-01T00:00:00.000Z"}
    lines = [answered | {"erased": [digest_of("b")]}, answered | {"erased": [digest_of("c")], "status": 503}]
    (tmp_path / "audit").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr("service.backup.restore._Restore.finish", ends)
    with pytest.raises(StoreUnavailable):
        restore(Cells.of([target]), tmp_path / "b")
    monkeypatch.undo()
    assert restore(Cells.of([target]), tmp_path / "b", tmp_path / "audit").erased_later == 1

    client = Redis.from_url(elsewhere.url)
    restored = RedisEvents(client)
    await restored.complete()
    assert [len(await restored.seen(user)) for user in "abc"] == [0, 0, 3]
    entries = [fields for _, fields in target.xrange(schema.EVENTS)]
    users = [msgpack.unpackb(fields[b"event"])["user_id"] for fields in entries if b"event" in fields]
    assert users == ["c"] * 3
    said = [fields[b"erased"].decode() for fields in entries if b"erased" in fields]
    assert said == [digest_of("a"), digest_of("b")]
    assert await restored.append([Event("b0", "b", "n0", "view", time.time())]) == 0
    await client.aclose()


async def test_a_tombstone_goes_on_to_count_versions_and_no_earlier_state_comes_back(
    redis, source, elsewhere, target, tmp_path
):
    await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    restore(Cells.of([target]), tmp_path / "b")

    client = Redis.from_url(elsewhere.url)
    store = RedisStore(client, 1000)
    assert await store.delete("n6")
    assert not await store.delete("never")
    with pytest.raises(NotAsExpected):
        await store.put([note(6)], expected=1)
    [again] = await store.put([note(6)], expected="none")
    assert again == (await RedisStore(redis, 1000).put([note(6)]))[0]
    await client.aclose()


async def test_the_next_worker_queues_what_it_has_not_read_and_nothing_else(redis, source, elsewhere, target, tmp_path):
    store = await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    restore(Cells.of([target]), tmp_path / "b")

    client = Redis.from_url(elsewhere.url)
    for model in MODELS:
        live = [record for record in await store.get([f"n{n}" for n in range(60)]) if not record.deleted]
        said = [await store.suggestion(record.note.id, model) for record in live]
        lacking = sum(one is None or one.version != record.version for one, record in zip(said, live, strict=True))
        assert 0 < lacking < len(live)
        assert await JobQueue(client, "w0", model, DIM).open() == lacking
    await client.aclose()


async def test_the_files_can_be_read_without_us(redis, source, tmp_path):
    await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")

    subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=tmp_path / "b", check=True)
    with gzip.open(tmp_path / "b" / "notes.jsonl.gz") as lines:
        found = {line["note_id"]: line for line in map(json.loads, lines)}
    assert len(found) == 60
    assert found["n6"] == {"note_id": "n6", "version": 3, "deleted": True}
    assert (found["n31"]["title"], found["n31"]["hashtags"]) == ("Day 31", ["kyoto", "citywalk"])
    with gzip.open(tmp_path / "b" / "readings-00000000000000aa.jsonl.gz") as lines:
        ids = [json.loads(line)["id"] for line in lines]
    vectors = (tmp_path / "b" / "vectors-00000000000000aa.f32").read_bytes()
    place = ids.index("n31") * 4 * DIM
    assert vectors[place : place + 4 * DIM] == text_vector("00000000000000aaDay 31").astype("<f4").tobytes()


async def test_any_flipped_byte_of_any_file_is_noticed_before_anything_is_written(redis, source, target, tmp_path):
    await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")

    files = sorted(path for path in (tmp_path / "b").iterdir())
    assert len(files) == 2 + 6 + 3 * len(MODELS)
    for file in files:
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
            with pytest.raises(BackupError, match="is damaged, restore another one"):
                restore(Cells.of([target]), tmp_path / "b")
        file.write_bytes(whole)
    (tmp_path / "b" / "dead.jsonl.gz").unlink()
    with pytest.raises(BackupError, match=re.escape("not as written: dead.jsonl.gz")):
        restore(Cells.of([target]), tmp_path / "b")
    assert target.keys() == []


async def test_a_backup_of_a_later_format_is_refused(redis, source, target, tmp_path):
    await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_bytes())
    (tmp_path / "b" / MANIFEST).write_text(
        json.dumps(manifest | {"format": files.FORMAT + 1, "notellm": "9.1", "new": 1})
    )
    (tmp_path / "b" / SUMS).write_text(files.sums(tmp_path / "b"))

    said = rf"was made by notellm 9\.1 in format {files.FORMAT + 1}, and this one reads up to {files.FORMAT}"
    with pytest.raises(BackupError, match=said):
        restore(Cells.of([target]), tmp_path / "b")


@pytest.mark.parametrize(
    ("format_", "missing"),
    [
        (1, {files.HASHTAG_RULES, files.EXPERIMENT_RECORDS, files.SHOWN}),
        (2, {files.EXPERIMENT_RECORDS, files.SHOWN}),
    ],
)
async def test_a_backup_of_an_older_format_has_less_and_is_restored(format_, missing, redis, source, target, tmp_path):
    await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_bytes())
    for name in missing:
        (tmp_path / "b" / name).unlink()
        del manifest["lines"][name]
    del manifest["reader_key"]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest | {"format": format_}))
    (tmp_path / "b" / SUMS).write_text(files.sums(tmp_path / "b"))

    restore(Cells.of([target]), tmp_path / "b")

    lost = {files.HASHES[name].key for name in missing - {files.SHOWN}} | {schema.EXPOSURE, schema.READER_KEY}
    assert contents(target) == {key: value for key, value in contents(source).items() if family(key) not in lost}


async def test_a_store_that_holds_anything_is_refused_and_left_as_it_is(redis, source, elsewhere, target, tmp_path):
    await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    client = Redis.from_url(elsewhere.url)

    async def worker() -> None:
        await JobQueue(client, "w0", MODELS[0], DIM).open()

    async def write() -> None:
        await RedisStore(client, 10).put([note(1)])

    async def event() -> None:
        await RedisEvents(client).append([Event("e", "u", "n", "view", 1.0)])

    async def rule() -> None:
        await RedisHashtags(client).put_rule(HashtagRule("spam"))

    for somebody in (worker, write, event, rule):
        await somebody()
        before = contents(target)
        with pytest.raises(BackupError, match="the store is not empty"):
            restore(Cells.of([target]), tmp_path / "b")
        assert contents(target) == before
        wiped(target)
    await client.aclose()
    restore(Cells.of([target]), tmp_path / "b")
    with pytest.raises(BackupError, match="the store is not empty"):
        restore(Cells.of([target]), tmp_path / "b")


async def test_half_a_store_takes_no_writes_and_only_the_same_backup(
    redis, source, elsewhere, target, tmp_path, monkeypatch
):
    store = await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    before = contents(source)
    await store.put([note(99)])
    back_up(Cells.of([source]), tmp_path / "later")
    monkeypatch.setattr("service.backup.restore.PUT_PREDICTIONS", "return redis.error_reply('READONLY enough')")
    with pytest.raises(StoreUnavailable):
        restore(Cells.of([target]), tmp_path / "b")
    monkeypatch.undo()

    client = Redis.from_url(elsewhere.url)
    half = RedisStore(client, 1000)
    queue = JobQueue(client, "w0", MODELS[0], DIM)
    for refused in (
        lambda: half.put([note(1)]),
        lambda: half.delete("n1"),
        lambda: RedisEvents(client).append([Event("e", "u", "n", "view", 1.0)]),
        queue.open,
    ):
        with pytest.raises(StoreUnavailable):
            await refused()
    with pytest.raises(StoreUnavailable):
        back_up(Cells.of([target]), tmp_path / "half")
    with pytest.raises(BackupError, match="a restore of another backup was begun"):
        restore(Cells.of([target]), tmp_path / "later")

    monkeypatch.setattr("service.backup.restore._Restore.finish", ends)
    with pytest.raises(StoreUnavailable):
        restore(Cells.of([target]), tmp_path / "b")
    monkeypatch.undo()
    restore(Cells.of([target]), tmp_path / "b")
    assert contents(target) == before
    assert await half.put([note(1)])
    await client.aclose()


async def test_deletes_of_the_audit_log_that_came_later_are_done_again(redis, source, target, tmp_path, monkeypatch):
    store = await use(redis)
    line = {"event": "write", "method": "DELETE", "route": "/notes/{note_id}", "status": 204, "time": ""}
    early = line | {"time": "2026-01-31T12:00:00.123Z", "notes": ["n40"]}
    back_up(Cells.of([source]), tmp_path / "b")
    later = [
        line | {"time": "9026-01-31T12:00:00.123Z", "notes": ["n41"]},
        line | {"time": "9026-01-31T12:00:00.124Z", "notes": ["n42"], "status": 503},
        line | {"time": "9026-01-31T12:00:00.125Z", "notes": ["n43"], "method": "PUT"},
        line | {"time": "9026-01-31T12:00:00.126Z", "notes": ["never"]},
        line | {"time": "9026-01-31T12:00:00.127Z", "notes": ["n6"]},
    ]
    (tmp_path / "audit").write_text("".join(json.dumps(entry) + "\n" for entry in (early, *later)))

    monkeypatch.setattr("service.backup.restore._Restore.finish", ends)
    with pytest.raises(StoreUnavailable):  # somebody forgot the log, and thought of it in time
        restore(Cells.of([target]), tmp_path / "b")
    monkeypatch.undo()
    assert restore(Cells.of([target]), tmp_path / "b", tmp_path / "audit").deleted_later == 1
    await store.delete("n41")
    assert contents(target) == contents(source)


@pytest.mark.parametrize("text", ["", "[]\n", "{}\n", '{"time": 5}\n', "no JSON\n"])
async def test_a_log_that_is_none_is_named_with_its_line_before_anything_is_written(
    redis, source, target, tmp_path, text
):
    back_up(Cells.of([source]), tmp_path / "b")
    (tmp_path / "audit").write_text(text)

    if text:
        with pytest.raises(BackupError, match=r"audit line 1 is none of an audit log"):
            restore(Cells.of([target]), tmp_path / "b", tmp_path / "audit")
        assert target.keys() == []
    else:
        restore(Cells.of([target]), tmp_path / "b", tmp_path / "audit")


async def test_what_was_acknowledged_before_is_in_it_whatever_is_written_meanwhile(
    redis, source, elsewhere, target, tmp_path, monkeypatch
):
    """By definition: a note of the backup is in a state that it had at some moment since the beginning."""
    store = await use(redis, notes=3_000)
    await read_all(redis, MODELS[0])
    for number in range(2_000, 2_500):
        await store.delete(f"n{number}")
    states = {f"n{number}": set() for number in range(3_200)}
    for record in await store.get(list(states)):
        if record:
            states[record.note.id].add((record.version, record.deleted, record.note.title))
    stop = asyncio.Event()

    async def write() -> int:
        writes = 0
        while not stop.is_set():
            number = writes * 37 % 3_200
            if writes % 3:
                [version] = await store.put([note(number, f"meanwhile {writes}")])
                states[f"n{number}"].add((version, False, f"meanwhile {writes}"))
            else:
                held = (await store.get([f"n{number}"]))[0]
                if await store.delete(f"n{number}") and held and not held.deleted:
                    states[f"n{number}"].add((held.version + 1, True, ""))
            writes += 1
        return writes

    written = backup._Backup._write_records

    def slowly(self: Any, records: Any) -> None:  # as onto a slow disk
        time.sleep(0.1)
        written(self, records)

    monkeypatch.setattr(backup._Backup, "_write_records", slowly)
    writing = asyncio.create_task(write())
    prediction = asyncio.create_task(_keep_reading(redis, stop))
    await asyncio.to_thread(back_up, Cells.of([source]), tmp_path / "b")
    stop.set()
    assert await writing > 100
    await prediction
    restore(Cells.of([target]), tmp_path / "b")

    client = Redis.from_url(elsewhere.url)
    restored = RedisStore(client, 10)
    found = {record.note.id: record for record in await restored.get(list(states)) if record}
    assert {f"n{number}" for number in range(3_000)} <= found.keys()
    for id_, record in found.items():
        assert (record.version, record.deleted, record.note.title) in states[id_]
        said = await restored.suggestion(id_, MODELS[0])
        assert said is None or not record.deleted
        assert said is None or said.version <= record.version
    for key, spellings in contents(target).items():
        if family(key) == schema.TAG:
            carried = [tag for record in found.values() if not record.deleted for tag in set(record.note.hashtags)]
            assert sum(count for _, count in spellings) <= len(carried)
    counts = await restored.counts(MODELS[0])
    assert counts.live == sum(not record.deleted for record in found.values())
    await client.aclose()


async def _keep_reading(redis: Redis, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await read_all(redis, MODELS[0])


async def test_of_a_note_that_stands_in_it_twice_the_later_version_counts(redis, source, target, tmp_path):
    """Redis' SCAN may show a key again: the files of a run and of a later one, joined, are such a backup."""
    store = await use(redis)
    back_up(Cells.of([source]), tmp_path / "early")
    await store.put([note(number, "later") for number in range(26, 40)])
    await read_all(redis, MODELS[0], bad="n27")
    await store.put([note(28, "later still")])
    for number in range(40, 50):
        await store.delete(f"n{number}")
    await store.put([note(number, "back again") for number in range(12, 18)])
    back_up(Cells.of([source]), tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_bytes())
    for file in (tmp_path / "b").iterdir():
        if file.name.startswith(("notes", "readings", "vectors", "failures")):
            file.write_bytes((tmp_path / "early" / file.name).read_bytes() + file.read_bytes())
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / "b" / SUMS).write_text(files.sums(tmp_path / "b"))

    restore(Cells.of([target]), tmp_path / "b")

    assert contents(target) == contents(source)


async def test_a_redis_that_restarts_meanwhile_ends_the_backup_and_leaves_no_folder(
    redis_server, redis, tmp_path, monkeypatch
):
    await use(redis, notes=1_000)
    client = open_sync_redis(redis_server.url)
    written = backup._Backup._write_predictions
    calls = []

    def restarted(self: Any, *said: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            redis_server.kill()
            redis_server.start()
        written(self, *said)

    monkeypatch.setattr(backup._Backup, "_write_predictions", restarted)
    with pytest.raises(StoreUnavailable):
        back_up(Cells.of([client]), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    client.close()


def command(*words: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*NOTELLM, *words], env=UNSET | environment, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]", status: int = 0) -> str:
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status, said
    return said


def kill_while(process: "subprocess.Popen[str]", begun: Callable[[], bool], pause_s: float) -> None:
    """kill -9, some time after it began."""
    while not begun() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(pause_s)
    process.kill()
    process.communicate()


@pytest.mark.timeout(120)
async def test_kill_9_at_any_moment_leaves_the_old_or_the_whole(
    redis, redis_server, source, elsewhere, target, tmp_path
):
    await use(redis, notes=3_000)
    begun = tmp_path / ".b.unfinished" / "notes.jsonl.gz"
    refused = 0
    for pause_s in (0.0, 0.05, 0.15):
        making = command("backup", "--to", str(tmp_path / "b"), NOTELLM_REDIS_URL=redis_server.url)
        kill_while(making, begun.exists, pause_s)
        assert not (tmp_path / "b").exists()
        if not (begun.parent / SUMS).exists():
            restoring = command("restore", "--from", str(begun.parent), NOTELLM_REDIS_URL=elsewhere.url)
            assert "is no finished backup" in ended(restoring, 2)
            refused += 1
    assert refused
    ended(command("backup", "--to", str(tmp_path / "b"), NOTELLM_REDIS_URL=redis_server.url))
    assert [path.name for path in tmp_path.iterdir()] == ["b"]

    states = []
    for pause_s in (0.0, 0.1, 0.2, 0.3):
        wiped(target)
        restoring = command("restore", "--from", str(tmp_path / "b"), NOTELLM_REDIS_URL=elsewhere.url)
        kill_while(restoring, lambda: bool(target.exists(RESTORING)), pause_s)
        states.append(len(target.keys("notellm:v1:note:*")) if target.exists(RESTORING) else None)
        if states[-1] is not None:
            ended(command("restore", "--from", str(tmp_path / "b"), NOTELLM_REDIS_URL=elsewhere.url))
        assert contents(target) == contents(source)
    assert any(state is not None and state < 3_000 for state in states)


async def test_indexers_that_hold_a_later_time_build_anew_what_was_restored(
    redis, redis_server, source, elsewhere, target, tmp_path
):
    """The wiped Redis is another one here, and the folders of the indexes are those of the time after the backup."""
    store = await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    indexers = Indexers(tmp_path, redis_server.url, shards=1)
    searcher = ShardedSearcher(indexers.addresses, MODELS[0])
    await store.put([note(number, "after the backup") for number in range(30, 50)])
    await read_all(redis, MODELS[0])
    indexers.start(0)
    await until(lambda: holds(searcher, "n40", "after the backup"))
    await until(lambda: _is_there(tmp_path / "snapshots" / "shard-0" / MODELS[0] / "CURRENT"))
    indexers.end(0)

    restore(Cells.of([target]), tmp_path / "b")
    indexers.environment["NOTELLM_REDIS_URL"] = elsewhere.url
    indexers.start(0)
    try:
        await until(lambda: holds(searcher, "n40", "Day 40"))
        assert await searcher.lookup("n10", timeout_s=5) is None
    finally:
        indexers.end_all()
        await searcher.close()


async def _is_there(path: Path) -> bool:
    return path.exists()


async def holds(searcher: ShardedSearcher, id_: str, title: str) -> bool:
    try:
        found = await searcher.lookup(id_, timeout_s=5)
    except ShardUnavailable:
        return False
    return bool(found) and bool(found.vector @ text_vector(MODELS[0] + title) > 0.99)


async def test_a_restored_suggestion_is_the_one_that_was_given(redis, source, elsewhere, target, tmp_path):
    await use(redis)
    back_up(Cells.of([source]), tmp_path / "b")
    restore(Cells.of([target]), tmp_path / "b")

    client = Redis.from_url(elsewhere.url)
    said = await RedisStore(client, 10).suggestion("n31", MODELS[0])
    assert said == Suggestion(1, MODELS[0], (("旅行", 0.1 + 0.2),), ("Travel", 0.9))
    await client.aclose()


def test_what_a_person_can_mend_is_one_line(redis_server, tmp_path):
    (tmp_path / "there").mkdir()
    url = {"NOTELLM_REDIS_URL": redis_server.url}
    nowhere = {"NOTELLM_STATE_DIR": str(tmp_path / "nowhere")}
    for words, environment, said in (
        (("backup", "--to", str(tmp_path / "there")), url, "is there already: name a new folder"),
        (("backup", "--to", str(tmp_path / "not" / "there")), url, "is no folder: make it first"),
        (("backup", "--to", str(tmp_path / "b")), nowhere, "holds no service"),
        (("backup", "--to", str(tmp_path / "b")), {"NOTELLM_REDIS_URL": "unix:///nowhere"}, "does not answer"),
        (("backup", "--to", str(tmp_path / "b"), "--with-model", str(tmp_path)), url, "notellm.json"),
        (("backup", "--to", str(tmp_path / "b"), "--with-model", str(MINI)), url, "is the model"),
        (("restore", "--from", str(tmp_path / "there")), url, "is no finished backup"),
    ):
        [line] = [line for line in ended(command(*words, **environment), 2).splitlines() if "notellm:" in line]
        assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_backup_needs_no_part_that_the_gateways_image_lacks():
    script = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'faiss', 'pyarrow', 'duckdb']);"
        "import service.backup.backup, service.backup.restore, service.processes.local_redis, model.network.checkpoint"
    )
    subprocess.run([*NOTELLM[:2], "-c", script], check=True)


@contextmanager
def asking(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.api, timeout=30) as client:
        yield client


def _of_the_note(got: httpx.Response) -> Any:
    return got.json() if got.status_code == 200 else got.json()["error"]["code"]


def answers(service: Service) -> dict[str, Any]:
    """What a caller sees of every note: text, version, status and suggestions, ETag, related notes."""
    seen: dict[str, Any] = {}
    with asking(service) as http:
        for number in range(30):
            got = http.get(f"/notes/m{number}")
            related = http.get(f"/notes/m{number}/related?k=5").json()
            items = [(item["note_id"], item["score"]) for item in related.get("items", [])]
            seen[f"m{number}"] = got.status_code, got.headers.get("etag"), _of_the_note(got), items
        tagged = http.post("/notes/tags", json={"title": "A day in Osaka", "vocabulary": "known"}).json()
        seen["tags"] = tagged.get("hashtags"), tagged.get("category")
        seen["status"] = http.get("/status").json()["notes"]
    return seen


@pytest.mark.timeout(240)
def test_a_service_that_lost_everything_answers_as_before(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint")
    service = Service(tmp_path, tmp_path / "checkpoint")
    with running(service):
        with asking(service) as http:
            for number in range(30):
                body = {"title": f"Day {number} in Kyoto", "hashtags": ["Citywalk", f"t{number % 4}"], "author": "a"}
                assert http.put(f"/notes/m{number}?wait=10", json=body).json()["status"] == "searchable"
            for number in range(8):
                body = {"title": f"Day {number}, written again", "hashtags": ["citywalk"]}
                assert http.put(f"/notes/m{number}?wait=10", json=body).json()["version"] == 2
            for number in range(4, 12):
                assert http.delete(f"/notes/m{number}").status_code == 204
        before = answers(service)
        made = command("backup", "--to", str(tmp_path / "b"), "--with-model", str(tmp_path / "checkpoint"),
                       **service.environment)  # fmt: skip
        ended(made)
        said = ended(command("restore", "--from", str(tmp_path / "b"), **service.environment), 2)
        assert "the store is not empty: stop the service" in said

    shutil.rmtree(service.state)
    service.environment["NOTELLM_CELLS"] = "3"  # it may have another number, too
    ended(command("restore", "--from", str(tmp_path / "b"), **service.environment))
    service.environment["NOTELLM_CHECKPOINT"] = str(tmp_path / "b" / "model")
    with running(service):
        wait_until(lambda: answers(service) == before)
        with service.client() as notellm:
            _use_cells(notellm)
        with asking(service) as http:
            assert [http.delete(f"/notes/{id_}").status_code for id_ in ("m5", "never")] == [204, 404]
            assert http.get("/notes/m5").status_code == 404
            for tag in ('"1"', '"2"'):
                old = http.put("/notes/m5", json={"title": "old"}, headers={"If-Match": tag})
                assert old.status_code == 412
            assert http.put("/notes/m5", json={"title": "new"}).json()["version"] == 4

    # A service that does not run can be backed up, too.
    ended(command("backup", "--to", str(tmp_path / "again"), **service.environment))
    service.environment["NOTELLM_CELLS"] = "1"
    said = ended(command("backup", "--to", str(tmp_path / "more"), **service.environment), 2)
    assert "the store has 3 cells and NOTELLM_CELLS is 1: set it to 3" in said


def _use_cells(notellm: NoteLLMClient) -> None:
    """Each note is in one of three cells, and what is asked of all is of all."""
    bowls = [{"note_id": f"c{number}", "title": f"Ramen, bowl {number}", "hashtags": ["Ramen"]} for number in range(12)]
    [stored] = notellm.put_all(bowls)
    assert stored.accepted == 12

    def found(**rules: object) -> set[str]:
        related = notellm.related("c3", k=50, duplicates="keep", **rules).items
        return {item.note_id for item in related if item.note_id.startswith("c")}

    assert notellm.patch("c3", {"category": "Food"}, wait_s=10).version == 2
    wait_until(lambda: found() == {f"c{number}" for number in range(12)} - {"c3"})
    notellm.delete("c5")
    assert "c5" not in found()
    assert notellm.hashtags("ram").items[0].notes == 11
    viewed = [
        {"event_id": f"e{number}", "user_id": "u", "note_id": f"c{number}", "type": "view", "ts": time.time()}
        for number in range(3)
    ]
    assert notellm.record(viewed).accepted == 3
    assert found(for_user="u") == found() - {"c0", "c1", "c2"}
    assert [notellm.get(note_id).exposure for note_id in ("c0", "c1", "c2")] == [1, 1, 1]
    for number in {*range(12)} - {5}:
        notellm.delete(f"c{number}")

"""What older releases left is read whole, or refused with the step to take; so is what newer ones may leave.

The older forms are written here byte by byte: a store and a backup as the build of November 22, 2026 left them, before
attributes, languages, hidden notes, ids in order, exposure and names of readers.
"""

import gzip
import json
import logging
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgpack
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.redis import RedisServer

from indexer.index import VectorIndex
from indexer.snapshot import FORMAT as SNAPSHOT_FORMAT
from indexer.snapshot import Snapshots
from indexer.types import Change
from model.network.checkpoint import ADAPTER, MANIFEST, CheckpointError, described, load_manifest
from model.note import Note
from service.backup import backup, events, files
from service.backup.backup import back_up
from service.backup.restore import restore
from service.cli.main import cli
from service.processes.health import Readiness
from service.processes.redis_check import RedisCheck
from service.settings import MINI, Settings, SetupError
from service.store.attribution.exposure import Exposure
from service.store.attribution.readers import name_of, sync_key_of
from service.store.cells.ring import Cells
from service.store.changes import RedisChangeStream
from service.store.connection import open_sync_redis
from service.store.events import RedisEvents
from service.store.hashtags.completion import Completion
from service.store.hashtags.vocabulary import RedisHashtags
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredNote
from service.store.schema import FORMAT, STORE_FORMAT
from service.wiring.lists import write_lists
from service.wiring.rollout import rollout

MODEL, DIM = "00000000000000aa", 4
VECTOR = np.array([0.6, 0.0, 0.8, 0.0], dtype="<f4")
KYOTO = StoredNote(
    Note("n1", "Kyoto by bus", "Two days, three temples.", ("Kyoto", "city walk"), "Travel", 7),
    3,
    author="zoe",
    created_at="2026-11-20T09:00:00Z",
)
TEA = StoredNote(Note("n2", "Tea", ""), 1)
GONE = StoredNote(Note("n3"), 2, deleted=True)
SOURCE = bytes(range(16))
CLICK = {
    "event_id": "e1",
    "user_id": "reader",
    "note_id": "n1",
    "type": "click",
    "ts": 1795000000.25,
    "source_note_id": "n2",
}


def record(version: int, **fields: object) -> bytes:
    """The header of a fixed length, then the fields."""
    packed = b"".join(msgpack.packb(part) for pair in fields.items() for part in pair)
    return bytes([0x80 + 1 + len(fields)]) + msgpack.packb("version") + b"\xcf" + struct.pack(">Q", version) + packed


NOTES = {
    "n1": record(
        3,
        deleted=False,
        id="n1",
        title="Kyoto by bus",
        content="Two days, three temples.",
        hashtags=["Kyoto", "city walk"],
        category="Travel",
        exposure=7,
        author="zoe",
        created_at="2026-11-20T09:00:00Z",
        tags={"kyoto": "Kyoto", "citywalk": "city_walk"},
    ),
    "n2": record(
        1,
        deleted=False,
        id="n2",
        title="Tea",
        content="",
        hashtags=[],
        category=None,
        exposure=0,
        author=None,
        created_at=None,
        tags={},
    ),
    "n3": record(2, deleted=True, id="n3"),
}
PREDICTION = record(
    3,
    fingerprint=MODEL,
    vector=VECTOR.tobytes(),
    hashtags=[["kyoto", 0.75]],
    category=["Travel", 0.5],
    source=SOURCE,
)


async def older_store(redis: Redis) -> None:
    """All keys of that release; n2 waits for its worker."""
    for note_id, written in NOTES.items():
        await redis.set(f"notellm:v1:note:{note_id}", written)
    await redis.hset("notellm:v1:counts", mapping={"live": 2, "deleted": 1})
    await redis.zadd("notellm:v1:tag:kyoto", {"Kyoto": 1})
    await redis.zadd("notellm:v1:tag:citywalk", {"city_walk": 1})
    await redis.hset("notellm:v1:models", MODEL, DIM)
    await redis.set("notellm:v1:active", MODEL)
    await redis.sadd("notellm:v1:filled", MODEL)
    await redis.hset(f"notellm:v1:readings:{MODEL}", "n1", PREDICTION)
    await redis.xgroup_create(f"notellm:v1:jobs:{MODEL}", "workers", "0", mkstream=True)
    await redis.xadd(f"notellm:v1:jobs:{MODEL}", {"id": "n2", "version": 1})
    change = {"id": "n1", "version": 3, "fingerprint": MODEL, "vector": VECTOR.tobytes(), "written_ms": 1795000000000}
    await redis.xadd("notellm:v1:embeddings", change | {"category": "Travel", "author": "zoe"})
    await redis.xadd("notellm:v1:embeddings", {"id": "n3", "version": 2, "fingerprint": MODEL})
    await redis.hset("notellm:v1:cursors", f"shard-0/{MODEL}", "0-0 1795000000")
    await redis.xadd("notellm:v1:events", {"event": msgpack.packb(CLICK)})
    await redis.set("notellm:v1:event:e1", "", ex=1000)
    await redis.xadd("notellm:v1:writes", {"id": "n1"})


def older_backup(folder: Path) -> None:
    """Of the same community, in format 1."""
    folder.mkdir()
    kyoto = {"note_id": "n1", "version": 3, "title": "Kyoto by bus", "content": "Two days, three temples."}
    kyoto |= {"hashtags": ["Kyoto", "city walk"], "category": "Travel", "exposure": 7, "author": "zoe"}
    tea = {"note_id": "n2", "version": 1, "title": "Tea", "content": "", "hashtags": [], "category": None}
    notes = [
        kyoto | {"created_at": "2026-11-20T09:00:00Z"},
        tea | {"exposure": 0, "author": None, "created_at": None},
        {"note_id": "n3", "version": 2, "deleted": True},
    ]
    said = {
        "id": "n1",
        "version": 3,
        "hashtags": [["kyoto", 0.75]],
        "category": ["Travel", 0.5],
        "source": SOURCE.hex(),
    }
    lines = {
        "notes.jsonl.gz": notes,
        f"readings-{MODEL}.jsonl.gz": [said],
        f"failures-{MODEL}.jsonl.gz": [],
        "events.jsonl.gz": [{"entry": "1795000000250-0", "event": CLICK}],
        "dead.jsonl.gz": [],
    }
    for name, written in lines.items():
        (folder / name).write_bytes(gzip.compress("".join(f"{json.dumps(line)}\n" for line in written).encode()))
    (folder / f"vectors-{MODEL}.f32").write_bytes(VECTOR.tobytes())
    manifest = {
        "begun_at": "2026-11-22T00:00:00.000Z",
        "models": {MODEL: DIM},
        "active": MODEL,
        "live": 2,
        "deleted": 1,
    }
    counted = {"lines": {name: len(written) for name, written in lines.items()}, "malformed": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest | counted | {"format": 1, "notellm": "0.1.0"}))
    sums = [f"{sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums))


@pytest.fixture
def client(redis_server: RedisServer, redis: Redis) -> Iterator[SyncRedis]:
    with open_sync_redis(redis_server.url) as client:
        yield client


@pytest.fixture(params=["store", "backup"])
async def older(request: pytest.FixtureRequest, redis: Redis, client: SyncRedis, tmp_path: Path) -> str:
    """An older release's community, in place or out of its backup."""
    if request.param == "store":
        await older_store(redis)
    else:
        older_backup(tmp_path / "backup")
        assert restore(Cells.of([client]), tmp_path / "backup").live == 2
    return str(request.param)


async def test_the_community_of_an_older_release_is_there_to_the_last_field(
    older, redis, client, redis_server, tmp_path
):
    await RedisCheck(redis_server.url, Readiness()).start()
    store = RedisStore(redis, 10)
    await store.index_ids()
    await Completion(redis)()

    assert (await store.page("", 10)).records == [KYOTO, TEA]
    assert await store.get(["n3"]) == [GONE]
    assert (await store.counts(MODEL)).live == 2
    said = await store.suggestion("n1", MODEL)
    assert (said.version, said.hashtags, said.category) == (3, (("kyoto", 0.75),), ("Travel", 0.5))
    assert (await store.vector("n1", MODEL)).vector.tolist() == VECTOR.tolist()
    tags = (await RedisHashtags(redis).page("", "", 10)).items
    assert {(tag.tag, tag.notes, tag.spellings) for tag in tags} == {
        ("citywalk", 1, (("city_walk", 1),)),
        ("kyoto", 1, (("Kyoto", 1),)),
    }

    log = RedisEvents(redis)
    await log.complete()
    await Exposure(redis)()
    assert await log.seen("reader") == ["n1"]
    events.export(client, tmp_path / "events")
    [part] = (tmp_path / "events").glob("dt=*/*.parquet")
    [row] = pq.read_table(part, partitioning=None).to_pylist()
    assert row["user_id"] == name_of("reader", sync_key_of(client))
    assert (row["note_id"], row["event"], row["ts"]) == ("n1", "click", 1795000000250000)

    queue = JobQueue(redis, "w0", MODEL, DIM)
    assert await queue.open() == (1 if older == "backup" else 0)  # the store's job is there already
    assert [(item.job.note_id, item.job.version) for item in await queue.claim(10, 0.1)] == [("n2", 1)]


async def test_an_index_is_made_of_an_older_releases_store_and_stream(redis, client):
    await older_store(redis)
    stream = RedisChangeStream(client, MODEL, "shard-0")

    index = VectorIndex(DIM, MODEL)
    index.apply(stream.read("0-0", 10, 0))
    assert (len(index), index.lookup("n1").version) == (1, 3)
    _, everything = stream.everything()
    [change] = everything
    assert (change.id, change.version, change.vector.tolist()) == ("n1", 3, VECTOR.tolist())
    assert change.fields["hashtags"] == ("kyoto", "citywalk")
    assert stream.malformed == 0


async def test_what_is_written_in_an_older_store_is_the_next_version(redis):
    await older_store(redis)
    store = RedisStore(redis, 10)
    await store.index_ids()

    assert await store.put([KYOTO, StoredNote(Note("n3", "Back"), 0)]) == [3, 3]  # the same again; after a tombstone
    assert await store.put([StoredNote(Note("n2", "Green tea"), 0)]) == [2]


async def test_an_upgraded_store_is_backed_up_and_restored_as_what_it_was(redis, client, tmp_path):
    await older_store(redis)
    back_up(Cells.of([client]), tmp_path / "again")
    await redis.flushall()

    restore(Cells.of([client]), tmp_path / "again")

    assert await RedisStore(redis, 10).get(["n1", "n2", "n3"]) == [KYOTO, TEA, GONE]
    assert await redis.get("notellm:v1:note:n1") == NOTES["n1"]
    assert await redis.hget(f"notellm:v1:readings:{MODEL}", "n1") == PREDICTION


@pytest.mark.parametrize("format_", [1, 2, 3, SNAPSHOT_FORMAT + 1])
def test_a_snapshot_of_another_release_is_refused_and_the_next_one_takes_its_place(format_, tmp_path, caplog):
    """Whatever its files are called: nothing but the manifest is read."""
    manifest = {"format": format_, "fingerprint": MODEL, "shard": 0, "shards": 1, "files": {"gone.bin": "0" * 64}}
    if format_ <= SNAPSHOT_FORMAT:
        manifest |= {"cursor": "5-0"}
    written = json.dumps(manifest).encode()
    name = f"00000007-{sha256(written).hexdigest()[:16]}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "manifest.json").write_bytes(written)
    (tmp_path / "CURRENT").write_text(name)
    snapshots = Snapshots(tmp_path, MODEL)

    with caplog.at_level(logging.WARNING):
        assert snapshots.load() is None
    [said] = caplog.records
    assert (said.message, said.differs_in) == ("snapshot_refused", ["format"])
    assert snapshots.oldest_cursor() is None
    assert (tmp_path / name).is_dir()

    index = VectorIndex(DIM, MODEL)
    index.apply([Change("6-0", "n1", 1, MODEL, VECTOR)])
    snapshots.save(index.contents(), "6-0")
    assert Snapshots(tmp_path, MODEL).load()[1] == snapshots.oldest_cursor() == "6-0"


@pytest.mark.parametrize("kept", [STORE_FORMAT + 1, "anything else"])
async def test_a_store_of_a_newer_release_is_refused_by_processes_and_commands_and_left_as_it_is(
    kept, redis, redis_server, tmp_path, monkeypatch
):
    await older_store(redis)
    await redis.set(FORMAT, kept)
    before = {key: await redis.dump(key) for key in sorted(await redis.keys())}
    said = f"the store is of a newer release; this one reads format {STORE_FORMAT}: install the newer one, or restore"
    monkeypatch.setenv("NOTELLM_REDIS_URL", redis_server.url)

    with pytest.raises(SetupError, match=said):
        await RedisCheck(redis_server.url, Readiness()).start()
    with pytest.raises(SetupError, match=said):
        async with rollout(Settings()):
            raise AssertionError
    for command in (
        ["backup", "--to", str(tmp_path / "b")],
        ["events", "export", "--to", str(tmp_path / "e"), "--remove"],
    ):
        answer = CliRunner().invoke(cli, command)
        assert answer.exit_code == 1
        assert answer.output.startswith(f"Error: {said}"), answer.output
        assert answer.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert {key: await redis.dump(key) for key in sorted(await redis.keys())} == before
    await redis.set(FORMAT, STORE_FORMAT)
    await RedisCheck(redis_server.url, Readiness()).start()


def test_lists_are_not_made_of_a_store_of_a_newer_release(redis_server, client, tmp_path, monkeypatch):
    client.set(FORMAT, STORE_FORMAT + 1)
    monkeypatch.setenv("NOTELLM_REDIS_URL", redis_server.url)

    with pytest.raises(SetupError, match="the store is of a newer release"):
        write_lists(Settings(), tmp_path / "lists.parquet", 10)


async def test_a_backup_of_a_newer_release_is_refused_before_anything_is_written(redis, client, tmp_path):
    older_backup(tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup/manifest.json").read_bytes())
    newer = manifest | {"format": files.FORMAT + 1, "notellm": "9.1", "unknown": {}}
    (tmp_path / "backup/manifest.json").write_text(json.dumps(newer))
    (tmp_path / "backup/SHA256SUMS").write_text(files.sums(tmp_path / "backup"))

    with pytest.raises(backup.BackupError, match=r"made by notellm 9\.1 in format \d, .* install that version$"):
        restore(Cells.of([client]), tmp_path / "backup")
    assert await redis.keys() == []


@pytest.mark.parametrize("newer", [{"format": 2}, {"recipe": {"template": "new"}}], ids=["format", "template"])
def test_a_checkpoint_and_an_adapter_of_a_newer_release_are_refused_in_one_line(newer, tmp_path):
    manifest = json.loads((MINI / MANIFEST).read_text())
    for name, value in newer.items():
        manifest[name] = manifest[name] | value if isinstance(value, dict) else value

    for file, written in ((MANIFEST, manifest), (ADAPTER, {"base": "0" * 16, "manifest": manifest, "files": {}})):
        (tmp_path / file).write_text(json.dumps(written))
        with pytest.raises(CheckpointError, match=rf"^{tmp_path / file}.*[:;] install the release that made it$"):
            described(tmp_path)


def test_a_checkpoint_of_an_older_release_keeps_its_fingerprint(tmp_path):
    """Its recipe has fields that are gone."""
    manifest = json.loads((MINI / MANIFEST).read_text())
    gone = {"dtype": "bfloat16", "matryoshka": [], "hard_negatives": 0, "cached_negatives": 0}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"recipe": manifest["recipe"] | gone}))

    assert load_manifest(tmp_path) == load_manifest(MINI)


async def test_of_several_cells_the_first_has_the_format(redis, redis_server):
    await redis.set(FORMAT, STORE_FORMAT + 1)
    with pytest.raises(SetupError, match="newer release"):
        await RedisCheck(redis_server.url, Readiness(), cells=("c00", "c01")).start()

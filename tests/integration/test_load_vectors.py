"""What `notellm embed` wrote goes into the store and its indexes by one command, and no worker reads it again."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.checkpoint import tiny_checkpoint
from support.redis import RedisServer
from support.service import NOTELLM, Service, running, until

from model.inference.bulk.load import BulkError, begin, embed_missing
from model.inference.hashing import HashingBackend, text_vector
from model.note import Note
from service.backup.vectors import LoadedVectors, load_vectors
from service.store.cells.ring import Cells
from service.store.connection import open_sync_redis
from service.store.interfaces import Conflict
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.schema import ATTRIBUTES, EMBEDDINGS, JOBS, MOST_ATTRIBUTE_NAMES, NOTE, READINGS
from service.wiring import stores

MODEL = "hashing-a"
NOTES = [{"note_id": f"n{number:03}", "title": f"tea {number}", "hashtags": ["tea"]} for number in range(450)]
NOTES[0] |= {"attributes": {"price": 3}, "hidden": True, "author": "a1"}


@pytest.fixture
def store(redis_server: RedisServer, redis: Redis) -> Iterator[SyncRedis]:
    with open_sync_redis(redis_server.url) as client:
        yield client


def embedded(folder: Path, notes: list[dict[str, object]] = NOTES, name: str = "vectors") -> tuple[Path, Path]:
    """A file of notes, and the folder of their vectors in parts of 200."""
    source = folder / f"{name}.jsonl"
    source.write_bytes(b"\n".join(map(orjson.dumps, notes)))
    embed_missing(begin(source, folder / name, MODEL, 200), HashingBackend(MODEL))
    return source, folder / name


def load(store: SyncRedis, source: Path, vectors: Path) -> LoadedVectors:
    return load_vectors(Cells.of([store]), source, vectors)


def jobs(store: SyncRedis, model: str) -> int:
    return int(store.xlen(JOBS + model))  # type: ignore[arg-type]


async def test_an_attribute_of_another_type_is_refused_alone(tmp_path, store):
    notes = [{"note_id": name, "title": name, "attributes": {"price": price}} for name, price in (("a", 3), ("b", "3"))]

    loaded = load(store, *embedded(tmp_path, [*notes, {"note_id": "c", "title": "c"}]))

    assert (loaded.notes, loaded.new, loaded.rejected) == (2, 2, 1)
    assert loaded.problems == ("b: attributes.price: in other notes the type is number, here it is string",)


async def test_a_language_that_is_given_is_kept_and_others_are_detected(tmp_path, store):
    texts = {"a": "Wie man gutes Sauerteigbrot zu Hause backt", "b": "How to bake good bread at home", "c": "Brot"}
    notes = [{"note_id": name, "title": title} for name, title in texts.items()]
    notes[1]["language"] = "fr"

    load(store, *embedded(tmp_path, notes))

    records = [StoredNote.decode(store.get(NOTE + name)) for name in texts]
    assert [(record.language, record.detected_language) for record in records] == [
        (None, "de"),
        ("fr", None),
        (None, None),
    ]


async def test_an_attribute_of_one_name_too_many_is_refused_alone(tmp_path, store):
    store.hset(ATTRIBUTES, mapping={f"number:n{number}": 1 for number in range(MOST_ATTRIBUTE_NAMES)})
    notes = [{"note_id": name, "title": name, "attributes": {name: 1}} for name in ("n5", "new")]

    loaded = load(store, *embedded(tmp_path, notes))

    assert (loaded.notes, loaded.rejected) == (1, 1)
    assert loaded.problems[0].startswith("new: attributes.new: a new name, and the notes already have 10,000 different")


async def test_every_note_is_stored_with_its_vector_and_no_job(tmp_path, store, redis):
    loaded = load(store, *embedded(tmp_path))

    assert str(loaded) == f"450 notes with vectors of model {MODEL} in the store, 450 of them new"
    assert await JobQueue(redis, "w", MODEL, 16).open() == 0  # a worker finds nothing to do
    assert jobs(store, MODEL) == 0
    assert await RedisStore(redis, 10).attribute_types() == {"price": "number"}
    [first, note] = await RedisStore(redis, 10).get(["n000", "n449"])
    assert (first.attributes, first.hidden, first.author) == ({"price": 3}, True, "a1")
    assert (note.version, note.note.title, note.note.hashtags) == (1, "tea 449", ("tea",))
    prediction = StoredPrediction.decode(store.hget(READINGS + MODEL, "n449"))
    assert prediction.version == 1
    assert np.allclose(prediction.vector, text_vector(f"{MODEL}tea 449"))
    changes = store.xrange(EMBEDDINGS)
    assert [fields[b"id"].decode() for _, fields in changes] == [note["note_id"] for note in NOTES]
    assert {(fields[b"version"], fields[b"fingerprint"]) for _, fields in changes} == {(b"1", MODEL.encode())}


async def test_a_repeated_load_changes_nothing_and_a_later_write_is_read(tmp_path, store, redis):
    source, vectors = embedded(tmp_path)
    load(store, source, vectors)
    before = store.xlen(EMBEDDINGS)

    assert load(store, source, vectors).new == 0
    assert store.xlen(EMBEDDINGS) == before

    await RedisStore(redis, 10).put([StoredNote(Note("n000", "coffee"), 0)])
    assert jobs(store, MODEL) == 1


async def test_each_note_goes_to_its_cell_and_an_attribute_has_one_type_in_all(tmp_path, redis_server, cells):
    notes = [note for note in NOTES if "attributes" not in note]
    priced = [note_id for note_id in (f"p{number}" for number in range(30)) if cells.place_of(note_id) != 2]
    notes += [{"note_id": note_id, "title": "p", "attributes": {"price": 3}} for note_id in priced]
    stranger = next(note_id for note_id in (f"s{number}" for number in range(30)) if cells.place_of(note_id) == 2)
    strange = {"note_id": stranger, "title": "s", "attributes": {"price": "cheap"}}
    with stores.open_sync_cells(redis_server.url, len(cells)) as clients:
        loaded = load_vectors(clients, *embedded(tmp_path, [*notes, strange, {"note_id": "last", "title": "l"}]))
        again = load_vectors(clients, tmp_path / "vectors.jsonl", tmp_path / "vectors")

        count = len(notes) + 1
        assert (loaded.notes, loaded.new, loaded.rejected) == (count, count, 1)
        assert (again.notes, again.new, again.rejected) == (count, 0, 1)
        why = "attributes.price: in other notes the type is number, here it is string"
        assert loaded.problems == (f"{stranger}: {why}",)
        for number, redis in enumerate(clients):
            own = {
                note["note_id"] for note in [*notes, {"note_id": "last"}] if cells.place_of(note["note_id"]) == number
            }
            assert len(own) > 100
            assert {key.decode() for key in redis.hkeys(READINGS + MODEL)} == own
            assert {fields[b"id"].decode() for _, fields in redis.xrange(EMBEDDINGS)} == own
            assert jobs(redis, MODEL) == 0
        assert len(stores.change_stream(clients, MODEL, "i").read("0-0", 1000, 0)) == count
    assert await stores.note_store(cells, 10).attribute_types() == {"price": "number"}
    assert await stores.job_queue(cells, "w", MODEL, 16).open() == 0
    assert await stores.registry(cells).active() == MODEL


async def test_a_type_that_no_note_has_any_longer_is_free_for_a_load(tmp_path, redis_server, cells):
    store = stores.note_store(cells, 10)
    await store.put([StoredNote(Note("old", "old"), 0, attributes={"price": "cheap"})])
    await store.delete("old")
    with stores.open_sync_cells(redis_server.url, len(cells)) as clients:
        assert load_vectors(clients, *embedded(tmp_path, NOTES[:3])).rejected == 0

    assert await store.attribute_types() == {"price": "number"}
    other = next(note_id for note_id in "abc" if cells.place_of(note_id) != cells.place_of("n000"))
    refused = await store.put([StoredNote(Note(other, "o"), 0, attributes={"price": "cheap"})])
    assert refused == [Conflict("price", "number", "string")]


async def test_other_registered_models_read_the_notes_and_a_stranger_is_refused(tmp_path, store, redis):
    source, vectors = embedded(tmp_path)
    await JobQueue(redis, "w", "hashing-b", 16).open()
    with pytest.raises(BulkError, match=f"vectors of model {MODEL}, and the store is of hashing-b: embed with"):
        load(store, source, vectors)
    assert not store.exists(EMBEDDINGS)

    await JobQueue(redis, "w", MODEL, 16).open()
    load(store, source, vectors)
    assert (jobs(store, MODEL), jobs(store, "hashing-b")) == (0, 450)


def test_notes_that_the_service_would_refuse_are_named(tmp_path, store):
    notes = [*NOTES[:3], {"note_id": "long", "title": "x" * 100_000}, {"note_id": "n/1", "title": "tea"}]

    loaded = load(store, *embedded(tmp_path, notes))

    assert (loaded.notes, loaded.rejected) == (3, 2)
    assert [problem.partition(":")[0] for problem in loaded.problems] == ["long", "n/1"]


def test_vectors_that_are_not_of_the_notes_are_refused(tmp_path, store):
    source, vectors = embedded(tmp_path)
    (vectors / "part-00001.parquet").rename(tmp_path / "away")
    with pytest.raises(BulkError, match="1 of 3 parts are missing"):
        load(store, source, vectors)
    (tmp_path / "away").rename(vectors / "part-00000.parquet")
    (vectors / "part-00001.parquet").write_bytes((vectors / "part-00000.parquet").read_bytes())
    with pytest.raises(BulkError, match=r"part-00000\.parquet holds vectors of other notes"):
        load(store, source, vectors)
    source.write_bytes(source.read_bytes() + b'\n{"note_id": "new", "title": "tea"}')
    with pytest.raises(BulkError, match=r"another input than vectors\.jsonl is now"):
        load(store, source, vectors)
    with pytest.raises(BulkError, match="not what `notellm embed` wrote"):
        load(store, source, tmp_path / "nothing")
    assert not store.exists(EMBEDDINGS)


def test_the_commands_make_notes_searchable_in_a_running_service(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint")
    source = tmp_path / "notes.jsonl"
    source.write_bytes(b"\n".join(map(orjson.dumps, NOTES[:60])))
    with running(Service(tmp_path, tmp_path / "checkpoint")) as service:
        for command in (
            ["embed", "--in", source, "--out", tmp_path / "v", "--checkpoint", tmp_path / "checkpoint"],
            ["load", source, "--vectors", tmp_path / "v"],
        ):
            done = subprocess.run(
                [*NOTELLM, *map(str, command)], env=service.environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        with service.client() as client:
            until(lambda: client.status().notes.searchable == 60)
            assert len(client.related("n000", k=10).items) == 10
        worker = next((service.state / "run").glob("worker*.ops")).read_text()
        assert "notellm_notes_embedded_total 0.0" in httpx.get(f"http://127.0.0.1:{worker}/metrics").text

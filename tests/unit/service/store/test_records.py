import struct

import msgpack
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.change_stream import encode_change

from indexer.types import Change
from model.note import Note
from service.store.records import EmbedJob, StoredFailure, StoredNote, StoredPrediction, decode_change

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
optional = st.none() | text
versions = st.integers(0, 2**53)
scores = st.tuples(text, st.floats(0, 1))
vectors = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8).map(lambda row: np.array(row, dtype=np.float32))
notes = st.builds(Note, text, text, text, st.lists(text, max_size=4).map(tuple), optional, st.integers(0, 2**53 - 1))


values = text | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.booleans()
more = {
    "attributes": st.dictionaries(text, values | st.lists(text, min_size=1).map(tuple), max_size=4),
    "language": optional,
    "hidden": st.booleans(),
    "detected": st.none() | st.sampled_from(["", "en", "zho"]),
}


@given(st.builds(StoredNote, notes, versions, optional, optional, **more))
def test_a_note_survives_the_wire(stored):
    assert StoredNote.decode(stored.encode()) == stored


def test_a_tombstone_carries_no_text():
    tombstone = StoredNote(Note("n1", "secret title", "secret"), 4, author="secret", deleted=True).encode()

    assert msgpack.unpackb(tombstone) == {"version": 4, "deleted": True, "id": "n1"}


@given(st.builds(StoredPrediction, versions, text, vectors, st.lists(scores).map(tuple), st.none() | scores))
def test_a_reading_survives_the_wire(prediction):
    decoded = StoredPrediction.decode(prediction.encode())

    assert decoded.vector.dtype == np.float32
    assert np.array_equal(decoded.vector, prediction.vector)
    assert (decoded.version, decoded.fingerprint, decoded.hashtags, decoded.category) == (
        prediction.version,
        prediction.fingerprint,
        prediction.hashtags,
        prediction.category,
    )


@given(versions, text)
def test_a_failure_survives_the_wire(version, reason):
    assert StoredFailure.decode(StoredFailure(version, reason).encode()) == StoredFailure(version, reason)


def test_a_job_names_a_version_of_a_note_and_the_trace_of_its_write():
    fields = {b"id": "京都".encode(), b"version": b"258"}

    assert EmbedJob.decode(fields) == EmbedJob("京都", 258)
    assert EmbedJob.decode(fields | {b"traceparent": b"00-4b-00-01"}) == EmbedJob("京都", 258, "00-4b-00-01")


@given(text, versions, text, st.none() | vectors, st.none() | st.integers(0, 2**53))
def test_a_change_survives_the_wire(note_id, version, fingerprint, vector, written_ms):
    change = Change("5-0", note_id, version, fingerprint, vector, written_ms=written_ms)
    decoded = decode_change("5-0", encode_change(change))

    assert (decoded.cursor, decoded.id, decoded.version, decoded.fingerprint, decoded.written_ms) == (
        "5-0",
        note_id,
        version,
        fingerprint,
        written_ms,
    )
    assert (decoded.vector is None) == (vector is None)
    assert vector is None or np.array_equal(decoded.vector, vector)


def test_a_vector_travels_as_little_endian_float32():
    fields = encode_change(Change("1-0", "n1", 1, "model-a", np.array([1.0, -0.5], dtype=np.float32)))

    assert fields[b"vector"] == struct.pack("<2f", 1.0, -0.5)


def test_scripts_find_the_version_at_a_fixed_place():
    note = StoredNote(Note("n1", "title"), version=258).encode()
    prediction = StoredPrediction(258, "model-a", np.ones(1, dtype=np.float32), (), None).encode()

    assert note[10:18] == prediction[10:18] == bytes([0, 0, 0, 0, 0, 0, 1, 2])
    assert (note[26], StoredNote(Note("n1"), 1, deleted=True).encode()[26]) == (0xC2, 0xC3)
    assert prediction[30:].startswith(msgpack.packb("model-a"))


@pytest.mark.parametrize("decode", [StoredNote.decode, StoredPrediction.decode, StoredFailure.decode])
@given(garbage=st.binary(max_size=60))
def test_garbage_is_a_value_error(decode, garbage):
    with pytest.raises(ValueError):  # noqa: PT011 - every kind of damage has its own message
        decode(garbage)


@pytest.mark.parametrize("decode", [StoredNote.decode, StoredPrediction.decode])
@given(data=st.data())
def test_a_record_with_a_field_of_another_type_is_a_value_error(decode, data):
    full = StoredNote(Note("n1"), 1, attributes={"a": 1}, language="en", hidden=True, detected="")
    good = full if decode == StoredNote.decode else _reading()
    fields = msgpack.unpackb(good.encode())
    name = data.draw(st.sampled_from([name for name in fields if name not in {"tags", "deleted"}]))
    wrong = data.draw(st.sampled_from([{"a": None}, 1.5, [1], [["a"]], True, b"\x01"]))
    assume(not (name == "hidden" and wrong is True))

    with pytest.raises(ValueError):  # noqa: PT011
        decode(msgpack.packb(fields | {name: wrong}))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"id": b"n1"},
        {b"version": b"1"},
        {b"id": b"n1", b"version": b"one"},
        {b"id": b"\xff", b"version": b"1"},
        {b"id": b"n1", b"version": b"1", b"fingerprint": b"\xff", b"vector": b"\0\0\0\0"},
        {b"id": b"n1", b"version": b"x", b"fingerprint": b"m", b"vector": b"\0\0\0\0"},
        {b"id": b"n1", b"version": b"1", b"fingerprint": b"m", b"vector": b"\0\0\0"},
        {b"id": b"n1", b"version": b"1", b"fingerprint": b"m", b"vector": b""},
    ],
)
def test_a_malformed_entry_of_a_stream_is_a_value_error(fields):
    with pytest.raises(ValueError):  # noqa: PT011
        decode_change("1-0", fields)


def test_a_note_names_each_of_its_hashtags_once_by_key_and_spelling():
    """The script that stores it counts these."""
    record = StoredNote(Note("n1", "a", hashtags=("#Street Food", "streetfoods", "#", "京都", "Cafe\u0301", "c++")), 1)

    assert msgpack.unpackb(record.encode())["tags"] == {
        "streetfood": "Street_Food",
        "京都": "京都",
        "caf\xe9": "Caf\xe9",
    }


def _reading() -> StoredPrediction:
    return StoredPrediction(1, "model-a", np.ones(2, dtype=np.float32), (("a", 0.5),), ("Travel", 0.9))

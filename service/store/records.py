"""The records of Redis and the entries of its streams: encode beside decode. `service.store.schema` has their keys.

Notes and readings begin with a header of fixed length, so that a script inside Redis reads the version without
unpacking the rest: one byte of map header, ``"version"`` and an 8-byte unsigned integer; then ``"deleted"`` and a
boolean in a note. They are valid msgpack.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import msgpack
import numpy as np
from numpy.typing import NDArray

from indexer.types import Change
from model.note import Note
from model.text.suggestions import spelled
from service.contract.events import EventType


@dataclass(frozen=True, slots=True)
class Event:
    """A reader did something with a note, having come from another (``source_note_id``) or from elsewhere.

    ``ts`` is in seconds since 1970.
    """

    event_id: str
    user_id: str
    note_id: str
    type: EventType
    ts: float
    source_note_id: str | None = None

    def encode(self) -> bytes:
        """The record: a msgpack map."""
        record: bytes = msgpack.packb(asdict(self))
        return record


SOURCE_BYTES = 16
Fields = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A note with what the service knows of it. A tombstone is a record with ``deleted`` and no text.

    ``author`` and ``created_at`` are kept for the answers; the model never sees them.
    """

    note: Note
    version: int
    author: str | None = None
    created_at: str | None = None
    deleted: bool = False

    def encode(self) -> bytes:
        """The record. Raises ValueError on text that is not valid Unicode, OverflowError beyond 64 bits."""
        if self.deleted:
            return _record(self.version, {"deleted": True, "id": self.note.id})
        note = self.note
        return _record(
            self.version,
            {
                "deleted": False,
                "id": note.id,
                "title": note.title,
                "content": note.content,
                "hashtags": note.hashtags,
                "category": note.category,
                "exposure": note.exposure,
                "author": self.author,
                "created_at": self.created_at,
                "tags": spelled(note.hashtags),
            },
        )

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Inverse of `encode`. Raises ValueError on a malformed record."""
        read = _Map(record)
        note_id, version, deleted = (
            read.take("id", str),
            read.take("version", int),
            read.take("deleted", bool),
        )
        if deleted:
            return cls(Note(note_id), version, deleted=True)
        note = Note(
            id=note_id,
            title=read.take("title", str),
            content=read.take("content", str),
            hashtags=tuple(read.texts("hashtags")),
            category=read.take("category", str, type(None)),
            exposure=read.take("exposure", int),
        )
        return cls(note, version, read.take("author", str, type(None)), read.take("created_at", str, type(None)))


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """What the model of ``fingerprint`` said about one version of a note; ``vector`` has shape (dim,).

    ``source`` is what `source_of` gave for what the model was asked: where it is the same, so is the answer. Records
    written before there was one have none, and equal nothing.
    """

    version: int
    fingerprint: str
    vector: NDArray[np.float32]
    hashtags: tuple[tuple[str, float], ...]
    category: tuple[str, float] | None
    source: bytes = b""

    def encode(self) -> bytes:
        """The record; the vector travels as little-endian float32, 4 * dim bytes."""
        return _record(
            self.version,
            {
                "fingerprint": self.fingerprint,
                "vector": pack_vector(self.vector),
                "hashtags": self.hashtags,
                "category": self.category,
                "source": self.source,
            },
        )

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Inverse of `encode`. Raises ValueError on a malformed record."""
        read = _Map(record)
        category = read.take("category", list, type(None))
        return cls(
            read.take("version", int),
            read.take("fingerprint", str),
            unpack_vector(read.take("vector", bytes)),
            tuple(scored(item) for item in read.take("hashtags", list)),
            None if category is None else scored(category),
            read.source(),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the worker gave up one version of a note; ``reason`` holds no text of the note."""

    version: int
    reason: str

    def encode(self) -> bytes:
        """The record."""
        return _record(self.version, {"reason": self.reason})

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Inverse of `encode`. Raises ValueError on a malformed record."""
        read = _Map(record)
        return cls(read.take("version", int), read.take("reason", str))


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """store -> worker: this version of this note wants to be embedded. Written by the script that stores.

    ``traceparent`` names the trace of the write, if there is one.
    """

    note_id: str
    version: int
    traceparent: str | None = None

    def encode(self) -> dict[bytes, bytes]:
        """The entry's fields."""
        trace = {b"traceparent": self.traceparent.encode()} if self.traceparent else {}
        return {b"id": self.note_id.encode(), b"version": b"%d" % self.version, **trace}

    @classmethod
    def decode(cls, fields: Fields) -> Self:
        """Inverse of `encode`. Raises ValueError on a malformed entry."""
        trace = _text(fields, b"traceparent") if b"traceparent" in fields else None
        return cls(_text(fields, b"id"), _number(fields, b"version"), trace)


def encode_change(change: Change) -> dict[bytes, bytes]:
    """An entry of the embeddings stream; a delete has no vector. The cursor is the id that Redis gives it."""
    fields = {
        b"id": change.id.encode(),
        b"version": b"%d" % change.version,
        b"fingerprint": change.fingerprint.encode(),
    }
    if change.vector is not None:
        fields[b"vector"] = pack_vector(change.vector)
    for name, label in ((b"category", change.category), (b"author", change.author)):
        if label is not None:
            fields[name] = label.encode()
    if change.written_ms is not None:
        fields[b"written_ms"] = b"%d" % change.written_ms
    return fields


def decode_change(cursor: str, fields: Fields) -> Change:
    """Inverse of `encode_change`. Raises ValueError on a malformed entry."""
    vector = unpack_vector(fields[b"vector"]) if b"vector" in fields else None
    # Entries of older releases have no labels, and deletes no time of writing.
    category, author = (fields[name].decode() if name in fields else None for name in (b"category", b"author"))
    return Change(
        cursor,
        _text(fields, b"id"),
        _number(fields, b"version"),
        _text(fields, b"fingerprint"),
        vector,
        category,
        author,
        _number(fields, b"written_ms") if b"written_ms" in fields else None,
    )


def source_of(note: Note, max_hashtags: int) -> bytes:
    """`SOURCE_BYTES` that name what the model is asked: the note's fields that stand in a prompt, and the number."""
    asked = msgpack.packb([note.title, note.content, note.hashtags, max_hashtags])
    return hashlib.blake2b(asked, digest_size=SOURCE_BYTES).digest()


def pack_vector(vector: NDArray[np.float32]) -> bytes:
    """Little-endian float32, 4 * dim bytes."""
    return vector.astype("<f4", copy=False).tobytes()


def unpack_vector(data: bytes) -> NDArray[np.float32]:
    """Inverse of `pack_vector`, read-only. Raises ValueError on no floats or half a float."""
    if not data:
        raise ValueError("a vector has at least one dimension")
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)


def scored(item: object) -> tuple[str, float]:
    """A [name, score] pair as it comes out of msgpack. Raises ValueError when it is something else."""
    match item:
        case [str() as name, float() | int() as score]:
            return name, float(score)
        case _:
            raise ValueError("expected [name, score]")


def _record(version: int, rest: Mapping[str, object]) -> bytes:
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(1 + len(rest))
    packer.pack("version")
    header: bytes = packer.bytes() + b"\xcf" + struct.pack(">Q", version)
    packer.reset()
    for name, value in rest.items():
        packer.pack(name)
        packer.pack(value)
    return header + bytes(packer.bytes())


class _Map:
    """A msgpack map, read field by field with its types checked."""

    def __init__(self, record: bytes) -> None:
        unpacked = msgpack.unpackb(record)
        if not isinstance(unpacked, dict):
            raise ValueError("a record is a msgpack map")  # noqa: TRY004 - malformed data, not a caller's type
        self._map = unpacked

    def take(self, name: str, *types: type) -> Any:
        value = self._map.get(name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"field {name} is missing or of type {type(value).__name__}")
        return value

    def source(self) -> bytes:
        source: bytes = self.take("source", bytes, type(None)) or b""
        if len(source) not in (0, SOURCE_BYTES):
            raise ValueError(f"a source has {SOURCE_BYTES} bytes, this one {len(source)}")
        return source

    def texts(self, name: str) -> list[str]:
        values = self.take(name, list)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"field {name} holds something else than text")
        return list(values)


def _text(fields: Fields, name: bytes) -> str:
    if name not in fields:
        raise ValueError(f"field {name.decode()} is missing")
    return fields[name].decode()


def _number(fields: Fields, name: bytes) -> int:
    return int(_text(fields, name))

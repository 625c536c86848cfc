"""The records of Redis and the entries of its streams; `service.store.schema` names their keys.

Notes and predictions begin with a header of fixed length, so that a script inside Redis takes the version out of it
without unpacking the rest: one byte of map header, ``"version"`` and an 8-byte unsigned integer; then ``"deleted"`` and
a boolean in a note. They are valid msgpack. Scripts write the entries of jobs and changes.
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

SOURCE_BYTES = 16

# The fields of a stream's entry, as redis-py returns them.
Fields = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A note with its version. A tombstone is a record with ``deleted`` and no text.

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
        fields = _Map(record)
        note_id, version = fields.take("id", str), fields.take("version", int)
        if fields.take("deleted", bool):
            return cls(Note(note_id), version, deleted=True)
        note = Note(
            id=note_id,
            title=fields.take("title", str),
            content=fields.take("content", str),
            hashtags=tuple(fields.texts("hashtags")),
            category=fields.take("category", str, type(None)),
            exposure=fields.take("exposure", int),
        )
        return cls(note, version, fields.take("author", str, type(None)), fields.take("created_at", str, type(None)))


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """What the model of ``fingerprint`` predicted for one version of a note; ``vector`` has shape (dim,).

    ``source`` is the `source_of` the note: where it is the same, so is the prediction. Records written before it
    existed have an empty one, which equals no other.
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
        fields = _Map(record)
        category = fields.take("category", list, type(None))
        return cls(
            fields.take("version", int),
            fields.take("fingerprint", str),
            unpack_vector(fields.take("vector", bytes)),
            tuple(scored(item) for item in fields.take("hashtags", list)),
            None if category is None else scored(category),
            fields.source(),
        )


@dataclass(frozen=True, slots=True)
class StoredFailure:
    """Why one version of a note was dead-lettered; ``reason`` holds no text of the note."""

    version: int
    reason: str

    def encode(self) -> bytes:
        """The record."""
        return _record(self.version, {"reason": self.reason})

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Inverse of `encode`. Raises ValueError on a malformed record."""
        fields = _Map(record)
        return cls(fields.take("version", int), fields.take("reason", str))


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


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """store -> worker: predict for this version of this note. ``traceparent`` names the trace of the write."""

    note_id: str
    version: int
    traceparent: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Self:
        """The job of an entry. Raises ValueError on a malformed one."""
        trace = _text(fields, b"traceparent") if b"traceparent" in fields else None
        return cls(_text(fields, b"id"), _number(fields, b"version"), trace)


def decode_change(cursor: str, fields: Fields) -> Change:
    """The change of an entry of the embeddings stream. Raises ValueError on a malformed one."""
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


def parse_entry_id(id_: str) -> tuple[int, int]:
    """The id of a stream's entry as milliseconds and number, ordered as entries are."""
    ms, _, number = id_.partition("-")
    return int(ms), int(number)


def source_of(note: Note, max_hashtags: int) -> bytes:
    """Digest of a prompt's inputs: the note's fields that stand in it and the number of hashtags; `SOURCE_BYTES`."""
    inputs = msgpack.packb([note.title, note.content, note.hashtags, max_hashtags])
    return hashlib.blake2b(inputs, digest_size=SOURCE_BYTES).digest()


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
    """A msgpack map whose fields are type-checked."""

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

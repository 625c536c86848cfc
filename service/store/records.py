"""The records of Redis and the entries of its streams; `service.store.schema` names their keys.

Notes and predictions begin with a header of fixed length, so that a script inside Redis takes the version out of it
without unpacking the rest: one byte of map header, ``"version"`` and an 8-byte unsigned integer; then ``"deleted"`` and
a boolean in a note. They are valid msgpack. Scripts write the entries of jobs and changes.
"""

import hashlib
import struct
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Self

import msgpack
import numpy as np
from numpy.typing import NDArray

from indexer.filters.expression import Fields as Compared
from indexer.filters.expression import Value
from indexer.types import Change
from model.note import Note
from model.text.hashtags import fold
from model.text.languages import detect_language
from model.text.suggestions import spelled
from service.contract.events import EventType
from service.contract.fields import Attribute, seconds

SOURCE_BYTES = 16
# How long a reader is not shown again what they have seen, and how many notes at most.
SEEN_S = 90 * 24 * 3600
SEEN_MOST = 1000

# The fields of a stream's entry, as redis-py returns them.
Fields = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A note with its version. A tombstone is a record with ``deleted`` and no text.

    What stands behind ``note`` is kept for answers and filters; the model never sees it. ``detected`` is the language
    that was detected, empty where it is unsure, None where one is given, or where an older release wrote the record.
    ``shown`` is no part of the record: how often events say that the note was shown.
    """

    note: Note
    version: int
    author: str | None = None
    created_at: str | None = None
    deleted: bool = False
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    language: str | None = None
    hidden: bool = False
    detected: str | None = None
    shown: int = 0

    @property
    def exposure(self) -> int:
        """The exposure that a client gave, else how often the note was shown."""
        return self.note.exposure or self.shown

    @property
    def detected_language(self) -> str | None:
        """The language that the service takes the text for; None where one is given, or where it is unsure."""
        if self.language is None and self.detected is None:
            return detect_language(self.note.title, self.note.content)
        return self.detected or None

    def encode(self) -> bytes:
        """The record. Raises ValueError on text that is not valid Unicode, OverflowError beyond 64 bits.

        A note that has nothing of what came later is the same bytes as in older releases, but for ``detected``, which
        is last: `service.store.notes` compares records without it.
        """
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
            }
            | ({"attributes": dict(sorted(self.attributes.items()))} if self.attributes else {})
            | ({} if self.language is None else {"language": self.language})
            | ({"hidden": True} if self.hidden else {})
            | ({} if self.detected is None else {"detected": self.detected}),
        )

    @classmethod
    def decode(cls, record: bytes, shown: int = 0) -> Self:
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
        return cls(
            note,
            version,
            fields.take("author", str, type(None)),
            fields.take("created_at", str, type(None)),
            attributes=fields.attributes(),
            language=fields.take("language", str, type(None)),
            hidden=bool(fields.take("hidden", bool, type(None))),
            detected=fields.take("detected", str, type(None)),
            shown=shown,
        )


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

    ``ts`` is in seconds since 1970. What ``value`` means is its sender's affair; ``answer_id`` and ``position``
    (from 1) say where the note stood. Records of older releases have none of the three.
    """

    event_id: str
    user_id: str
    note_id: str
    type: EventType
    ts: float
    source_note_id: str | None = None
    value: float | None = None
    answer_id: str | None = None
    position: int | None = None

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
    shown = _number(fields, b"exposure") if b"exposure" in fields else 0
    # Deletes have no time of writing.
    note = StoredNote.decode(fields[b"note"], shown) if b"note" in fields else None
    return Change(
        cursor,
        _text(fields, b"id"),
        _number(fields, b"version"),
        _text(fields, b"fingerprint"),
        vector,
        _number(fields, b"written_ms") if b"written_ms" in fields else None,
        fields_of(note) if note else _labels(fields),
        hidden=note is not None and note.hidden,
        # An older release takes it for a delete of this version, which has no effect.
        keeps_vector=vector is None and note is not None,
    )


def _labels(fields: Fields) -> Compared:
    """The fields of an older release's entry, which carries no note."""
    labels = {name: _text(fields, name.encode()) for name in ("category", "author") if name.encode() in fields}
    return labels | ({"category": fold_category(labels["category"])} if "category" in labels else {})


_folded = lru_cache(1 << 16)(fold)  # a community has few hashtags, and folding one takes 2 us


def fields_of(stored: StoredNote) -> Compared:
    """What a filter compares of a note; what is missing is left out. See `indexer.types.Fields`.

    Category and hashtags are folded (`fold_category`, `model.text.hashtags.fold`), as a filter's own words have to be.
    """
    note = stored.note
    named = {
        "category": None if note.category is None else fold_category(note.category),
        "author": stored.author,
        "language": stored.language or stored.detected_language,
        "created_at": None if stored.created_at is None else seconds(stored.created_at),
        "hashtags": tuple(dict.fromkeys(map(_folded, note.hashtags))) or None,
    }
    fields: dict[str, Value] = {name: value for name, value in named.items() if value is not None}
    fields["exposure"] = float(stored.exposure)
    for name, value in stored.attributes.items():
        fields[name] = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return fields


def fold_category(category: str) -> str:
    """The key of a category: trimmed, in NFC, without case."""
    return unicodedata.normalize("NFC", category.strip()).casefold()


def parse_entry_id(id_: str) -> tuple[int, int]:
    """The id of a stream's entry as milliseconds and number, ordered as entries are."""
    ms, _, number = id_.partition("-")
    return int(ms), int(number)


def source_of(note: Note, max_hashtags: int) -> bytes:
    """Digest of a prompt's inputs: the note's fields that stand in it and the number of hashtags; `SOURCE_BYTES`."""
    inputs = msgpack.packb([note.title, note.content, note.hashtags, max_hashtags])
    return hashlib.blake2b(inputs, digest_size=SOURCE_BYTES).digest()


def digest_of(user_id: str) -> str:
    """The name of an erased reader, which does not tell who it was."""
    return hashlib.blake2b(user_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()


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

    def attributes(self) -> dict[str, Attribute]:
        attributes: Mapping[Any, Any] = self.take("attributes", dict, type(None)) or {}
        if not all(isinstance(name, str) and _is_attribute(value) for name, value in attributes.items()):
            raise ValueError("field attributes holds something else than values by name")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in attributes.items()}

    def texts(self, name: str) -> list[str]:
        values = self.take(name, list)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"field {name} holds something else than text")
        return list(values)


def _is_attribute(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(text, str) for text in value)
    return isinstance(value, str | bool | int | float)


def _text(fields: Fields, name: bytes) -> str:
    if name not in fields:
        raise ValueError(f"field {name.decode()} is missing")
    return fields[name].decode()


def _number(fields: Fields, name: bytes) -> int:
    return int(_text(fields, name))

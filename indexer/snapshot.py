"""Snapshots of one shard's index on disk, each with the cursor of the last change that it includes.

::

    CURRENT              name of the newest folder
    00000007-<digest>/   digest: the first 16 hex digits of the manifest's SHA-256
        manifest.json    fingerprint, shard, cursor, generation, recipe, counts, SHA-256 of every file
        delta.npz        the delta, and which rows of the base are alive
        ids.msgpack      ids and fields of the delta, tombstones
        rows.npz         ids, versions and fields of the base's rows, and the vectors of a flat base
        base.faiss       codes of an IVF base
        store.faiss      vectors of an IVF base in float16; it is mapped and not loaded

A snapshot is written into a staging folder, synced file by file, and renamed; a crash at any point leaves the
older ones as they were. The files of an unchanged base are hard links to those of the last snapshot.
Checksums are verified before anything is parsed: FAISS loads most damaged files without an error and then returns
wrong hits.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Any, cast
from zipfile import ZipFile

import faiss
import msgpack
import numpy as np
from numpy.typing import NDArray

from indexer.base import Base, FlatBase, IvfBase, write_index
from indexer.index import Contents, VectorIndex
from indexer.low_priority import throttle
from indexer.recipes import IndexRecipe
from indexer.rows.columns import Column, Columns
from indexer.rows.id_cells import Ids
from indexer.rows.packed_fields import PackedFields
from indexer.rows.rows import Entries, Rows
from indexer.rows.store import SCRATCH_PREFIX, map_store

log = logging.getLogger(__name__)

# NumPy ships no types for it.
_format: Any = np.lib.format

FORMAT = 4
KEPT = 3
CURRENT = "CURRENT"
STAGING = "staging"
STAGED_POINTER = "CURRENT.staging"
MANIFEST = "manifest.json"
STORE = "store.faiss"
BASE_FILES = ("rows.npz", "base.faiss", STORE)
PIECE_BYTES = 1 << 20

Buffer = bytes | memoryview
# Writes a file's bytes, in pieces, with the function that it gets.
Content = Callable[[Callable[[Buffer], None]], object]


class _Damaged(Exception):
    """A file is missing or its checksum is wrong."""


class Snapshots:
    """The snapshots of one shard, for one model and one number of shards. For one thread at a time."""

    def __init__(self, folder: Path, fingerprint: str, shard: int = 0, shards: int = 1) -> None:
        self.shard, self.shards = shard, shards
        self._folder = folder
        self._base: tuple[Base | None, str] = None, ""  # the newest snapshot's, and that snapshot's name
        # With another number of shards, a shard has other ids.
        self._identity = {"format": FORMAT, "fingerprint": fingerprint, "shard": shard, "shards": shards}

    def save(self, contents: Contents, cursor: str) -> None:
        """Write a snapshot, make it the current one, and remove all but the last three.

        Raises:
            OSError: if it cannot be written; the older snapshots are then as they were.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        staged = self._folder / STAGING
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        digests = self._stage_base(staged, contents) | _write_all(staged, _delta_files(contents))
        manifest = json.dumps(self._identity | _description(contents) | {"cursor": cursor, "files": digests}, indent=1)
        digest = _write(staged / MANIFEST, lambda write: write(manifest.encode()))
        _sync(staged)
        names = self._names()
        name = f"{_number(names[0]) + 1 if names else 1:08d}-{digest[:16]}"
        staged.rename(self._folder / name)
        _sync(self._folder)
        _write(self._folder / STAGED_POINTER, lambda write: write(name.encode()))
        (self._folder / STAGED_POINTER).replace(self._folder / CURRENT)
        _sync(self._folder)
        self._base = contents.base, name
        for old in self._names()[KEPT:]:
            shutil.rmtree(self._folder / old, ignore_errors=True)

    def load(self) -> tuple[VectorIndex, str] | None:
        """The index and cursor of the current snapshot, or of the newest older one that is whole and fits.

        None if there is none; the log says why each was skipped.
        """
        for leftover in self._folder.glob(f"{SCRATCH_PREFIX}*"):
            leftover.unlink()
        for name in self._candidates():
            try:
                manifest = _manifest(self._folder / name)
                if foreign := self._differs_in(manifest):  # before the files, which another format may call otherwise
                    log.warning("snapshot_refused", extra={"snapshot": name, "differs_in": foreign})
                    continue
                files = _load(self._folder / name, manifest)
            except (_Damaged, OSError) as error:
                log.warning("snapshot_damaged", extra={"snapshot": name, "reason": str(error)})
                continue
            contents = _contents(manifest, files, self._folder / name)
            self._base = contents.base, name
            index = VectorIndex.restore(contents, self._folder)
            log.info("snapshot_loaded", extra={"snapshot": name, "rows": len(index), "cursor": manifest["cursor"]})
            return index, str(manifest["cursor"])
        return None

    def _stage_base(self, staged: Path, contents: Contents) -> dict[str, str]:
        """Link or write the base's files; returns their digests."""
        base, name = self._base
        if base is contents.base:
            try:
                digests = _manifest(self._folder / name)["files"]
                linked = {file: digest for file, digest in digests.items() if file in BASE_FILES}
                for file in linked:
                    (staged / file).hardlink_to(self._folder / name / file)
            except (_Damaged, OSError) as error:
                log.warning("snapshot_not_linked", extra={"snapshot": name, "reason": str(error)})
                for file in BASE_FILES:  # writing to a link would overwrite the older snapshot
                    (staged / file).unlink(missing_ok=True)
            else:
                return linked
        return _write_all(staged, _base_files(contents))

    def discard(self) -> None:
        """Remove all snapshots."""
        for name in self._names():
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def oldest_cursor(self) -> str | None:
        """Cursor of the oldest snapshot that `load` may fall back to; None if there is none.

        Only changes after it may ever be applied again.
        """
        for name in reversed(self._names()):
            with contextlib.suppress(_Damaged, OSError):
                manifest = _manifest(self._folder / name)
                if not self._differs_in(manifest):
                    return str(manifest["cursor"])
        return None

    def _differs_in(self, manifest: Mapping[str, Any]) -> list[str]:
        """What makes it a snapshot of another format, model or shard."""
        return [key for key, value in self._identity.items() if manifest.get(key) != value]

    def _names(self) -> list[str]:
        """Names of the snapshots, whole or damaged, newest first."""
        if not self._folder.is_dir():
            return []
        return sorted((path.name for path in self._folder.glob("[0-9]*-*")), key=_number, reverse=True)

    def _candidates(self) -> list[str]:
        names = self._names()
        try:
            current = (self._folder / CURRENT).read_text(errors="replace")
        except OSError:
            return names
        return sorted(names, key=lambda name: name != current)


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _write_all(folder: Path, files: Mapping[str, Content]) -> dict[str, str]:
    return {name: _write(folder / name, content) for name, content in files.items()}


def _write(path: Path, content: Content) -> str:
    """Write and sync a file, and return its SHA-256."""
    digest = sha256()
    with path.open("wb") as file:

        def write(data: Buffer) -> None:
            start_s = time.perf_counter()
            file.write(data)
            digest.update(data)
            throttle(start_s)

        content(write)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = (folder / MANIFEST).read_bytes()
    if sha256(manifest).hexdigest()[:16] != folder.name.partition("-")[2]:
        raise _Damaged(MANIFEST)
    parsed: dict[str, Any] = json.loads(manifest)
    return parsed


def _load(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a snapshot, verified; the store, which is mapped, is not among them."""
    files = {}
    for name, digest in manifest["files"].items():
        with (folder / name).open("rb") as file:
            if name == STORE:
                actual = file_digest(file, "sha256")
            else:
                files[name] = file.read()
                actual = sha256(files[name])
        if actual.hexdigest() != digest:
            raise _Damaged(name)
    return files


def _description(contents: Contents) -> dict[str, Any]:
    return {
        "dim": contents.dim,
        "generation": contents.generation,
        "recipe": asdict(contents.base.recipe),
        "counts": {
            "base": len(contents.rows),
            "delta": len(contents.delta),
            "tombstones": sum(map(len, contents.tombstones)),
        },
    }


def _delta_files(contents: Contents) -> dict[str, Content]:
    delta = contents.delta
    ids = {"delta": delta.ids, "fields": delta.fields.packed, "tombstones": contents.tombstones}
    arrays: dict[str, NDArray[Any]] = {
        "versions": np.array(delta.versions, dtype=np.int64),
        "vectors": delta.vectors_MD,
        "base_alive": contents.base_alive,
    }
    return {"ids.msgpack": lambda write: write(msgpack.packb(ids)), "delta.npz": _npz(arrays)}


def _base_files(contents: Contents) -> dict[str, Content]:
    base, rows = contents.base, contents.rows
    arrays: dict[str, NDArray[Any]] = {
        part.name: getattr(rows, part.name) for part in fields(Rows) if part.name not in ("ids", "columns")
    }
    arrays |= {"ids": rows.ids.cells, "other_ids": np.frombuffer(msgpack.packb(rows.ids.others), dtype=np.uint8)}
    for kind in ("texts", "numbers"):
        for name, column in getattr(rows.columns, kind).items():
            arrays |= {f"{kind}/{name}/{part.name}": getattr(column, part.name) for part in fields(Column)}
    if isinstance(base, FlatBase):
        return {"rows.npz": _npz({**arrays, "store": base.store})}
    assert isinstance(base, IvfBase)
    return {
        "rows.npz": _npz(arrays),
        "base.faiss": partial(write_index, base.ivf),
        STORE: partial(write_index, base.store),
    }


class _Sink:
    """A file without seek, for `zipfile`."""

    def __init__(self, write: Callable[[Buffer], None]) -> None:
        self._write = write

    def write(self, data: Buffer) -> int:
        self._write(data)
        return len(data)

    def flush(self) -> None:
        pass


def _npz(arrays: Mapping[str, NDArray[Any]]) -> Content:
    """An archive as `np.savez` writes it, which copies 16 MB at a time with the GIL held: searches would wait."""

    def content(write: Callable[[Buffer], None]) -> None:
        with ZipFile(cast(IO[bytes], _Sink(write)), "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    _format.write_array_header_1_0(file, _format.header_data_from_array_1_0(array))
                    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                    for start in range(0, len(data), PIECE_BYTES):
                        file.write(data[start : start + PIECE_BYTES])

    return content


def _contents(manifest: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> Contents:
    ids = msgpack.unpackb(files["ids.msgpack"])
    rows, delta = _arrays(files["rows.npz"]), _arrays(files["delta.npz"])
    recipe = IndexRecipe(**manifest["recipe"])
    if STORE in manifest["files"]:
        ivf = faiss.deserialize_index(np.frombuffer(files["base.faiss"], dtype=np.uint8))
        base: Base = IvfBase(recipe, ivf, map_store(folder / STORE))
    else:
        base = FlatBase(recipe, rows.pop("store"))
    others = msgpack.unpackb(rows.pop("other_ids").tobytes(), strict_map_key=False)
    rows["ids"] = Ids(rows["ids"], others)
    rows["columns"] = _columns(len(rows["versions"]), rows)
    return Contents(
        dim=manifest["dim"],
        fingerprint=manifest["fingerprint"],
        generation=manifest["generation"],
        base=base,
        rows=Rows(**rows),
        base_alive=delta["base_alive"],
        delta=Entries(
            ids["delta"], delta["versions"].tolist(), delta["vectors"], PackedFields.of_packed(ids["fields"])
        ),
        tombstones=ids["tombstones"],
    )


def _columns(total: int, arrays: dict[str, Any]) -> Columns:
    """The columns among these arrays, which they leave."""
    columns: dict[str, dict[str, Column]] = {"texts": {}, "numbers": {}}
    for place in [place for place in arrays if place.endswith("/values")]:
        kind, name, _ = place.split("/")
        columns[kind][name] = Column(*(arrays.pop(f"{kind}/{name}/{part.name}") for part in fields(Column)))
    return Columns(total, **columns)


def _arrays(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)

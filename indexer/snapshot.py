"""Snapshots of one shard's index on disk, each with the stream cursor up to which it holds every change.

::

    CURRENT              name of the newest folder
    00000007-<digest>/   digest: the first 16 hex digits of the manifest's SHA-256
        manifest.json    fingerprint, shard, cursor, generation, recipe, counts, SHA-256 of every file
        ids.msgpack      ids of base and delta, tombstones
        arrays.npz       versions, live bits, vectors
        base.faiss       only for an IVF base

A snapshot is written into a staging folder, synced file by file, and renamed; a crash at any point leaves the
older ones as they were. Checksums are verified before anything is parsed: FAISS loads most damaged files
without a word and then answers wrongly.
"""

import contextlib
import io
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import faiss
import msgpack
import numpy as np

from indexer.base import Base, FlatBase, IndexRecipe, IvfBase
from indexer.index import Contents, Rows, VectorIndex

log = logging.getLogger(__name__)

FORMAT = 1
KEPT = 3
CURRENT = "CURRENT"
STAGING = "staging"
STAGED_POINTER = "CURRENT.staging"
MANIFEST = "manifest.json"


class _Damaged(Exception):
    """A file is missing or is not what was written."""


class Snapshots:
    """The snapshots of one shard, for one model and one number of shards. For one thread at a time."""

    def __init__(self, folder: Path, fingerprint: str, shard: int = 0, shards: int = 1) -> None:
        self.shard, self.shards = shard, shards
        self._folder = folder
        # With another number of shards this one holds other ids.
        self._identity = {"format": FORMAT, "fingerprint": fingerprint, "shard": shard, "shards": shards}

    def save(self, contents: Contents, cursor: str) -> None:
        """Write a snapshot, make it the current one, and drop all but the last three.

        Raises:
            OSError: if it could not be written; the older snapshots are then as they were.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        staged = self._folder / STAGING
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        digests = {name: _write(staged / name, data) for name, data in _files(contents).items()}
        manifest = json.dumps(self._identity | _description(contents) | {"cursor": cursor, "files": digests}, indent=1)
        digest = _write(staged / MANIFEST, manifest.encode())
        _sync(staged)
        names = self._names()
        name = f"{_number(names[0]) + 1 if names else 1:08d}-{digest[:16]}"
        staged.rename(self._folder / name)
        _sync(self._folder)
        _write(self._folder / STAGED_POINTER, name.encode())
        (self._folder / STAGED_POINTER).replace(self._folder / CURRENT)
        _sync(self._folder)
        for old in self._names()[KEPT:]:
            shutil.rmtree(self._folder / old, ignore_errors=True)

    def load(self) -> tuple[VectorIndex, str] | None:
        """The index and cursor of the current snapshot, or of the newest older one that is whole and fits.

        None if there is none; the log says why each was passed over.
        """
        for name in self._candidates():
            try:
                manifest, files = _read(self._folder / name)
            except (_Damaged, OSError) as error:
                log.warning("snapshot_damaged", extra={"snapshot": name, "reason": str(error)})
                continue
            foreign = [key for key, value in self._identity.items() if manifest.get(key) != value]
            if foreign:
                log.warning("snapshot_refused", extra={"snapshot": name, "differs_in": foreign})
                continue
            index = VectorIndex.restore(_contents(manifest, files))
            log.info("snapshot_loaded", extra={"snapshot": name, "rows": len(index), "cursor": manifest["cursor"]})
            return index, str(manifest["cursor"])
        return None

    def discard(self) -> None:
        """Remove all of them."""
        for name in self._names():
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def oldest_cursor(self) -> str | None:
        """Cursor of the oldest snapshot that `load` may fall back to; None if there is none.

        What lies behind it in the stream may still be needed, what lies before it never again.
        """
        for name in reversed(self._names()):
            with contextlib.suppress(_Damaged, OSError):
                return str(_manifest(self._folder / name)["cursor"])
        return None

    def _names(self) -> list[str]:
        """Folders of whole or damaged snapshots, newest first."""
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


def _write(path: Path, data: bytes | memoryview) -> str:
    """Write and sync a file, and return its SHA-256."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return sha256(data).hexdigest()


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
    described: dict[str, Any] = json.loads(manifest)
    return described


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and every file of a snapshot, verified."""
    described = _manifest(folder)
    files = {name: (folder / name).read_bytes() for name in described["files"]}
    for name, digest in described["files"].items():
        if sha256(files[name]).hexdigest() != digest:
            raise _Damaged(name)
    return described, files


def _description(contents: Contents) -> dict[str, Any]:
    return {
        "dim": contents.dim,
        "generation": contents.generation,
        "recipe": asdict(contents.base.recipe),
        "counts": {
            "base": len(contents.base_rows),
            "delta": len(contents.delta_rows),
            "tombstones": len(contents.tombstones),
        },
    }


def _files(contents: Contents) -> dict[str, bytes | memoryview]:
    ids = {
        "base": contents.base_rows.ids,
        "delta": contents.delta_rows.ids,
        "tombstones": contents.tombstones,
    }
    arrays = io.BytesIO()
    np.savez(
        arrays,
        allow_pickle=False,
        base_versions=np.array(contents.base_rows.versions, dtype=np.int64),
        base_alive=contents.base_alive,
        base_store=contents.base.store,
        delta_versions=np.array(contents.delta_rows.versions, dtype=np.int64),
        delta_vectors=contents.delta_vectors,
    )
    files: dict[str, bytes | memoryview] = {
        "ids.msgpack": msgpack.packb(ids),
        "arrays.npz": arrays.getbuffer(),
    }
    if isinstance(contents.base, IvfBase):
        files["base.faiss"] = faiss.serialize_index(contents.base.ivf).data
    return files


def _contents(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Contents:
    ids = msgpack.unpackb(files["ids.msgpack"])
    with np.load(io.BytesIO(files["arrays.npz"]), allow_pickle=False) as arrays:
        recipe = IndexRecipe(**manifest["recipe"])
        store = arrays["base_store"]
        base: Base = FlatBase(recipe, store)
        if "base.faiss" in files:
            ivf = faiss.deserialize_index(np.frombuffer(files["base.faiss"], dtype=np.uint8))
            base = IvfBase(recipe, store, ivf)
        return Contents(
            dim=manifest["dim"],
            fingerprint=manifest["fingerprint"],
            generation=manifest["generation"],
            base=base,
            base_rows=Rows(ids["base"], arrays["base_versions"].tolist()),
            base_alive=arrays["base_alive"],
            delta_rows=Rows(ids["delta"], arrays["delta_versions"].tolist()),
            delta_vectors=arrays["delta_vectors"],
            tombstones=ids["tombstones"],
        )

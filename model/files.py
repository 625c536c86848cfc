"""Folders that commands write: by one at a time, and each file under its name only when it is on disk."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(OSError):
    """Another process holds the folder; the message is one line that says so and what to do."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder; the kernel lets go when the process ends. Raises FolderInUse while another holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"another command is writing in {folder}: wait for it, or end it") from None
        yield
    finally:
        os.close(descriptor)


def settle(beside: Path, path: Path) -> None:
    """Give a file its name when it is on disk, and be sure of the name too."""
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """A file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    settle(beside, path)

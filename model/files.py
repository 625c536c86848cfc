"""Files that appear under their names only when they are on disk, with one writer at a time."""

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(OSError):
    """Another process writes in the folder; the message is one line with the remedy."""


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder until the process ends at the latest.

    Raises FolderInUse while another process has the lock, unless it is to ``wait`` for it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, wait=wait)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """The same for one file, which is made if it is not there. Raises FolderInUse."""
    with path.open("ab") as file:
        _lock(file.fileno(), path, wait=False)
        yield


def _lock(descriptor: int, path: Path, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise FolderInUse(f"another command is writing in {path}: wait for it, or end it") from None


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a small file, which somebody else may have written.

    Raises:
        FileNotFoundError: if there is none.
        OSError: if it cannot be read, or is a device, a pipe or a folder: those may never end.
        ValueError: if it is longer.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path.name} is no regular file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it is longer than {most_bytes >> 20} MiB")
    return content


def publish(staged: Path, path: Path) -> None:
    """Rename a file when its content is on disk; the new name is on disk, too, at the return."""
    sync(staged)
    staged.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    staged.write_bytes(content)
    publish(staged, path)

"""The files of a data folder, and the lines of those with text."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from model.progress import bar

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
_STEMS = ("notes", "events", "pairs")
_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 8192
# Ctrl-Z: DOS and its editors end a text with it.
_ENDS = b"\r\n\x1a"


class DataError(ValueError):
    """A file is not what it should be; the message is one line that names file, row and field."""


def data_files(path: Path, stem: str, columns: Iterable[str] = ()) -> list[Path]:
    """The files that a path names, in order.

    It names a file; a folder of parts, at any depth, hidden ones (``.`` and ``_``) left out; or a folder that holds one
    of these under the name ``stem``. ``columns`` are known ones: a part must hold its columns itself, and not in the
    name of its folder (``category=Travel/part-0.parquet``).

    Raises:
        DataError: if there is none, several to choose from, or an empty one.
    """
    files = _parts(path) if path.is_dir() else [path]
    if path.is_dir():
        found = [path / f"{stem}{suffix}" for suffix in ("", *SUFFIXES) if (path / f"{stem}{suffix}").exists()]
        if len(found) > 1:
            both = " and ".join(one.name + "/" * one.is_dir() for one in found[:2])
            raise DataError(f"{path}: {both} are both in this folder; name one of them")
        if found:
            files = _parts(found[0]) if found[0].is_dir() else found
        elif not files or any(file.parent == path and file.name.partition(".")[0] in _STEMS for file in files):
            raise DataError(f"{path}: no {stem}.parquet and no {stem}.jsonl in this folder, and no folder of parts")
        if not files:
            raise DataError(f"{found[0]}: no .parquet and no .jsonl file in this folder")
    for file in files:
        _check(file)
        for folder in file.relative_to(path).parents if path.is_dir() else ():
            if folder.name.partition("=")[0] in columns and "=" in folder.name:
                name = folder.name.partition("=")[0]
                raise DataError(f"{place(file)}: {name} must be a column of the file, not the name of its folder")
    return files


def place(path: Path) -> str:
    """A file's name with its folder's: parts and splits name their files alike."""
    return f"{path.parent.name}/{path.name}"


def labels(files: Sequence[Path]) -> list[str]:
    """How errors name the files."""
    return [files[0].name] if len(files) == 1 else [place(file) for file in files]


def text_lines(path: Path, label: str) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank as (place, its UTF-8 without its end).

    Unpacked if it is gzip's. Any encoding of Unicode: a byte order mark, or else the zero bytes beside the first
    characters, if these are ASCII, tell it from UTF-8 (RFC 4627, section 3). Lines end with LF, CR LF, or, in a file
    without LF, CR.

    Raises:
        DataError: if the file cannot be read or unpacked, or is not in the encoding that its start says.
    """
    number = 0
    try:
        with path.open("rb") as raw, bar(f"load {label}", path.stat().st_size, "B") as progress:
            for number, line in enumerate(_lines(_unpacked(raw)), start=1):
                progress.update(raw.tell() - progress.n)
                if line.strip(b" \t" + _ENDS):
                    yield f"{label} line {number}", line.rstrip(_ENDS)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{label}: cannot be unpacked after line {number}: {error}") from error
    except UnicodeError as error:
        raise DataError(f"{label}: not valid Unicode after line {number}") from error
    except OSError as error:
        raise DataError(f"{label} cannot be read: {error.strerror or error}") from error


def _unpacked(raw: io.BufferedReader) -> io.BufferedReader:
    is_gzip = raw.peek(len(_GZIP)).startswith(_GZIP)
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if is_gzip else raw


def _lines(content: io.BufferedReader) -> Iterator[bytes]:
    """The lines with their ends, as UTF-8, which is not decoded: what is wrong in a line is said of the line."""
    head = content.peek(_HEAD_BYTES)
    encoding = json.detect_encoding(head)
    text = head.decode(encoding, "ignore")
    ends_in_cr = "\r" in text and "\n" not in text
    if encoding == "utf-8-sig":
        content.read(len("\ufeff".encode()))
        encoding = "utf-8"
    if encoding == "utf-8" and not ends_in_cr:
        yield from content
        return
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    decoded = io.TextIOWrapper(content, encoding, errors, newline="\r" if ends_in_cr else "\n")
    try:
        for line in decoded:
            yield line.encode("utf-8", errors)
    finally:
        decoded.detach()  # it would close what is not its own


def _parts(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.name.endswith(SUFFIXES)
        and file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )


def _check(file: Path) -> None:
    if not file.name.endswith(SUFFIXES):
        raise DataError(f"{file.name}: the name must end in .parquet or .jsonl (.jsonl.gz, if it is packed)")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    if not file.stat().st_size:
        raise DataError(f"{file.name} is empty")

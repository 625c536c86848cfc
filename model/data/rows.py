"""Rows of data files, Parquet or JSON lines, one after the other, and their fields by type.

A row is named in errors as a person would look it up: the 1-based line of a ``.jsonl`` file, the 0-based row
of a ``.parquet`` file. Unknown columns are ignored; null and NaN mean "not given".
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from model.progress import bar

SUFFIXES = (".parquet", ".jsonl")
_ROWS_PER_BATCH = 8192

Row = tuple[str, Mapping[str, Any]]


class DataError(ValueError):
    """A file is not what it should be; the message is one line that names file, row and field."""


def data_file(path: Path, stem: str) -> Path:
    """The file itself, or the one called ``stem`` in a folder. Raises DataError if there is none, or two."""
    if path.is_dir():
        found = [path / f"{stem}{suffix}" for suffix in SUFFIXES if (path / f"{stem}{suffix}").is_file()]
        if not found:
            raise DataError(f"{path}: no {stem}.parquet and no {stem}.jsonl in this folder")
        if len(found) > 1:
            raise DataError(f"{path}: {stem}.parquet and {stem}.jsonl are both in this folder; name one of them")
        [path] = found
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path.name}: the name must end in .parquet or .jsonl")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not path.stat().st_size:
        raise DataError(f"{path.name} is empty")
    return path


def load_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    """Every row as (place, fields), loaded batch by batch. Raises DataError."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns, required)
    else:
        yield from jsonl_rows(path, required)


def jsonl_rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    """Every line that is not blank as (place, fields)."""
    with path.open("rb") as lines, bar(f"load {path.name}", path.stat().st_size, "B") as progress:
        for number, line in enumerate(lines, start=1):
            progress.update(len(line))
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            row = json_object(line, where)
            for name in required:
                if name not in row:
                    raise DataError(f"{where}: {name} is missing; it holds {listed(row)}")
            yield where, row


def _parquet_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    with open_parquet(path) as file, bar(f"load {path.name}", file.metadata.num_rows, "rows") as progress:
        present = present_columns(path, file.schema_arrow.names, columns, required)
        start = 0
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=present):
            for index, row in enumerate(batch.to_pylist(), start=start):
                yield f"{path.name} row {index}", row
            start += len(batch)
            progress.update(len(batch))


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """A line's fields. Raises DataError."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, got {_kind(row)}")
    return row


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """The open file; errors of Arrow become a DataError."""
    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path.name} cannot be read as Parquet: {reason}") from error


def present_columns(path: Path, found: Sequence[str], columns: Sequence[str], required: Iterable[str]) -> list[str]:
    """The names of ``columns`` that are in the file, in order. Raises DataError when a required one is missing."""
    for name in required:
        if name not in found:
            raise DataError(f"{path.name}: no column {name}; it holds {listed(found)}")
    return [name for name in columns if name in found]


def given(row: Mapping[str, Any], name: str) -> Any:
    """The field's value, None when it is missing, null or NaN."""
    value = row.get(name)
    return None if isinstance(value, float) and math.isnan(value) else value


def text(row: Mapping[str, Any], name: str, where: str) -> str | None:
    """A string, None where it is not given. Raises DataError."""
    value = given(row, name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {name} must be a string, got {_kind(value)}")
    return value


def identifier(row: Mapping[str, Any], name: str, where: str) -> str:
    """A string that is not empty. Raises DataError."""
    value = text(row, name, where)
    if not value:
        raise DataError(f"{where}: {name} must not be empty")
    return value


def strings(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A list of strings, empty where it is not given. Raises DataError."""
    value = given(row, name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} must be a list of strings, got {_kind(value)}")
    for item in value:
        if not isinstance(item, str):
            raise DataError(f"{where}: {name} must be a list of strings, got {_kind(item)} in it")
    return tuple(value)


def number(row: Mapping[str, Any], name: str, where: str) -> float:
    """A number, given in any case. Raises DataError."""
    value = given(row, name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"{where}: {name} must be a number, got {_kind(value)}")
    return float(value)


def whole(row: Mapping[str, Any], name: str, where: str) -> int | None:
    """A whole number, or one stored as a float, as in columns with NaN. Raises DataError."""
    value = given(row, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise DataError(f"{where}: {name} must be a whole number, got {_kind(value)}")
    if value is not None and not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: {name} must fit into 64 bits")
    return value


def count(row: Mapping[str, Any], name: str, where: str) -> int:
    """A whole number that is not negative, 0 where it is not given. Raises DataError."""
    value = whole(row, name, where) or 0
    if value < 0:
        raise DataError(f"{where}: {name} must not be negative, got {value}")
    return value


def _kind(value: object) -> str:
    """The name of a value's type in JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def shown(value: object) -> str:
    """A value as it may stand in a one-line message."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."


def listed(names: Iterable[str]) -> str:
    """Names as they stand in a message."""
    return ", ".join(names) or "nothing"

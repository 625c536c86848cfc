"""Readers in exported files: under names that do not tell who they are, and not at all once they are erased."""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.files import publish
from service.store.attribution.readers import name_of

# In the schema of files whose readers have names; parts of older releases hold their ids.
NAMED = {b"readers": b"hmac-sha256"}


def erase_from_files(files: Collection[Path], column: str, erased: Collection[str]) -> int:
    """Remove the rows of the readers with these names, which stand in a column; returns how many.

    Each file is replaced in one step, if it has to be; one without a row left stays, without rows. May be repeated.
    """
    removed = 0
    names = pa.array(erased, pa.string())
    for file in files if erased else ():
        readers = pq.read_table(file, columns=[column], partitioning=None).column(column)
        if not pc.any(pc.is_in(readers, value_set=names)).as_py():
            continue
        table = pq.read_table(file, partitioning=None)
        kept = table.filter(pc.invert(pc.is_in(table.column(column), value_set=names)))
        write(file, kept)
        removed += len(table) - len(kept)
    return removed


def name_readers(files: Collection[Path], key: bytes) -> None:
    """Give the readers in parts of an older release their names. May be repeated."""
    for file in files:
        if (pq.read_schema(file).metadata or {}).items() >= NAMED.items():
            continue
        table = pq.read_table(file, partitioning=None)
        coded = table.column("user_id").combine_chunks().dictionary_encode()
        named = pa.array([name_of(user, key) for user in coded.dictionary.to_pylist()], pa.string())
        place = table.schema.get_field_index("user_id")
        table = table.set_column(
            place, "user_id", pa.DictionaryArray.from_arrays(coded.indices, named).cast(pa.string())
        )
        write(file, table.replace_schema_metadata(NAMED))


def write(file: Path, table: pa.Table) -> None:
    """Write a file, or replace it, in one step."""
    unfinished = file.with_name(f".{file.name}")
    pq.write_table(table, unfinished, compression="zstd")
    publish(unfinished, file)

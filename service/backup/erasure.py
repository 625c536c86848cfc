"""The erasure of readers from exported events: files that hold one of them are written anew, without their rows."""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.files import publish
from service.store.records import digest_of


def erase_from_files(files: Collection[Path], erased: Collection[str]) -> int:
    """Remove the rows of the readers with these digests (`digest_of`); returns how many.

    Each file is replaced in one step, if it has to be; one without a row left stays, without rows. May be repeated.
    """
    known: dict[str, bool] = {}
    removed = 0
    for file in files if erased else ():
        users = pq.read_table(file, columns=["user_id"], partitioning=None).column("user_id")
        distinct: list[str] = users.unique().to_pylist()
        known |= {user: digest_of(user) in erased for user in distinct if user not in known}
        gone = [user for user in distinct if known[user]]
        if not gone:
            continue
        table = pq.read_table(file, partitioning=None)
        kept = table.filter(pc.invert(pc.is_in(table.column("user_id"), value_set=pa.array(gone, pa.string()))))
        unfinished = file.with_name(f".{file.name}")
        pq.write_table(kept, unfinished, compression="zstd")
        publish(unfinished, file)
        removed += len(table) - len(kept)
    return removed

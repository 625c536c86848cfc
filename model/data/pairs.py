"""Related pairs as files, and in memory."""

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.data.files import data_files
from model.data.rows import count, identifier, load_rows, number

PAIR_COLUMNS = ("note_id", "related_id", "score", "users")


@dataclass(frozen=True, slots=True)
class Pairs:
    """P related pairs, by note and then best first; ``users``: how many users have each in their clicks, shape (P,).

    ``skipped_users`` clicked too many notes to be counted; their number is not in the file.
    """

    note_ids: tuple[str, ...]
    related_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    users: NDArray[np.int64]
    skipped_users: int = 0

    def __len__(self) -> int:
        return len(self.note_ids)

    def ends(self) -> list[tuple[str, str]]:
        """Note and related note of every pair, in order."""
        return list(zip(self.note_ids, self.related_ids, strict=True))

    def supported_by(self, min_users: int) -> "Pairs":
        """The pairs of at least ``min_users`` users, in order."""
        kept = np.flatnonzero(self.users >= min_users)
        return Pairs(
            tuple(self.note_ids[row] for row in kept),
            tuple(self.related_ids[row] for row in kept),
            self.scores[kept],
            self.users[kept],
            self.skipped_users,
        )


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write pairs as Parquet with the columns note_id, related_id, score and users."""
    columns = (list(pairs.note_ids), list(pairs.related_ids), pairs.scores, pairs.users)
    types = (pa.string(), pa.string(), pa.float64(), pa.int64())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    pq.write_table(pa.table(arrays, names=list(PAIR_COLUMNS)), path, compression="zstd")


def load_pairs(path: Path) -> Pairs:
    """Pairs of a file, of a folder of parts, or of what is called ``pairs`` in a folder, in order. Raises DataError."""
    note_ids, related_ids, scores, users = [], [], array("d"), array("q")
    for where, row in load_rows(data_files(path, "pairs", PAIR_COLUMNS), PAIR_COLUMNS, required=PAIR_COLUMNS):
        note_ids.append(identifier(row, "note_id", where))
        related_ids.append(identifier(row, "related_id", where))
        scores.append(number(row, "score", where))
        users.append(count(row, "users", where))
    return Pairs(
        tuple(note_ids),
        tuple(related_ids),
        np.array(scores, dtype=np.float64),
        np.array(users, dtype=np.int64),
    )

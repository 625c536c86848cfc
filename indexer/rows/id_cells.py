"""Ids of rows, packed so that a search reads one place of memory for each and nothing else.

Cells of one width hold them as UTF-8; NumPy takes a hundred of them in a few microseconds. The few that fit no cell
are in a dict: longer ones, and what NumPy would not give back as it was, the empty id and ids that end in NUL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

# What one in the dict takes.
OTHER_BYTES = 200
# So many of them and the cells are too narrow.
MOST_OTHERS = 1 / 8


@dataclass(frozen=True, slots=True)
class Ids:
    """Immutable. ``cells`` has shape (M,), a row's cell is empty if the id is in ``others``."""

    cells: NDArray[np.bytes_]
    others: dict[int, str]

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        """In cells of the width that takes the least memory."""
        return cls._packed(ids, _width([len(id_.encode()) for id_ in ids]))

    @classmethod
    def _packed(cls, ids: Sequence[str], width: int) -> Self:
        encoded = [id_.encode() for id_ in ids]
        others = {row: ids[row] for row, cell in enumerate(encoded) if not 0 < len(cell) <= width or not cell[-1]}
        for row in others:
            encoded[row] = b""
        return cls(np.array(encoded, dtype=f"S{width}"), others)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int) -> str:
        cell: bytes = self.cells[row]
        return cell.decode() if cell else self.others[row]

    def at(self, rows_NK: NDArray[np.int64]) -> list[list[str]]:
        """Ids of a matrix of rows; for row -1 some text."""
        if not len(self):
            return [[""] * rows_NK.shape[1] for _ in rows_NK]
        found = [list(map(bytes.decode, cells_K)) for cells_K in self.cells.take(rows_NK).tolist()]
        if self.others:
            for ids_K, rows_K in zip(found, rows_NK.tolist(), strict=True):
                if "" in ids_K:
                    ids_K[:] = [id_ or self.others.get(row, "") for id_, row in zip(ids_K, rows_K, strict=True)]
        return found

    def taken(self, rows: NDArray[np.int64]) -> Self:
        """Of these rows alone, in this order."""
        cells = self.cells.take(rows) if len(rows) else self.cells[:0]
        empty = np.flatnonzero(cells == b"") if self.others else ()
        return type(self)(cells, {int(row): self.others[int(rows[row])] for row in empty})

    def extended(self, ids: Sequence[str]) -> Self:
        """With more rows behind these."""
        more = self._packed(ids, self.cells.itemsize)
        others = self.others | {len(self) + row: id_ for row, id_ in more.others.items()}
        if len(others) > MOST_OTHERS * (len(self) + len(ids)):
            return self.of([*(self[row] for row in range(len(self))), *ids])
        return type(self)(np.concatenate([self.cells, more.cells]), others)


def _width(lengths: Sequence[int]) -> int:
    """The width of cells that takes the least memory, with ids of these lengths in bytes."""
    if not lengths:
        return 1
    widths, counts = np.unique(np.maximum(lengths, 1), return_counts=True)
    longer = len(lengths) - np.cumsum(counts)
    return int(widths[np.argmin(len(lengths) * widths + OTHER_BYTES * longer)])

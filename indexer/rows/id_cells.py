"""Ids of rows, packed so that a search reads one place of memory for each.

Cells of one width hold them as UTF-8; NumPy takes a hundred of them in a few microseconds. A dict holds the few others:
longer ids, and the ids that NumPy would change, which are empty or end in NUL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.types import Ints

# Memory of one id in the dict.
OTHER_BYTES = 200
# With a larger share of ids in the dict, the cells are too narrow.
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

    def at(self, rows_NK: Ints) -> list[list[str]]:
        """Ids of a matrix of rows; any text for row -1."""
        if not len(self):
            return [[""] * rows_NK.shape[1] for _ in rows_NK]
        ids_NK = [list(map(bytes.decode, cells_K)) for cells_K in self.cells.take(rows_NK).tolist()]
        if self.others:
            for ids_K, rows_K in zip(ids_NK, rows_NK.tolist(), strict=True):
                if "" in ids_K:
                    ids_K[:] = [id_ or self.others.get(row, "") for id_, row in zip(ids_K, rows_K, strict=True)]
        return ids_NK

    def taken(self, rows: Ints) -> Self:
        """The ids of these rows alone, in this order."""
        cells = self.cells.take(rows) if len(rows) else self.cells[:0]
        empty = np.flatnonzero(cells == b"") if self.others else ()
        return type(self)(cells, {int(row): self.others[int(rows[row])] for row in empty})

    def extended(self, ids: Sequence[str]) -> Self:
        """A copy with more ids after these."""
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

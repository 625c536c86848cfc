"""Which rows are alive, and which of the living are shown: hidden ones are looked up, but in no search's hits."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from indexer.rows import bitmap
from indexer.rows.bitmap import Bits
from indexer.types import Ints

# Up to here, scoring every selected row takes about as long as probing the lists that hold them.
EXACT_UP_TO = 256


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The rows of a base that a search may return: ``size`` of them, whose bit is 1; without bits, all.

    ``rows`` are their numbers, if they are few. If ``within`` is given, they are all among its rows, which are in no
    order, some of them twice. In ``memo`` the base keeps what it computes of them.
    """

    size: int
    bits: Bits | None = None
    rows: Ints | None = None
    within: NDArray[np.uint32] | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bits: Bits, within: NDArray[np.uint32] | None = None) -> Self:
        """From the bits of the rows; those after the last row are 0."""
        size = int(np.bitwise_count(bits).sum())
        if size > EXACT_UP_TO:
            return cls(size, bits, None, within)
        if within is None:
            return cls(size, bits, bitmap.live_rows(bits, 8 * len(bits)))
        rows = np.sort(bitmap.only(within.astype(np.int64), bits))
        return cls(size, bits, rows if len(rows) == size else np.unique(rows), within)


@dataclass(frozen=True)
class Liveness:
    """Immutable. Bits after the ``rows`` mean nothing. While no row is hidden, ``shown`` is ``alive`` itself."""

    rows: int
    alive: Bits
    shown: Bits
    dead: int = 0
    hidden: int = 0

    @classmethod
    def of(cls, alive: Bits, rows: int) -> Self:
        """No row is hidden."""
        return cls(rows, alive, alive, rows - int(bitmap.flags(alive, rows).sum()))

    @cached_property
    def selection(self) -> Selection:
        """The rows that are shown."""
        unshown = self.dead + self.hidden
        return Selection(self.rows - unshown, self.shown if unshown else None)

    def hiding(self, rows: Ints) -> Self:
        """A copy in which these rows, which must be shown, are hidden."""
        if not len(rows):
            return self
        return replace(self, shown=bitmap.without(self.shown, rows), hidden=self.hidden + len(rows))

    def without(self, row: int) -> Self:
        """A copy in which this row, which must be alive, is dead."""
        rows = np.array([row])
        alive = bitmap.without(self.alive, rows)
        if not self.hidden:
            return replace(self, alive=alive, shown=alive, dead=self.dead + 1)
        hidden = self.hidden - (not bitmap.is_alive(self.shown, row))
        shown = bitmap.without(self.shown, rows) if hidden else alive
        return replace(self, alive=alive, shown=shown, dead=self.dead + 1, hidden=hidden)

    def with_next(self) -> Self:
        """A copy with one more row, alive and shown."""
        rows, bits = self.rows + 1, 8 * len(self.alive)
        if rows <= bits:
            return replace(self, rows=rows)
        more = bitmap.all_alive(max(bits, 8))
        alive = np.concatenate([self.alive, more])
        shown = np.concatenate([self.shown, more]) if self.hidden else alive
        return replace(self, rows=rows, alive=alive, shown=shown)

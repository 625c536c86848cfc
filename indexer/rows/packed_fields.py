"""The fields of rows that are not in columns yet, each row's as one piece of msgpack.

An index that is rebuilt holds all its rows so for a while: dicts of six fields take seven times the memory.
"""

from collections.abc import Iterable, Iterator
from typing import Self

import msgpack
import numpy as np

from indexer.types import Fields, Ints

# The field of hidden rows. No filter can ask for it: what it would find is in no search's hits.
HIDDEN = "hidden"


class PackedFields:
    """A growing list of `Fields`."""

    def __init__(self, fields_M: Iterable[Fields] = ()) -> None:
        self.packed: list[bytes] = list(map(msgpack.packb, fields_M))

    @classmethod
    def of_packed(cls, packed: list[bytes]) -> Self:
        """From `packed` of another one."""
        fields = cls()
        fields.packed = packed
        return fields

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, row: int) -> Fields:
        fields: Fields = msgpack.unpackb(self.packed[row], use_list=False)
        return fields

    def __iter__(self) -> Iterator[Fields]:
        return map(self.__getitem__, range(len(self)))

    def append(self, fields: Fields, *, hidden: bool) -> None:
        """One more row."""
        self.packed.append(msgpack.packb({**fields, HIDDEN: True} if hidden else fields))

    def taken(self, rows: Ints) -> Self:
        """These rows alone, in this order."""
        return self.of_packed([self.packed[row] for row in rows])

    def hidden(self) -> Ints:
        """The hidden rows."""
        named = HIDDEN.encode()
        return np.array([row for row, packed in enumerate(self.packed) if named in packed and HIDDEN in self[row]], int)

"""Which node of a cluster serves a cell: what is known of it, and whom to ask."""

from collections import deque
from collections.abc import Iterator, Sequence

from redis.exceptions import ConnectionError as ConnectionFailed

Address = tuple[str, int]


class Nodes:
    """The nodes that the operator named, and those that other nodes named."""

    def __init__(self, named: Sequence[Address]) -> None:
        self._named = frozenset(named)
        self._known = list(named)
        self._next: deque[Address] = deque()
        self._primary: Address | None = None

    @property
    def primary(self) -> Address:
        """The node that serves the cell. Raises ConnectionError while none is known."""
        if self._primary is None:
            raise ConnectionFailed("no node of the cluster serves the cell")
        return self._primary

    def to_ask(self) -> Iterator[Address]:
        """Each node that is known, and those of whom they tell, until one has told of itself: see `told`."""
        self._next, asked = deque(self._known), set[Address]()
        while self._primary is None and self._next:
            address = self._next.popleft()
            if address not in asked:
                asked.add(address)
                yield address

    def told(self, by: Address, serves: Address | None) -> None:
        """A node told which one serves the cell; None if it told nothing.

        What a node says of another may be of before that one's end, so the other is asked next.
        """
        if serves == by:
            self._primary = by
            if by not in self._known:
                self._known.append(by)
        elif serves is not None:
            self._next.appendleft(serves)

    def lost(self, address: Address) -> None:
        """The node does not serve the cell, or does not answer: from now on it is asked last."""
        if self._primary == address:
            self._primary = None
        if address in self._known:
            self._known.remove(address)
            if address in self._named:
                self._known.append(address)

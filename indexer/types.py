"""The index side's vocabulary: ids, vectors, changes, neighbors. It knows no notes and no text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the embeddings stream: upsert when ``vector`` is given, delete when it is None.

    ``cursor`` is the entry's place in the stream; a follower resumes behind the last one it applied.
    ``version`` orders the changes of one id: only a newer one has an effect. ``category`` and ``author`` are
    what a search may filter by. ``written_ms`` is when this version of the note was written, by the clock of the
    stream and only for reports; None where it is not known.
    """

    cursor: str
    id: str
    version: int
    fingerprint: str
    vector: NDArray[np.float32] | None
    category: str | None = None
    author: str | None = None
    written_ms: int | None = None


def label(text: str | None) -> int:
    """The 64-bit code by which an index knows a category or an author; 0 for none."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") if text else 0


class Hits(NamedTuple):
    """Ids and their cosines, closest first."""

    ids: list[str]
    scores: list[float]


class Query(NamedTuple):
    """One search of one shard: the k nearest to a unit vector, shape (dim,), without the ids in ``exclude``.

    ``category`` is the code of the only category wanted, ``exclude_author`` that of an author not wanted;
    0 for neither.
    """

    vector: NDArray[np.float32]
    k: int
    exclude: Sequence[str] = ()
    category: int = 0
    exclude_author: int = 0


class Neighbor(NamedTuple):
    """A search hit: ``score`` is the cosine between the query and the stored vector."""

    id: str
    score: float


@dataclass(frozen=True, slots=True)
class IndexedVector:
    """What the index holds for an id: the version, and its exact unit vector, shape (dim,)."""

    version: int
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to one search over all shards; ``shards_ok < shards_total`` means it is partial."""

    hits: Hits
    generation: int
    shards_ok: int
    shards_total: int

    @property
    def neighbors(self) -> list[Neighbor]:
        """The hits one by one."""
        return list(map(Neighbor, *self.hits))


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard's state, for `/status` and metrics.

    ``recall`` is what the last probe measured, None before there was one; ``delta`` counts the rows that are searched
    one by one.
    """

    shard: int
    notes: int
    generation: int
    recipe: str
    fingerprint: str
    cursor: str
    recall: float | None
    delta: int


@dataclass(frozen=True, slots=True)
class Lacking:
    """What one model's index lacks of another's: how many ids, and which, though not all where they are many."""

    count: int
    ids: list[str]


class Searcher(Protocol):
    """What the gateway sees of one model's index. Every call ends within ``timeout_s``; a dead shard is left out."""

    async def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        exclude: Sequence[str] = (),
        *,
        category: str | None = None,
        exclude_author: str | None = None,
        timeout_s: float,
    ) -> SearchResult:
        """The k nearest ids by cosine, closest first, without those in ``exclude``.

        With a ``category``, only notes of that one; with ``exclude_author``, none of that author's. As many as
        exist, up to k, whatever share of the notes passes.
        """
        ...

    async def lookup(self, id: str, *, timeout_s: float) -> IndexedVector | None:  # noqa: A002
        """What the id's own shard holds. Raises ShardUnavailable when that shard does not answer."""
        ...

    async def vectors(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, NDArray[np.float32]]:
        """The exact unit vectors, shape (dim,), of those ids that the answering shards hold."""
        ...

    async def status(self, *, timeout_s: float) -> list[ShardStatus]:
        """State of the shards that answer, by shard number."""
        ...


class ShardUnavailable(Exception):
    """A shard did not answer in time, or its connection broke."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What an index did with a batch of changes; ``refused`` says why, in one word each."""

    applied: int = 0
    stale: int = 0
    refused: list[tuple[Change, str]] = field(default_factory=list)

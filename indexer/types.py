"""The vocabulary of an index: ids, vectors, changes, queries and hits. It knows no notes and no text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.filters.expression import Expression
from indexer.filters.expression import Fields as Fields

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the embeddings stream: upsert when ``vector`` is given, delete when it is None.

    One that ``keeps_vector`` has none either: new fields of the version that the index holds, of every model.

    ``cursor`` is the entry's place in the stream; a follower resumes after the last one it applied.
    ``version`` orders the changes of one id: only a newer one has an effect. Searches may filter by ``fields``; one
    that is ``hidden`` is in no search's hits. ``written_ms`` is when this version of the note was written, by the
    clock of the stream and only for reports; None where it is not known.
    """

    cursor: str
    id: str
    version: int
    fingerprint: str
    vector: Floats | None
    written_ms: int | None = None
    fields: Fields = field(default_factory=dict)
    hidden: bool = False
    keeps_vector: bool = False


def hash64(text: str) -> int:
    """The same 64-bit hash in every process and release."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class Hits(NamedTuple):
    """The result of one search: ids and their cosines to the query, closest first."""

    ids: list[str]
    scores: list[float]


class Query(NamedTuple):
    """One search of one shard: the k nearest to a unit vector, shape (dim,), without the ids in ``exclude``."""

    vector: Floats
    k: int
    exclude: Sequence[str] = ()
    filter: Expression | None = None


class Neighbor(NamedTuple):
    """One of several `Hits`: ``score`` is the cosine between the query and the stored vector."""

    id: str
    score: float


@dataclass(frozen=True, slots=True)
class IndexedVector:
    """The version of an id that the index holds, and its unit vector, shape (dim,)."""

    version: int
    vector: Floats


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of one search over all shards; ``shards_ok < shards_total`` means it is partial."""

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

    ``recall`` is the last probe's, None before the first; ``delta`` counts the rows that every search scores.
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
class MissingNotes:
    """Notes of one model's index that another's does not hold: how many, and their ids, not all if there are many."""

    count: int
    ids: list[str]


class Searcher(Protocol):
    """One model's index as the gateway sees it. Every call ends within ``timeout_s``; a dead shard is left out."""

    async def search(
        self,
        vector: Floats,
        k: int,
        exclude: Sequence[str] = (),
        *,
        filter: Expression | None = None,  # noqa: A002
        timeout_s: float,
    ) -> SearchResult:
        """The k nearest ids by cosine, closest first, without those in ``exclude`` and those that are hidden.

        With a ``filter``, only ids whose fields pass it: as many as exist, up to k, whatever share of them passes.
        """
        ...

    async def lookup(self, id: str, *, timeout_s: float) -> IndexedVector | None:  # noqa: A002
        """The vector of an id, from its own shard. Raises ShardUnavailable when that shard does not respond."""
        ...

    async def holds(self, id: str, *, timeout_s: float) -> bool:  # noqa: A002
        """Whether any replica of the id's own shard that responds still holds the id."""
        ...

    async def vectors(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, Floats]:
        """The unit vectors, shape (dim,), of those ids that the responding shards hold."""
        ...

    async def versions(self, ids: Sequence[str], *, timeout_s: float) -> dict[str, int]:
        """The versions of those ids that the responding shards hold."""
        ...

    async def status(self, *, timeout_s: float) -> list[ShardStatus]:
        """State of the shards that respond, by shard number."""
        ...


class ShardUnavailable(Exception):
    """A shard did not respond in time, or its connection broke."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many changes of a batch an index applied or found stale; ``refused`` names each reason in one word."""

    applied: int = 0
    stale: int = 0
    refused: list[tuple[Change, str]] = field(default_factory=list)

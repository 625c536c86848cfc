"""The state of the service."""

from typing import Literal

from pydantic import BaseModel, Field


class NotesStatusOut(BaseModel):
    """Notes by status; `pending` is an estimate while notes are being written."""

    live: int
    searchable: int
    pending: int
    failed: int


class QueueStatusOut(BaseModel):
    """Jobs waiting for a worker."""

    depth: int
    oldest_s: float


class ShardStatusOut(BaseModel):
    """One shard of the index."""

    shard: int
    notes: int
    generation: int
    recipe: str
    fingerprint: str
    cursor: str
    recall: float | None = Field(description="Recall@10 as last measured against exact search; null before that.")
    delta: int = Field(description="Notes that are searched one by one until they are folded into the index.")


class IndexStatusOut(BaseModel):
    """The index; `generation` is the highest of the shards that answer, null when none does."""

    generation: int | None
    shards_ok: int
    shards_total: int
    shards: list[ShardStatusOut]


class FreshnessOut(BaseModel):
    """Seconds from acknowledged to searchable of recent writes with `wait`; null when there were none."""

    p50: float | None
    p99: float | None


class ReachOut(BaseModel):
    """How far the lists of today and yesterday (UTC) reach; of a catalog of more than 10,000 notes, a sample of it."""

    coverage: float = Field(description="Share of the live notes that stood in a list.")
    gini: float = Field(description="How unequally places fall to notes: 0 alike, near 1 all to few.")
    hubs: int = Field(description="Notes in more lists than two standard deviations above the mean.")
    hub_share: float = Field(description="The share of all places that these take.")


class WatchOut(BaseModel):
    """The model that was activated last, and whether the one before it had to be active again."""

    model: str
    before: str
    state: Literal["watching", "kept", "taken_back", "unwatched"] = Field(
        description="`unwatched` is a model that answered before, or was taken back once."
    )
    since: str = Field(description="When it was activated, RFC 3339.")
    ended: str | None = Field(description="Since when it is kept or taken back.")
    reason: Literal["failed", "empty", "slow_lists", "slow_tags", "clicks"] | None
    detail: str | None = Field(description="The reason, with figures.")
    blocked: str | None = Field(description="Why it is not taken back, although it should be.")


class StatusOut(BaseModel):
    """The state of the service."""

    notes: NotesStatusOut
    queue: QueueStatusOut
    index: IndexStatusOut
    model: str
    freshness_s: FreshnessOut
    reach: ReachOut | None = Field(default=None, description="Null before the first list that was logged.")
    watch: WatchOut | None = Field(default=None, description="Null before a second model was activated.")
    warnings: list[str] = Field(
        description="What is wrong with the store although it answers, one line each: it may lose notes, for example."
    )

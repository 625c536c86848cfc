"""Related notes."""

from pydantic import BaseModel, Field


class ExplanationOut(BaseModel):
    """What a score is made of: `score = cosine - popularity`."""

    cosine: float
    popularity: float = Field(description="What debias took off; 0 without debias.")
    hashtags_in_common: list[str]


class ItemOut(BaseModel):
    """A related note; while the store is down, only its id and score."""

    note_id: str
    score: float
    title: str | None = None
    category: str | None = None
    hashtags: list[str] | None = None
    explain: ExplanationOut | None = None


class ShardsOut(BaseModel):
    """How many shards of the index had a say."""

    ok: int
    total: int


class RelatedOut(BaseModel):
    """Related notes, closest first."""

    note_id: str
    items: list[ItemOut]
    model: str
    generation: int
    stale: bool = Field(description="An edit of the note waits; these are the notes related to the version before.")
    degraded: bool
    shards: ShardsOut

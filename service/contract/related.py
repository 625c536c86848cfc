"""Related notes: the rules of a list, and the answer."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from .fields import Body, Key, Label, NoteId, Words

LAST = 1000  # place of a list that an answer reaches
MAX_SEEDS = 64
MAX_BATCH = 64

Filter = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
GroupName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
# Names that no attribute may have, and that make no groups.
_NO_GROUPS = ("language", "exposure", "created_at", "hashtags", "hidden", "title", "content")


class Rules(BaseModel):
    """Which notes may stand in a list, and in which order.

    First come filter, category, excluded ids, what a reader has seen, and language. Of what is left each note has the
    score `(cosine - popularity) * half-life * boosts`. Then `min_score`, near copies, groups, diversity, offset and k.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    k: Annotated[int, Field(ge=1, le=100)] = Field(default=10, description="How many notes at most.")
    offset: Annotated[int, Field(ge=0, le=LAST)] = Field(default=0, description="How many notes of the list to skip.")
    filter: Filter | None = Field(
        default=None, description='Only notes that match, as in `category = "Travel" AND price < 100`.'
    )
    category: Annotated[list[Annotated[Label, Field(min_length=1)]], Field(max_length=20)] = Field(
        default=[], description="Only notes of this category, or of one of these when there are several."
    )
    exclude: Annotated[list[NoteId], Field(max_length=1000)] = Field(default=[], description="Not these notes.")
    for_user: Key | None = Field(
        default=None, description="Not the notes that this reader has viewed, clicked, liked, saved or dismissed."
    )
    language: Annotated[str, StringConstraints(pattern=r"^(any|same|[a-z]{2,3})$")] = Field(
        default="any", description="Only notes in this language, a tag of two or three letters; or `same`, or `any`."
    )
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None, description="Only notes with at least this score."
    )
    duplicates: Literal["collapse", "keep"] = Field(
        default="collapse", description="`collapse` leaves out near copies: notes that say the same words."
    )
    half_life_days: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Days in which a note's score falls to one half."
    )
    group_by: Annotated[GroupName, Field(json_schema_extra={"not": {"enum": [*_NO_GROUPS]}})] | None = Field(
        default=None, description="`author`, `category` or an attribute: at most `per_group` notes of each."
    )
    per_group: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="How many notes of one group at most; 1 if it is not given."
    )
    diversity: Share = Field(
        default=0.0,
        description="How much notes that resemble each other are spread apart (maximal marginal relevance).",
    )
    debias: Share = Field(default=0.0, description="How much of a popularity prior is taken off the scores.")
    explain: bool = Field(default=False, description="Say what each score is made of.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.k + self.offset > LAST:
            raise ValueError(f"k + offset is at most {LAST}")
        if self.per_group is not None and self.group_by is None:
            raise ValueError("per_group needs group_by")
        if self.group_by in _NO_GROUPS:
            raise ValueError("group_by is author, category or an attribute")
        return self


class RelatedRules(Rules):
    """The rules of a list that starts from notes."""

    exclude_author: bool = Field(default=False, description="Leave out notes of the same author.")


class BoostIn(BaseModel):
    """Notes that match have their score multiplied; a negative score is divided."""

    model_config = Rules.model_config

    filter: Filter
    factor: Annotated[float, Field(ge=0.1, le=10)]


class BodyRules(BaseModel):
    """What a body has room for, and a query string does not."""

    exclude: Annotated[list[NoteId], Field(max_length=10_000)] = Field(default=[], description="Not these notes.")
    boosts: Annotated[list[BoostIn], Field(max_length=8)] = []


class RelatedIn(BodyRules, RelatedRules):
    """The rules of `POST /notes/{id}/related`."""


_HAS_SEEDS: dict[str, JsonValue] = {
    "anyOf": [
        {"required": ["positives"], "properties": {"positives": {"minItems": 1}}},
        {"required": ["text"], "properties": {"text": {"type": "object"}}},
    ]
}


class SeedsIn(BodyRules, RelatedRules):
    """Notes and a text whose neighborhood is wanted: the mean of positives and text, less half that of negatives."""

    model_config = ConfigDict(json_schema_extra=_HAS_SEEDS)

    positives: Annotated[list[NoteId], Field(max_length=MAX_SEEDS)] = []
    negatives: Annotated[list[NoteId], Field(max_length=MAX_SEEDS)] = []
    text: Body | None = Field(default=None, description="Counts as one of the positives.")

    @model_validator(mode="after")
    def _has_seeds(self) -> Self:
        if not self.positives and self.text is None:
            raise ValueError("needs positives or a text")
        if len(self.positives) + len(self.negatives) > MAX_SEEDS:
            raise ValueError(f"at most {MAX_SEEDS} positives and negatives")
        return self


class SearchRules(Rules):
    """What is searched for in words, and the rules of the list."""

    q: Words = Field(description="The words.")
    language: Annotated[str, StringConstraints(pattern=r"^(any|[a-z]{2,3})$")] = Field(
        default="any", description="Only notes in this language, a tag of two or three letters; or `any`."
    )


class SearchIn(BodyRules, SearchRules):
    """The body of `POST /search`."""


class BatchedIn(RelatedIn):
    """One request of a batch that starts from one note; the others are `SeedsIn`."""

    note_id: NoteId


class BatchIn(BaseModel):
    """Several requests for related notes. Each is answered by itself, errors too."""

    model_config = Rules.model_config

    requests: Annotated[list[object], Field(min_length=1, max_length=MAX_BATCH)]


class ExplanationOut(BaseModel):
    """What a score is made of: `(cosine - popularity) * half_life * boosts`, divided by `boosts` if it is negative."""

    cosine: float
    popularity: float = Field(description="What debias took off; 0 without debias.")
    half_life: float = Field(description="What age left of the score; 1 without `half_life_days`.")
    boosts: float = Field(description="The product of the boosts that match.")
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


class ListOut(BaseModel):
    """Notes by descending score."""

    answer_id: str = Field(description="To be named in the events that follow from this answer.")
    items: list[ItemOut]
    model: str
    experiment: str | None = Field(default=None, description="The experiment that the reader is in, if in one.")
    arm: str | None = Field(default=None, description="The arm of that experiment.")
    generation: int
    stale: bool = Field(description="An edit of the note waits; these are the notes related to the version before.")
    degraded: bool
    shards: ShardsOut
    duplicates_left_out: int | None = Field(
        default=None, description="Near copies left out above the last item; with `explain`."
    )


class RelatedOut(ListOut):
    """Notes related to one."""

    note_id: str


class AnswersOut(BaseModel):
    """The answers of a batch, in order: each with its `status`, and either a list or an `error`."""

    answers: list[dict[str, object]]

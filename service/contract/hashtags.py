"""The hashtags of a community: lists of them, and rules for suggesting them."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator


def _one_of_its_fields(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        del field["default"]
    schema["oneOf"] = [{"required": [name]} for name in schema["properties"]]


def _true(value: bool) -> bool:
    if not value:
        raise ValueError("must be true; to unblock a hashtag, delete its rule")
    return value


class SpellingOut(BaseModel):
    """How so many notes spell a hashtag."""

    spelling: str
    notes: int


class HashtagOut(BaseModel):
    """A hashtag in use: folded, with the number of live notes that carry it, and its spellings, most used first."""

    tag: str
    notes: int
    spellings: list[SpellingOut]


class HashtagsOut(BaseModel):
    """A page of hashtags, most used first."""

    items: list[HashtagOut]
    next: str | None = Field(description="What `after` takes for the next page; null on the last.")


class TrendOut(BaseModel):
    """A hashtag of the newest notes: how many of them carry it, and how much more often than those before."""

    tag: str
    notes: int
    lift: float


class TrendsOut(BaseModel):
    """Trending hashtags, by descending lift."""

    items: list[TrendOut]


class RuleIn(BaseModel):
    """What becomes of a hashtag: another one is suggested in its place, or none. One of the two fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra=_one_of_its_fields)

    alias_of: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        default="",
        description="The hashtag to suggest; it need not be in use.",
        json_schema_extra={"format": "hashtag"},
    )
    blocked: Annotated[bool, AfterValidator(_true)] = Field(
        default=True, description="Never suggest it.", json_schema_extra={"const": True}
    )

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("a rule has either alias_of or blocked")
        return self


class RuleOut(BaseModel):
    """The rule of a hashtag, which is folded: it has one of the other two fields."""

    tag: str
    alias_of: str | None = None
    blocked: bool | None = None


class RulesOut(BaseModel):
    """All rules, by hashtag."""

    items: list[RuleOut]

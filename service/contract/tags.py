"""Drafts, and the suggestions for them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from .fields import Body
from .related import ItemOut

Source = Literal["generated", "neighbors", "both"]
Vocabulary = Literal["open", "known"]


class DraftIn(Body):
    """A note that is being written, and what is wanted for it. ``hashtags`` are those it already has."""

    max_hashtags: Annotated[int, Field(ge=1, le=10)] = 5
    vocabulary: Vocabulary = Field(default="open", description="`known` allows only hashtags already in use.")
    related: Annotated[int, Field(ge=0, le=20)] = Field(default=0, description="How many related notes to add.")


class TagOut(BaseModel):
    """A suggested hashtag, and who suggested it."""

    tag: str
    score: float
    source: Source


class CategoryOut(BaseModel):
    """A category of the model's closed set."""

    name: str
    score: float


class CopyOut(BaseModel):
    """A stored note that says nearly the same words, and how much of them: 0.8 to 1."""

    note_id: str
    similarity: float


class TagsOut(BaseModel):
    """What is suggested for a draft; `related` is there when it was asked for."""

    answer_id: str = Field(description="To be named in the events that follow from this answer.")
    hashtags: list[TagOut]
    category: CategoryOut | None
    duplicate_of: CopyOut | None = Field(description="A note of which the draft is a near copy.")
    related: list[ItemOut] | None = None
    model: str
    experiment: str | None = Field(default=None, description="The experiment that the reader is in, if in one.")
    arm: str | None = Field(default=None, description="The arm of that experiment.")

"""Turns of learning, as `notellm learn` tells them."""

from typing import Literal

from pydantic import BaseModel, Field

State = Literal["done", "runs", "waits", "failed", "next", "open"]


class StepOut(BaseModel):
    """One step of a turn."""

    name: str
    about: str
    state: State = Field(description="`open` comes after the next one, or never: the turn may be over.")
    at: str | None = Field(description="When it was done, began to run, or failed, RFC 3339.")
    took_s: float | None
    says: str = Field(description="What it found, for what it waits, or what went wrong.")


class GateRowOut(BaseModel):
    """One figure of the gate: of both models, and the change with the bounds of its 95% interval."""

    name: str
    serving: float | None
    new: float | None
    change: float | None = Field(description="A difference; of seconds, a ratio minus one.")
    low: float | None
    high: float | None
    of: str = Field(default="", description="The pairs, notes or rounds that it is a mean over; empty of old turns.")
    says: Literal["better", "not better", "holds", "falls", "not measured"]


class UnseenOut(BaseModel):
    """Hashtags or categories of the newest notes that are new to the serving model."""

    new: int
    share: float = Field(description="Of all that these notes carry.")
    most: list[str] = Field(description="The most frequent ones.")


class TurnOut(BaseModel):
    """One turn: from what readers did to a model that is refused, shipped or taken back."""

    name: str
    begun: str
    told: str = Field(description="When `notellm learn` was last heard of; a run that was killed tells nothing.")
    serving: str = Field(description="The fingerprint of the model that it began with.")
    model: str | None = Field(description="That of the new one.")
    outcome: Literal["refused", "shipped", "taken_back"] | None = Field(description="Null while it is not over.")
    why: str
    steps: list[StepOut]
    gate: list[GateRowOut]
    experiment: str | None
    hashtags: UnseenOut | None
    categories: UnseenOut | None


class LearningOut(BaseModel):
    """The last turns, at most 20, the last one first."""

    turns: list[TurnOut]

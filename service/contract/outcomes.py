"""What became of answers."""

from typing import Literal

from pydantic import BaseModel, Field


class RateOut(BaseModel):
    """Items that were shown, those that were clicked, and their share with the bounds of its 95% interval."""

    shown: int
    clicked: int
    rate: float
    low: float | None = Field(description="Null where all events are of one reader, or of few.")
    high: float | None


class SourceRateOut(RateOut):
    """Of the answers of one model, or of one arm of an experiment."""

    scenario: Literal["related", "search", "tags"]
    model: str = Field(description="The first characters of its fingerprint.")
    arm: str = Field(description="Empty outside of experiments.")


class PositionRateOut(RateOut):
    """Of one place in lists; 11 stands for all from there on."""

    position: int


class OutcomesOut(BaseModel):
    """Rates by the events that name an answer, as they came in: an item that is reported twice counts twice."""

    sources: list[SourceRateOut]
    positions: list[PositionRateOut]

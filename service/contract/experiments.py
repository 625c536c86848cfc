"""Experiments, and what they say."""

from typing import Literal

from pydantic import BaseModel, Field


class ArmOut(BaseModel):
    """A model, and the rules of lists that it is tried with."""

    name: str
    model: str = Field(description="Its fingerprint.")
    rules: dict[str, float | str]


class EstimateOut(BaseModel):
    """A share or a mean with its 95% interval, which holds for one look; null where too little is known for one."""

    value: float
    low: float | None
    high: float | None


class ArmReportOut(BaseModel):
    """Of the lists and suggestions of one arm; ``ctr`` and ``acceptance`` are null where nothing was shown."""

    name: str
    readers: int
    answers: int
    shown: int = Field(description="Items of lists.")
    clicked: int
    ctr: EstimateOut | None
    suggested: int = Field(description="Hashtags for drafts that were written.")
    accepted: int
    acceptance: EstimateOut | None
    slow_s: float = Field(description="99th percentile of the seconds that a list took; 0 without one.")


class ChangeOut(BaseModel):
    """From the first arm to the second, 0.1 for a tenth more; its 95% interval holds at every look together."""

    value: float
    low: float
    high: float
    p_value: float


class SplitOut(BaseModel):
    """The sample-ratio test: whether the arms have as many readers as planned."""

    p_value: float
    holds: bool


class GuardOut(BaseModel):
    """What the second arm may not do worse: both values, and the interval of the change, which holds at every look."""

    name: Literal["failed", "empty", "seconds", "notes"] = Field(
        description="Share of answers that failed, share of empty lists, mean seconds of a list, different notes in "
        "lists. The change of the shares is a difference, that of the seconds a lift."
    )
    first: float | None
    second: float | None
    low: float | None
    high: float | None
    says: str = Field(description="How it falls, in words; empty where it holds.")


class DayOut(BaseModel):
    """The clicks of the lists of one day (UTC), of the arms in their order; null where nothing was shown."""

    day: str
    first: EstimateOut | None
    second: EstimateOut | None


class ReportOut(BaseModel):
    """The report of `notellm experiment report`, as of its last run or the last one of `notellm learn`."""

    made: str = Field(description="When, RFC 3339.")
    until: str | None = Field(description="The time of the last answer that is in it.")
    finding: Literal["nothing", "broken_split", "too_early", "better", "worse", "no_difference"] = Field(
        description="Of the clicks of the second arm; guards may stand against it."
    )
    verdict: str = Field(description="The same in a sentence or two, with the guards that fall.")
    arms: tuple[ArmReportOut, ArmReportOut]
    clicks: ChangeOut | None = Field(description="Of clicks an item; null where it is too early.")
    hashtags: ChangeOut | None = Field(description="Of hashtags accepted.")
    split: SplitOut
    guards: list[GuardOut]
    days: list[DayOut] = Field(description="The last 60 with answers.")
    impressions: bool = Field(description="Whether impressions were reported; else every item of a list was shown.")


class ExperimentOut(BaseModel):
    """Two arms that share a part of all readers evenly; the second is compared with the first."""

    name: str
    state: Literal["runs", "stopped", "shipped"]
    share: float = Field(description="Of all readers.")
    started: str
    ended: str | None
    shipped: str | None = Field(description="The arm whose model was activated at its end.")
    arms: tuple[ArmOut, ArmOut]


class ExperimentsOut(BaseModel):
    """All experiments, the last one first."""

    items: list[ExperimentOut]


class ReportedExperimentOut(ExperimentOut):
    """An experiment with its report."""

    report: ReportOut | None = Field(description="Null before the first run of `notellm experiment report`.")

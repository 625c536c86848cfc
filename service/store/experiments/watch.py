"""The watch over a model that was just activated, as it is kept: whether the one before it is to be active again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

State = Literal["watching", "kept", "taken_back", "unwatched"]


@dataclass(frozen=True, slots=True)
class Watch:
    """Over ``model``, which took the place of ``before``; times are seconds since 1970, by the clock of Redis.

    Args:
        state: "kept" once the time is over, "taken_back" when ``before`` is active again, "unwatched" if it never ran.
        baseline: the figures of ``before`` that `service.experiments.guard` keeps; None until it has.
        reason: what was wrong, one of `service.experiments.guard.REASONS`; ``detail`` says it in words.
        blocked: why ``before`` cannot answer, although ``model`` should not; empty if it can.
        worker: when a worker of ``before`` was last heard of.
    """

    model: str
    before: str
    since: int
    state: State
    baseline: dict[str, Any] | None = None
    ended: int | None = None
    reason: str = ""
    detail: str = ""
    blocked: str = ""
    worker: int | None = None

    def __str__(self) -> str:
        """In a sentence."""
        match self.state:
            case "taken_back":
                return f"{self.model} was taken back for {self.before} at {_time(self.ended or 0)} UTC: {self.detail}"
            case "watching" if self.blocked:
                return f"{self.model} should be taken back ({self.detail}), but {self.blocked}"
            case "watching":
                return f"{self.model} is watched since {_time(self.since)} UTC, against {self.before} before it"
            case "kept":
                return f"{self.model} was watched until {_time(self.ended or 0)} UTC, and kept"
        return f"{self.model} is not watched: it answered before {self.before}, or was taken back once"

    @classmethod
    def decode(cls, fields: Mapping[bytes, bytes]) -> "Watch":
        """Of the fields of its hash. Raises ValueError."""
        try:
            texts = {name.decode(): value.decode() for name, value in fields.items() if value}
            return cls(
                texts["model"],
                texts["before"],
                int(texts["since"]),
                cast(State, texts["state"]),
                json.loads(texts.get("baseline", "null")),
                int(texts["ended"]) if "ended" in texts else None,
                texts.get("reason", ""),
                texts.get("detail", ""),
                texts.get("blocked", ""),
                int(texts["worker"]) if "worker" in texts else None,
            )
        except KeyError as error:
            raise ValueError("no watch") from error


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")

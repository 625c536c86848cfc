"""Calibrated scores: of the suggestions with a score of 0.8, four in five are right.

Maps turn the model's probability and the neighbors' vote into such a score. `model.evaluation.reliability` fits them on
held-out notes, the checkpoint's manifest keeps them, and the gateway, without torch and scikit-learn, applies them.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from model.network.checkpoint import CheckpointError, Manifest
from model.text.suggestions import CLOSER, VOTERS, Candidate, Scores, Uncalibrated

_LEAST = 1e-4
# The votes that the maps were fitted to: others would make every score wrong, without an error.
_VOTES = [VOTERS, CLOSER]


@dataclass(frozen=True, slots=True)
class LogitMap:
    """``sigmoid(bias + slope * logit(p))``; the slope is 1 over the temperature. It never falls, for slope >= 0."""

    bias: float
    slope: float

    def __call__(self, probability: float) -> float:
        """The score for the model's probability."""
        return sigmoid(self.bias + self.slope * logit(probability))


@dataclass(frozen=True, slots=True)
class SuggestionMap:
    """A logistic map of the model's probability p and the neighbors' vote v, with s(v) = log(1 + VOTERS * v).

    ``sigmoid(bias + vote * s(v))`` for a hashtag of the neighbors alone, and
    ``sigmoid(bias + generated + slope * logit(p) + vote_beside * s(v))`` for one that the model wrote: there a vote
    counts less, because both come from the same words. Rises with p and v where no slope is negative.
    """

    bias: float
    generated: float
    slope: float
    vote: float
    vote_beside: float

    def __call__(self, probability: float | None, vote: float) -> float:
        """The score for the model's probability, None if it did not write the hashtag, and the vote."""
        if probability is None:
            return sigmoid(self.bias + self.vote * strength(vote))
        own = self.generated + self.slope * logit(probability)
        return sigmoid(self.bias + own + self.vote_beside * strength(vote))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The maps of one checkpoint; see `Scores`.

    None where nothing tells: ``suggestions`` and ``by_model`` without hashtags, ``by_category`` without categories.
    There the model's own probabilities stand. ``measured`` is free-form: on how many notes and suggestions the maps
    were fitted, and how well they do.
    """

    suggestions: SuggestionMap | None
    by_model: LogitMap | None
    by_category: LogitMap | None
    measured: Mapping[str, Any]

    def suggestion(self, candidate: Candidate) -> float:
        """See `Scores`."""
        if self.suggestions is None:
            return Uncalibrated().suggestion(candidate)
        return self.suggestions(candidate.probability, candidate.vote)

    def alone(self, probability: float) -> float:
        """See `Scores`."""
        return probability if self.by_model is None else self.by_model(probability)

    def category(self, probability: float) -> float:
        """See `Scores`."""
        return probability if self.by_category is None else self.by_category(probability)

    def completed(self, other: "Calibration") -> "Calibration":
        """With the other's maps where it has none of its own."""
        return dataclasses.replace(
            self,
            suggestions=self.suggestions or other.suggestions,
            by_model=self.by_model or other.by_model,
            by_category=self.by_category or other.by_category,
        )

    def encode(self) -> dict[str, Any]:
        """For the manifest."""
        return {"votes": _VOTES, **dataclasses.asdict(self)}

    @classmethod
    def decode(cls, written: Mapping[str, Any]) -> Self:
        """From the manifest. Raises CheckpointError when it is not readable, or was made for other votes."""
        try:
            votes, suggestions = written["votes"], written["suggestions"]
            by_model, by_category = (
                None if written[name] is None else LogitMap(**_numbers(written[name]))
                for name in ("by_model", "by_category")
            )
            calibration = cls(
                None if suggestions is None else SuggestionMap(**_numbers(suggestions)),
                by_model,
                by_category,
                written["measured"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the calibration is not readable ({error}); `notellm calibrate` makes it") from None
        if votes != _VOTES:
            raise CheckpointError("the calibration was made for other votes; `notellm calibrate` makes a new one")
        return calibration


def scores_of(manifest: Manifest) -> Scores:
    """The checkpoint's calibration, if it has one. Raises CheckpointError as `Calibration.decode` does."""
    return Uncalibrated() if manifest.calibration is None else Calibration.decode(manifest.calibration)


def strength(vote: float) -> float:
    """``log(1 + VOTERS * vote)``: the logarithm of the number of equal neighbors, plus one."""
    return math.log1p(VOTERS * vote)


def logit(probability: float) -> float:
    """``log(p / (1 - p))`` of a probability clipped to 0.0001..0.9999."""
    clipped = min(max(probability, _LEAST), 1.0 - _LEAST)
    return math.log(clipped / (1.0 - clipped))


def sigmoid(value: float) -> float:
    """The inverse of `logit`, in 0..1 for any finite value."""
    return 0.5 * (1.0 + math.tanh(value / 2.0))


def _numbers(written: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in written.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("a coefficient is not finite")
    return numbers

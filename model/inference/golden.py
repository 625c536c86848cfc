"""Golden answers: a checkpoint's predictions of the canary notes when it was saved.

Every worker predicts the canaries before it is ready. Vectors that differ, through another precision, another kernel or
another version of a library, would put notes where no search finds them, and nothing else would detect it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend, Prediction, Scored
from model.inference.canaries import CANARIES
from model.network.checkpoint import CheckpointError, Manifest, add_golden

HASHTAGS = 5
LEAST_COSINE = {"float32": 0.999, "bfloat16": 0.99, "float16": 0.99}
# Greedy decoding takes another path wherever two tokens are equally likely, so a few may differ. Each counts by its
# probability: a network that is sure of nothing says something else in every precision.
LEAST_TAGS_ALIKE = 0.8


class GoldenError(CheckpointError):
    """A backend does not give the checkpoint's golden answers; the message states the difference."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Answers to `CANARIES`, in their order: vectors of unit norm, float32, and the probability of each tag."""

    vectors_ND: NDArray[np.float32]
    categories: tuple[dict[str, float], ...]  # none or one a note
    hashtags: tuple[dict[str, float], ...]

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> Self:
        """The answers in these predictions."""
        return cls(
            np.stack([prediction.vector for prediction in predictions]),
            tuple(_scores([prediction.category] if prediction.category else []) for prediction in predictions),
            tuple(_scores(prediction.hashtags) for prediction in predictions),
        )

    @classmethod
    def decode(cls, written: dict[str, Any], dim: int) -> Self:
        """From the manifest."""
        halves = np.frombuffer(base64.b64decode(written["vectors"]), dtype="<f2").reshape(-1, dim)
        return cls(
            halves.astype(np.float32), *(tuple(map(_decoded, written[name])) for name in ("categories", "hashtags"))
        )

    def encode(self) -> dict[str, Any]:
        """For the manifest: vectors as base64 of little-endian float16."""
        halves = base64.b64encode(self.vectors_ND.astype("<f2").tobytes()).decode()
        return {"vectors": halves, "categories": self.categories, "hashtags": self.hashtags}


def record(folder: Path) -> Manifest:
    """Write the golden answers of a checkpoint into its manifest, as plain transformers gives them in float32."""
    from model.inference.hf import HfBackend

    golden = Golden.of(answers(HfBackend.open(folder)))
    return add_golden(folder, golden.encode())


def answers(backend: Backend) -> list[Prediction]:
    """A backend's predictions of the canaries."""
    return backend.predict(backend.tokenize(CANARIES), HASHTAGS)


def check(backend: Backend, manifest: Manifest) -> None:
    """Let a backend predict the canaries, which warms it up, too.

    Raises:
        GoldenError: if a vector or a nearest neighbor differs by more than the backend's precision explains, or more
            categories or hashtags do than rounding can.
        CheckpointError: if the checkpoint has no golden answers.
    """
    if manifest.golden is None:
        raise CheckpointError(f"checkpoint {manifest.fingerprint} has no golden answers; `notellm golden` adds them")
    try:
        expected = Golden.decode(manifest.golden, manifest.dim)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GoldenError(f"the golden answers cannot be read ({error}); `notellm golden` makes them") from None
    actual = Golden.of(answers(backend))
    least = LEAST_COSINE[backend.dtype]
    cosines_N = (actual.vectors_ND * expected.vectors_ND).sum(axis=1)
    worst = int(cosines_N.argmin())
    # Written so that NaN fails.
    if not cosines_N[worst] >= least:
        raise GoldenError(
            f"the vector of {CANARIES[worst].id} is not the checkpoint's: cosine {cosines_N[worst]:.4f}, "
            f"{least} is the least in {backend.dtype}"
        )
    strayed = _strayed(actual.vectors_ND, expected.vectors_ND, 2 * (1 - least))
    if strayed:
        names = ", ".join(CANARIES[row].id for row in strayed)
        raise GoldenError(f"the nearest neighbors of {names} are not the checkpoint's")
    _check_tags(actual, expected)


def _strayed(found_ND: NDArray[np.float32], expected_ND: NDArray[np.float32], tie: float) -> list[int]:
    """Rows whose nearest other row has changed to one that was not within ``tie`` of the nearest."""
    expected_NN, found_NN = expected_ND @ expected_ND.T, found_ND @ found_ND.T
    np.fill_diagonal(expected_NN, -np.inf)
    np.fill_diagonal(found_NN, -np.inf)
    rows = np.arange(len(found_ND))
    lost_N = expected_NN.max(axis=1) - expected_NN[rows, found_NN.argmax(axis=1)]
    strayed: list[int] = np.flatnonzero(lost_N > tie).tolist()
    return strayed


def _check_tags(actual: Golden, expected: Golden) -> None:
    for kind in ("categories", "hashtags"):
        alike = np.mean([_alike(*pair) for pair in zip(getattr(actual, kind), getattr(expected, kind), strict=True)])
        if alike < LEAST_TAGS_ALIKE:
            raise GoldenError(f"only {alike:.0%} of the canaries' {kind} are the checkpoint's")


def _alike(one: dict[str, float], other: dict[str, float]) -> float:
    """1 less the mean, over the tags of either, of the probability of one that is missing. Jaccard, if sure."""
    differing = [probability for name, probability in (one | other).items() if name not in one or name not in other]
    return 1.0 - sum(differing) / len(one | other) if differing else 1.0


def _scores(tags: Sequence[Scored]) -> dict[str, float]:
    return {tag.name: round(tag.score, 4) for tag in tags}


def _decoded(tags: Any) -> dict[str, float]:
    """Of a note in the manifest; in earlier ones there are names alone, which count as sure."""
    if isinstance(tags, dict):
        return tags
    return dict.fromkeys([] if tags is None else [tags] if isinstance(tags, str) else tags, 1.0)

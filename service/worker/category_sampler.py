"""Ill. as a live metric: how often the model, writing freely, names a category outside the closed set."""

import hashlib
import logging
from collections.abc import Collection, Sequence

from model.backend import Prompt
from model.evaluation.metrics import illegal_share
from service import metrics
from service.worker.engine import Engine

log = logging.getLogger(__name__)


class CategorySampler:
    """Has the model write the category of a small share of stored notes freely, once they are published.

    The sample depends on the ids alone, so that a note is always or never in it. ``share`` is in 0..1; 0 switches it
    off, and so does a model without categories.
    """

    def __init__(self, engine: Engine, categories: Collection[str], share: float) -> None:
        self._engine = engine
        self._categories = categories
        self._share = share if categories else 0.0

    async def sample(self, prompts: Sequence[Prompt]) -> None:
        """Count the categories written for the sampled ones of the prompts; a failure is only logged."""
        sampled = [prompt for prompt in prompts if place_of(prompt.note.id) < self._share]
        if not sampled:
            return
        try:
            written = await self._engine.write_categories(sampled)
        except Exception as error:
            log.warning("category_sample_failed", extra={"notes": len(sampled), "error": type(error).__name__})
            return
        metrics.CATEGORIES_SAMPLED.inc(len(written))
        metrics.CATEGORIES_ILLEGAL.inc(round(illegal_share(written, self._categories) * len(written)))


def place_of(note_id: str) -> float:
    """A place in [0, 1), spread evenly over ids and always the same for one."""
    digest = hashlib.blake2b(note_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64

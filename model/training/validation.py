"""Validation: Recall@10 of notes that a run keeps apart, measured while it trains. Shapes: V notes, D embedding size.

The notes come from the training's own, so those that an evaluation holds out decide nothing here.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model.training.examples import Examples
from model.training.state import Pairs
from model.training.step import Step

RECALL_AT = 10
LEAST_PAIRS = 30
MOST_NOTES = 2000  # more would cost more time than they make the figure exact
NAME = f"recall@{RECALL_AT}"


def split_off(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, Pairs]:
    """Pairs to train on, and pairs to validate with. No note has both; pairs of a note of each kind are left out.

    Args:
        share: of the notes that have pairs, `MOST_NOTES` at most; those are kept apart.

    Raises:
        ValueError: if so few pairs lie between them that a recall would say nothing.
    """
    wanted = min(share * len({note for pair in pairs for note in pair}), MOST_NOTES)
    apart: set[str] = set()
    for pair in random.Random(f"{seed}:validation").sample(pairs, len(pairs)):
        if len(apart) >= wanted:
            break
        apart |= {*pair}
    kept = [pair for pair in pairs if apart.isdisjoint(pair)]
    gold = [pair for pair in pairs if apart.issuperset(pair)]
    if len(gold) < LEAST_PAIRS or len(apart) < 2 * RECALL_AT:
        raise ValueError(
            f"validation needs {LEAST_PAIRS} pairs of {2 * RECALL_AT} notes at least, and {share:.1%} of the notes "
            f"make {len(gold)} of {len(apart)}: raise validation_share, give more pairs, or set validate_every=0"
        )
    return kept, gold


@dataclass(frozen=True, slots=True)
class Validation:
    """Pairs to find again, each from both of its notes, among the notes of all of them."""

    notes: tuple[int, ...]  # places among the examples' notes
    pairs: tuple[tuple[int, int], ...]  # places among `notes`

    @classmethod
    def of(cls, gold: Pairs, note_ids: Sequence[str]) -> "Validation":
        """Of the pairs that `split_off` kept for it."""
        place = {
            note_id: number for number, note_id in enumerate(dict.fromkeys(note for pair in gold for note in pair))
        }
        position = {note_id: number for number, note_id in enumerate(note_ids)}
        pairs = [(place[a], place[b]) for a, b in gold]
        return cls(tuple(position[note_id] for note_id in place), (*pairs, *((b, a) for a, b in pairs)))

    def recall(self, step: Step, examples: Examples) -> float:
        """Share of the pairs whose second note is among the first's `RECALL_AT` nearest; the same on every rank."""
        unit_VD = F.normalize(step.embed(examples, self.notes).float(), dim=-1)
        cosines_VV = (unit_VD @ unit_VD.T).fill_diagonal_(-1.0)
        nearest_VK = cosines_VV.topk(RECALL_AT).indices
        first, second = torch.tensor(self.pairs, device=unit_VD.device).T
        found = (nearest_VK[first] == second[:, None]).any(dim=1).float().mean()
        return float(step.ranks.sum(found)) / step.ranks.world

"""The gate: the new model has to be surely better at finding related notes, and may lose of nothing else.

Every figure is a difference on the same pairs or notes, with the 95% interval of a paired bootstrap. "Surely" means
that the whole interval says so. A guard falls where it is surely lower, and where a hundred notes or more judge and
more than a fifth of it is gone, surely or not. Pairs of one reader are mostly chance, and a reader of many notes makes
many of them: they judge only where those of two readers are too few.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.pairs import Pairs
from model.evaluation.gate.measured import Contender, Measured, measure, seconds_in_turns
from model.evaluation.metrics import Interval, bootstrap, paired_bootstrap
from model.evaluation.report import MIN_USERS
from model.evaluation.tables import markdown
from model.note import Note

# A new model may take that much longer to embed a note.
_SLOWER = 0.1
# Notes with a pair of two readers from which on these pairs stand alone: then they tell a change as surely as all do.
ENOUGH_TARGETS = 100
# Of a guard that so many notes judge, a new model may lose a share where chance may have done it, and a point in any
# case: a figure that is lower guards nothing. Of fewer notes chance takes more from models that are as good.
_MANY_NOTES, _LOST, _POINT = 100, 0.2, 0.01
# Notes below which a bootstrap says nothing, so that no guard falls.
_FEWEST_NOTES = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: of the serving model, of the new one, and the change from the first to the second.

    ``of``: how many pairs or notes it is a mean over, in words. ``says``: "better" or "not better" of the figure that
    decides; "holds" or "falls" of a guard; "not measured".
    """

    name: str
    serving: float | None
    new: float | None
    change: Interval | None
    of: str
    says: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All figures, that which decides first; ``passes`` if it is better and no guard falls."""

    rows: tuple[Row, ...]

    @property
    def passes(self) -> bool:
        """Whether the new model may be tried on readers."""
        return all(row.says in ("better", "holds", "not measured") for row in self.rows)

    @property
    def reasons(self) -> str:
        """What stands against the new model, in words; empty where it passes."""
        against = [
            f"{row.name} {'is not surely better' if row.says == 'not better' else 'falls'}"
            for row in self.rows
            if row.says in ("not better", "falls")
        ]
        return ", ".join(against)

    def encode(self) -> list[dict[str, Any]]:
        """As JSON has it."""
        return [asdict(row) for row in self.rows]


def to_believe(pairs: Pairs) -> Pairs:
    """Those of two readers or more, where `ENOUGH_TARGETS` notes have one; else all."""
    supported = pairs.supported_by(MIN_USERS)
    return supported if len(set(supported.note_ids)) >= ENOUGH_TARGETS else pairs


def judge(serving: Contender, new: Contender, pool: Sequence[Note], gold: Pairs, *, k: int, limit: int) -> Verdict:
    """Compare two models on held-out notes, by the pairs `to_believe`; see `measure`."""
    gold = to_believe(gold)
    before, after = (measure(model, pool, gold, k, limit) for model in (serving, new))
    return verdict(before, after, seconds_in_turns(serving, new, pool), gold, k)


def verdict(serving: Measured, new: Measured, seconds_R2: NDArray[np.float64], gold: Pairs, k: int) -> Verdict:
    """What the figures of two models say. ``seconds_R2`` has the serving model's first."""
    targets = np.unique(np.array(gold.note_ids), return_inverse=True)[1]
    recall = paired_bootstrap(new.hit_P, serving.hit_P, targets)
    took = bootstrap(seconds_R2[:, 1] / seconds_R2[:, 0] - 1)
    before_s, after_s = np.median(seconds_R2, axis=0).tolist()
    return Verdict(
        (
            Row(
                f"Recall@{k}",
                float(serving.hit_P.mean()),
                float(new.hit_P.mean()),
                recall,
                pairs_of(gold),
                "better" if recall.low > 0 else "not better",
            ),
            _guard("F1 of hashtags", serving.f1_H, new.f1_H),
            _guard("right categories", serving.right_C, new.right_C),
            _guard("categories in the closed set", 1 - serving.illegal_C, 1 - new.illegal_C),
            Row(
                "seconds to embed a note",
                before_s,
                after_s,
                took,
                f"{len(seconds_R2)} rounds",
                "falls" if took.low > _SLOWER else "holds",
            ),
        )
    )


def format_verdict(found: Verdict) -> str:
    """The table, as Markdown: shares in percent, changes in points; times in milliseconds, their change in percent."""
    body = []
    for row in found.rows:
        scale = 1000 if row.name.startswith("seconds") else 100
        cells = ["" if value is None else f"{scale * value:.2f}" for value in (row.serving, row.new)]
        between = (
            row.change and f"{100 * row.change.mean:+.2f} ({100 * row.change.low:+.2f} to {100 * row.change.high:+.2f})"
        )
        name = row.name.replace("seconds", "milliseconds")
        body.append([name if scale == 1000 else f"{name}, %", *cells, between or "", row.of, row.says])
    return markdown(["", "serving", "new", "change (95% interval)", "of", ""], body)


def pairs_of(pairs: Pairs) -> str:
    """How many pairs, and whether single readers have made some of them, in words."""
    by = "of two readers or more" if len(pairs) and pairs.users.min() >= MIN_USERS else "also of single readers"
    return f"{len(pairs):,} pairs ({by})"


def _guard(name: str, serving: NDArray[np.float64], new: NDArray[np.float64]) -> Row:
    """A figure of which more is better, and of which nothing may surely be lost, nor much where many notes judge."""
    of = f"{len(serving):,} notes"
    if len(serving) < _FEWEST_NOTES:
        return Row(name, None, None, None, of, "not measured")
    change, before = paired_bootstrap(new, serving), float(serving.mean())
    lost = len(serving) >= _MANY_NOTES and change.mean < -max(_LOST * before, _POINT)
    if before < _POINT:
        of += ", below a point: guards little"
    return Row(name, before, float(new.mean()), change, of, "falls" if change.high < 0 or lost else "holds")

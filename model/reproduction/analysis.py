"""What a reproduction found, from saved results alone: a row for each method of each table, with intervals.

Neither data nor models are needed. Ranks and answers hold every figure, and the intervals are drawn from them anew.
Figures are shares in 0..1. Shapes: S seeds, P gold pairs, A asked notes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.evaluation.metrics import Figure, bootstrap
from model.evaluation.report import ALL_PAIRS, MIN_USERS, supported_pairs
from model.evaluation.retrieval import KS
from model.reproduction.results import ANSWERS, PLAN, RANKS, load_result

SUPPORTED = supported_pairs(MIN_USERS)
# Columns of generation: name of the figure, and how the tables call it.
FIGURES = {
    "accuracy": "Acc.",
    "illegal": "Ill.",
    "unconstrained_accuracy": "Acc., unconstrained",
    "unconstrained_illegal": "Ill., unconstrained",
    "bleu4": "BLEU4",
    "bleu4_public_code": "BLEU4 of the public code",
    "rouge1": "ROUGE1",
    "rouge2": "ROUGE2",
    "rouge_l": "ROUGEL",
    "f1": "F1@5",
}
# What the plots draw between the k of the tables.
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

Values = NDArray[np.float64]
Recall = Mapping[int, Figure]


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one table.

    ``recall``: Recall@k by set of gold pairs. ``buckets``: by exposure of the truth. ``lead``: how far NoteLLM is ahead
    of it, pair by pair, None for NoteLLM itself. All but the first are over the report's ``gold``. ``generation``:
    figures by name, see `FIGURES`; empty for a method without.
    """

    table: int
    label: str
    value: float | None
    seeds: int
    recall: Mapping[str, Recall]
    buckets: Mapping[str, Recall]
    lead: Recall | None
    curve: Recall
    generation: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown. ``gold`` names the set of pairs that tables are about unless they say otherwise;
    ``missing`` the rows, by table, whose runs are not all done; ``debias_weights`` b of each seed, if fitted."""

    statement: Mapping[str, Any]
    gold: str
    sets: Mapping[str, Mapping[str, int]]
    ks: tuple[int, ...]
    debias_weights: Sequence[float]
    rows: Sequence[Row]
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Gold:
    """The gold pairs: place of the target, number of users, and bucket of the truth, each of shape (P,)."""

    targets: NDArray[np.int64]
    users: NDArray[np.int64]
    buckets: dict[str, NDArray[np.bool_]]

    def sets(self) -> dict[str, NDArray[np.bool_]]:
        """The sets of pairs, the one to believe first; a set that would be empty is left out."""
        sets = {SUPPORTED: self.users >= MIN_USERS, ALL_PAIRS: np.ones(len(self.users), dtype=np.bool_)}
        return {name: inside for name, inside in sets.items() if inside.any()}


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the finished runs of a row found: ranks, shape (S, P), answers by figure, each (S, A), and figures of all
    texts at once by name, each (S,)."""

    ranks: NDArray[np.int64]
    answers: Mapping[str, Values]
    at_once: Mapping[str, Values]
    debias_weights: Sequence[float | None]

    def hits(self, k: int) -> Values:
        """Which truths are among the first k, shape (S, P)."""
        found_SP: NDArray[np.bool_] = self.ranks < k
        return found_SP.astype(np.float64)


def build_report(out: Path, ks: Sequence[int] = KS) -> Report:
    """Every figure of the plan's finished runs. Raises ValueError as `write_report` does."""
    if not (out / PLAN).is_file():
        raise ValueError(f"{out}: no {PLAN} there; run `notellm reproduce --data DIR --out {out}` first")
    plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
    gold, tag_notes = _read_gold(out / plan["gold"]), plan["statement"]["tag_notes"]
    measure = _Figures(gold, tuple(k for k in ks if k < plan["statement"]["pool"]) or tuple(ks[:1]))
    ours = _measured(out, plan["ours"], "ranks", tag_notes)
    rows, missing = [], []
    for row in tqdm(plan["rows"], desc="report", unit="row", delay=1, disable=None):
        found = _measured(out, row["runs"], row["ranks"], tag_notes)
        done = 0 if found is None else len(found.ranks)
        if done < len(row["runs"]):
            missing.append(f"Table {row['table']}, {row['label']}: {done} of {len(row['runs'])} runs done")
        if found is not None:
            is_ours = (row["runs"], row["ranks"]) == (plan["ours"], "ranks")
            rows.append(measure.row(row, found, None if is_ours else ours))
    if not rows:
        raise ValueError(f"{out}: no run is done yet; run `notellm reproduce --data DIR --out {out}` again")
    sets = gold.sets()
    sizes = {
        name: {"pairs": int(inside.sum()), "targets": len(np.unique(gold.targets[inside]))}
        for name, inside in sets.items()
    }
    weights = [] if ours is None else [weight for weight in ours.debias_weights if weight is not None]
    return Report(plan["statement"], next(iter(sets)), sizes, measure.ks, weights, rows, missing)


class _Figures:
    """Makes the figures of a row. Rows that share their runs share the work."""

    def __init__(self, gold: _Gold, ks: tuple[int, ...]) -> None:
        self.ks = ks
        self._gold = gold
        self._sets = gold.sets()
        self._believed = next(iter(self._sets.values()))
        self._known: dict[str, Any] = {}

    def row(self, planned: Mapping[str, Any], found: _Measured, ours: _Measured | None) -> Row:
        """The row, with its distance to ``ours`` if that is another method's and done."""
        key = "+".join([planned["ranks"], *planned["runs"]])
        if key not in self._known:
            self._known[key] = self._measure(found, ours)
        return Row(planned["table"], planned["label"], planned["value"], len(found.ranks), **self._known[key])

    def _measure(self, found: _Measured, ours: _Measured | None) -> dict[str, Any]:
        believed = self._believed
        curve = sorted({k for k in CURVE if k < self.ks[-1]} | set(self.ks))
        return {
            "recall": {name: self._recall(found.hits, inside, self.ks) for name, inside in self._sets.items()},
            "buckets": {
                name: self._recall(found.hits, believed & inside, self.ks)
                for name, inside in self._gold.buckets.items()
                if (believed & inside).any()
            },
            "lead": None if ours is None else self._recall(partial(_ahead, ours, found), believed, self.ks),
            "curve": self._recall(found.hits, believed, curve),
            "generation": {name: _figure(values) for name, values in found.answers.items()}
            | {name: Figure(float(values.mean()), spread=_spread(values)) for name, values in found.at_once.items()},
        }

    def _recall(self, hits: Callable[[int], Values], inside: NDArray[np.bool_], ks: Sequence[int]) -> dict[int, Figure]:
        return {k: _figure(hits(k)[:, inside], self._gold.targets[inside]) for k in ks}


def _ahead(ours: _Measured, other: _Measured, k: int) -> Values:
    """By how much we hit more, pair by pair, each side a mean over its seeds, shape (1, P)."""
    ahead_P: Values = ours.hits(k).mean(axis=0) - other.hits(k).mean(axis=0)
    return ahead_P[None]


def _figure(values: Values, groups: NDArray[np.int64] | None = None) -> Figure:
    """The mean of values, shape (S, n), with the interval of their means over the seeds."""
    interval = bootstrap(values.mean(axis=0), groups)
    return Figure(interval.mean, interval.low, interval.high, _spread(values.mean(axis=1)))


def _spread(means: Values) -> float | None:
    return float(means.std(ddof=1)) if len(means) > 1 else None


def _read_gold(path: Path) -> _Gold:
    arrays = _arrays(path)
    targets, users = arrays.pop("targets"), arrays.pop("users")
    return _Gold(targets, users, arrays)


def _measured(out: Path, runs: Sequence[str], ranks_name: str, tag_notes: int) -> _Measured | None:
    """What those runs that are done have found, None if none is.

    ``ranks_name`` is the array of their ranks. Answers to another number of notes than ``tag_notes`` are left out.
    """
    results = {out / "runs" / run: load_result(out / "runs" / run) for run in runs}
    done = {folder: result for folder, result in results.items() if result is not None}
    if not done:
        return None
    said = {
        folder: result.generation
        for folder, result in done.items()
        if result.generation is not None and result.generation["wanted"] == tag_notes
    }
    return _Measured(
        np.stack([_arrays(folder / RANKS)[ranks_name] for folder in done]),
        _stacked([_arrays(folder / ANSWERS) for folder in said]),
        _stacked([generation["at_once"] for generation in said.values()]),
        [result.debias_weight for result in done.values()],
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as saved:
        return dict(saved)


def _stacked(runs: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    return {
        name: np.stack([np.asarray(run[name], dtype=np.float64) for run in runs]) for name in (runs[0] if runs else ())
    }

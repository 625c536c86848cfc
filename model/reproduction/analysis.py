"""The figures of a report: a row for each method of each table, with intervals.

They come from saved ranks and answers, and the intervals are bootstrapped from those anew: neither data nor models are
needed. Figures are shares in 0..1. Shapes: S seeds, P gold pairs, A notes with answers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.evaluation.metrics import Figure, average_hits, bootstrap
from model.evaluation.report import ALL_PAIRS, MIN_USERS, supported_pairs
from model.evaluation.retrieval import CLICKS, KS, fitting
from model.reproduction.grid import COLD_START, EXPOSURE
from model.reproduction.results import (
    ANSWERS,
    DEBIAS_WEIGHT,
    FORMAT,
    PLAN,
    gold_file,
    load_arrays,
    load_result,
    ranks_file,
    ranks_name,
)

SUPPORTED = supported_pairs(MIN_USERS)
# Columns of generation: name of the figure, and its heading.
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
# The plots draw these between the k of the tables.
CURVE = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))

Values = NDArray[np.float64]
Masks = Mapping[str, NDArray[np.bool_]]
Recall = Mapping[int, Figure]


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one table.

    ``recall``: Recall@k by set of gold pairs, ``average`` their mean over the k. ``buckets``: by exposure and by clicks
    of the truth. ``lead``: how far NoteLLM is ahead of it, pair by pair, None for NoteLLM itself. All but ``recall``
    are over the pool's ``gold``. ``generation``: figures by name, see `FIGURES`; empty for a method without.
    """

    table: str
    label: str
    value: float | None
    pool: str
    seeds: int
    recall: Mapping[str, Recall]
    average: Figure
    buckets: Mapping[str, Recall]
    lead: Recall | None
    curve: Recall
    generation: Mapping[str, Figure]

    @property
    def sliced(self) -> Mapping[str, Recall]:
        """The buckets that its table is about."""
        wanted = {name: COLD_START if name in CLICKS else EXPOSURE for name in self.buckets}
        return {name: recall for name, recall in self.buckets.items() if wanted[name] == self.table}


@dataclass(frozen=True, slots=True)
class Ranked:
    """A pool and its gold pairs in figures. ``gold`` names the set that tables are about unless they say otherwise;
    ``buckets`` has the pairs of it in each bucket."""

    data: str
    notes: int
    ks: tuple[int, ...]
    gold: str
    sets: Mapping[str, Mapping[str, int]]
    buckets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown. ``pools`` by key, that of the split first; ``missing`` the rows, by table, whose runs
    are not all done; ``debias_weights`` b of each seed, if fitted."""

    statement: Mapping[str, Any]
    pools: Mapping[str, Ranked]
    debias_weights: Sequence[float]
    rows: Sequence[Row]
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Gold:
    """The gold pairs: places of their targets, shape (P,), and which pairs are in each set and bucket, (P,) each.

    The first set is the one to believe; buckets are of it alone. Neither holds an empty one.
    """

    targets: NDArray[np.int64]
    sets: Masks
    buckets: Masks


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the finished runs of a row measured: ranks, shape (S, P), answers by figure, each (S, A), and figures of
    all texts at once by name, each (S,)."""

    ranks: NDArray[np.int64]
    answers: Mapping[str, Values]
    at_once: Mapping[str, Values]
    debias_weights: Sequence[float]

    def hits(self, k: int) -> Values:
        """Which truths are among the first k, shape (S, P)."""
        return np.asarray(self.ranks < k, dtype=np.float64)


def build_report(out: Path, ks: Sequence[int] = KS) -> Report:
    """Every figure of the plan's finished runs. Raises ValueError as `write_report` does."""
    if not (out / PLAN).is_file():
        raise ValueError(f"{out}: no {PLAN} there; run `notellm reproduce --data DIR --out {out}` first")
    plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
    if plan["format"] != FORMAT:
        raise ValueError(f"{out / PLAN} is of another version; run `notellm reproduce --data DIR --out {out}` again")
    golds = {key: _load_gold(out / gold_file(key)) for key in plan["pools"]}
    pools = {key: _ranked(golds[key], fitting(ks, pool["notes"]), **pool) for key, pool in plan["pools"].items()}
    main = next(iter(pools))

    @cache
    def measured(pool: str, ranks: str, *runs: str) -> _Measured | None:
        return _load_measured(out, pool, ranks, runs, plan["statement"]["tag_notes"])

    @cache  # rows that share their runs share the work
    def figures(pool: str, *key: str) -> Mapping[str, Any] | None:
        row, ours = measured(pool, *key), (ranks_name(0.0), *plan["ours"])
        rival = None if key == ours else measured(pool, *ours)
        return None if row is None else _figures(golds[pool], pools[pool].ks, row, rival)

    rows, missing = [], []
    for row in tqdm(plan["rows"], desc="report", unit="row", delay=1, disable=None):
        fields = figures(row["pool"], row["ranks"], *row["runs"])
        done = 0 if fields is None else fields["seeds"]
        if done < len(row["runs"]):
            missing.append(f"{table_name(row['table'])}, {row['label']}: {done} of {len(row['runs'])} runs done")
        if fields is not None:
            rows.append(Row(row["table"], row["label"], row["value"], row["pool"], **fields))
    if not rows:
        raise ValueError(f"{out}: no run is done yet; run `notellm reproduce --data DIR --out {out}` again")
    our_runs = measured(main, ranks_name(0.0), *plan["ours"])
    return Report(plan["statement"], pools, our_runs.debias_weights if our_runs else [], rows, missing)


def table_name(table: str) -> str:
    """``Table 4`` for the paper's, ``Cold start`` for another."""
    return f"Table {table}" if table.isdigit() else table.replace("-", " ").capitalize()


def _ranked(gold: _Gold, ks: tuple[int, ...], *, data: str, notes: int) -> Ranked:
    sizes = {
        name: {"pairs": int(inside.sum()), "targets": len(np.unique(gold.targets[inside]))}
        for name, inside in gold.sets.items()
    }
    buckets = {name: int(inside.sum()) for name, inside in gold.buckets.items()}
    return Ranked(data, notes, ks, next(iter(gold.sets)), sizes, buckets)


def _figures(gold: _Gold, ks: Sequence[int], row: _Measured, ours: _Measured | None) -> Mapping[str, Any]:
    """The fields of a `Row`, with its distance to ``ours`` if that is another method's and done."""
    believed = next(iter(gold.sets.values()))
    curve = sorted({k for k in CURVE if k < ks[-1]} | set(ks))

    def recall(inside: NDArray[np.bool_], ks: Sequence[int], hits: Callable[[int], Values] = row.hits) -> Recall:
        return {k: _figure(hits(k)[:, inside], gold.targets[inside]) for k in ks}

    def ahead(k: int) -> Values:
        """By how much we hit more, pair by pair, each side a mean over its seeds, shape (1, P)."""
        assert ours is not None
        ahead_P: Values = ours.hits(k).mean(axis=0) - row.hits(k).mean(axis=0)
        return ahead_P[None]

    of_pairs = np.stack([average_hits(ranks_P[believed], ks) for ranks_P in row.ranks])
    return {
        "seeds": len(row.ranks),
        "recall": {name: recall(inside, ks) for name, inside in gold.sets.items()},
        "average": _figure(of_pairs, gold.targets[believed]),
        "buckets": {name: recall(inside, ks) for name, inside in gold.buckets.items()},
        "lead": None if ours is None else recall(believed, ks, ahead),
        "curve": recall(believed, curve),
        "generation": {name: _figure(values) for name, values in row.answers.items()}
        | {name: Figure(float(values.mean()), spread=_spread(values)) for name, values in row.at_once.items()},
    }


def _figure(values: Values, groups: NDArray[np.int64] | None = None) -> Figure:
    """The mean of values, shape (S, n), with the interval of their means over the seeds."""
    interval = bootstrap(values.mean(axis=0), groups)
    return Figure(interval.mean, interval.low, interval.high, _spread(values.mean(axis=1)))


def _spread(means: Values) -> float | None:
    return float(means.std(ddof=1)) if len(means) > 1 else None


def _load_gold(path: Path) -> _Gold:
    buckets = load_arrays(path)
    targets, users = buckets.pop("targets"), buckets.pop("users")
    sets = _not_empty({SUPPORTED: users >= MIN_USERS, ALL_PAIRS: np.ones(len(users), dtype=np.bool_)})
    believed = next(iter(sets.values()))
    return _Gold(targets, sets, _not_empty({name: believed & inside for name, inside in buckets.items()}))


def _not_empty(masks: Masks) -> Masks:
    return {name: inside for name, inside in masks.items() if inside.any()}


def _load_measured(out: Path, pool: str, ranks: str, runs: Sequence[str], tag_notes: int) -> _Measured | None:
    """The runs that ranked the pool, None if there is none; predictions for another number of notes are left out.

    ``ranks`` is the array of their ranks.
    """
    folders = {out / "runs" / run: load_result(out / "runs" / run) for run in runs}
    done = {folder: result for folder, result in folders.items() if result and (folder / ranks_file(pool)).is_file()}
    if not done:
        return None
    generated = {folder: result.generation for folder, result in done.items() if result.generation is not None}
    generated = {folder: figures for folder, figures in generated.items() if figures["wanted"] == tag_notes}
    saved = [load_arrays(folder / ranks_file(pool)) for folder in done]
    return _Measured(
        np.stack([arrays[ranks] for arrays in saved]),
        _stacked([load_arrays(folder / ANSWERS) for folder in generated]),
        _stacked([figures["at_once"] for figures in generated.values()]),
        [float(arrays[DEBIAS_WEIGHT][0]) for arrays in saved if DEBIAS_WEIGHT in arrays],
    )


def _stacked(runs: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    return {name: np.stack([np.asarray(run[name], np.float64) for run in runs]) for name in (runs[0] if runs else ())}

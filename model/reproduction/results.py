"""The saved results of a reproduction, for its report and for the next start.

    out/plan.json                         the rows, their runs, and the data in figures
    out/gold-<pool>.npz                   the gold pairs of a pool, which every run ranks
    out/runs/<name>-<key>/result.json     the method, and how well it predicts
    out/runs/<name>-<key>/ranks-<pool>.npz  the rank of every gold pair's truth
    out/runs/<name>-<key>/answers.npz     how right the category and the hashtags of each note are, if it predicts any
    out/runs/<name>-<key>/checkpoint/     may be deleted when the run is finished

Every file replaces the old one as a whole: a kill leaves the old file or the new one.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.files import write_bytes

FORMAT = 2
PLAN, RESULT, ANSWERS = "plan.json", "result.json", "answers.npz"
DEBIAS_WEIGHT = "debias-weight"  # among the ranks: b of `model.evaluation.debias`, shape (1,), where it was fitted


@dataclass(frozen=True, slots=True)
class Result:
    """The figures that a run saves next to its arrays.

    ``trained_on``: what training reported, None for an untrained method. ``generation``: figures over all predicted
    notes, and the limit on their number (``wanted``); None before the run predicts.
    """

    method: Mapping[str, Any]
    trained_on: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] | None = None


def gold_file(pool: str) -> str:
    """The file of a pool's gold pairs."""
    return f"gold-{pool}.npz"


def ranks_file(pool: str) -> str:
    """The file of a run's ranks in a pool."""
    return f"ranks-{pool}.npz"


def ranks_name(debias: float) -> str:
    """The name of the array of ranks with so much popularity taken out."""
    return f"debias-{debias:g}" if debias else "ranks"


def load_result(folder: Path) -> Result | None:
    """The result of a run, None before it has ranked."""
    path = folder / RESULT
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as a compressed .npz, as safely as `write_json`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz by name."""
    with np.load(path) as saved:
        return dict(saved)

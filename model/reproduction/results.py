"""What is kept of a reproduction, for its report and for the next start.

    out/plan.json                         the rows, their runs, and the data in figures
    out/gold-<key>.npz                    the gold pairs: what every run ranked
    out/runs/<name>-<key>/result.json     what a run was, and how it generated
    out/runs/<name>-<key>/ranks.npz       the rank of every gold pair's truth
    out/runs/<name>-<key>/answers.npz     how right each category and each note's hashtags were, if it was asked
    out/runs/<name>-<key>/checkpoint/     may be deleted when the run is finished

Every file is written beside its place and renamed: a kill leaves the old file or the new one.
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

FORMAT = 1
PLAN, RESULT, RANKS, ANSWERS = "plan.json", "result.json", "ranks.npz", "answers.npz"


@dataclass(frozen=True, slots=True)
class Result:
    """What is saved of a run beside its arrays.

    ``trained_on``: what training said, None for who needs none. ``debias_weight``: b of `model.evaluation.debias`,
    where it was fitted. ``generation``: figures over all asked notes, and how many were wanted; None until the run
    was asked.
    """

    method: Mapping[str, Any]
    trained_on: Mapping[str, Any] | None = None
    debias_weight: float | None = None
    generation: Mapping[str, Any] | None = None


def ranks_name(debias: float) -> str:
    """The array of a run's ranks with so much popularity taken out."""
    return f"debias-{debias:g}" if debias else "ranks"


def load_result(folder: Path) -> Result | None:
    """What a run left, None if it did not get so far."""
    path = folder / RESULT
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as a compressed .npz, as safely as `write_json`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())

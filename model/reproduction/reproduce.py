"""One command from raw data to the paper's Tables 2 to 6: the split, the plan, and the runs that are not done yet."""

import os
from pathlib import Path

from tqdm import tqdm

from model.files import write_json
from model.reproduction.grid import OURS_NAME, Plan, Request, describe_plan, plan, unique_cells
from model.reproduction.results import FORMAT, PLAN, ranks_name, write_arrays
from model.reproduction.run import Run, Runners
from model.reproduction.split import Data, Split, load_data, split_data


def reproduce(folder: Path, request: Request, out: Path, runners: Runners | None = None) -> None:
    """Do every run of the asked tables that is not done, and save in ``out`` what the report needs.

    Started by torchrun, every process trains and the first alone measures and writes.

    Args:
        folder: notes and events, see `load_notes` and `load_events`.
        runners: train, embed and predict; by default with this package.

    Raises:
        DataError: if a file is not what it should be, or leaves nothing to train on or to rank.
        ValueError: see `model.training.train.train`; runs that are done stay done.
    """
    data = load_data(folder)
    rows = plan(request, data.digest, bool(data.categories), out)
    split = split_data(data, request)
    rows = [(row, cells) for row, cells in rows if split.validation or not row.debias]
    first = is_first_process()
    if first:
        gold_file = f"gold-{data.digest}-{request.split_seed}-{request.holdout:g}.npz"
        write_arrays(out / gold_file, **split.gold_arrays())
        statement = _statement(folder, request, data, split)
        write_json(out / PLAN, {"format": FORMAT, "statement": statement, "gold": gold_file, **_plan_file(rows)})
    cells = unique_cells(rows)
    with tqdm(total=len(cells), desc="reproduce", unit="run", disable=not first) as progress:
        for cell in cells:
            progress.set_postfix_str(cell.folder.name)
            Run(cell, data, split, request.tag_notes, runners or Runners()).do(first)
            progress.update()


def is_first_process() -> bool:
    """Whether this process measures and writes; of those that torchrun started one does."""
    return os.environ.get("RANK", "0") == "0"


def preview(folder: Path, request: Request, out: Path) -> str:
    """The runs that `reproduce` would do, a line each: its name, its progress, its tables. Raises DataError."""
    data = load_data(folder)
    return describe_plan(plan(request, data.digest, bool(data.categories), out), request.tag_notes)


def _statement(folder: Path, request: Request, data: Data, split: Split) -> dict[str, object]:
    """Data, split and training in figures, for the head of the report."""
    recipe = request.recipe
    return {
        "data": folder.resolve().name,
        "digest": data.digest,
        "notes": len(data.notes),
        "events": len(data.events),
        "users": data.events.num_users,
        "categories": len(data.categories),
        "ordered": not data.events.untimed,
        "holdout": request.holdout,
        "split_seed": request.split_seed,
        "pool": len(split.pool),
        "training_pairs": len(split.training),
        "pairs_min_users": request.pairs_min_users,
        "tag_notes": request.tag_notes,
        "recipe": recipe.name,
        "base_model": Path(recipe.base_model).name,
        "steps": recipe.steps,
        "pairs_per_batch": recipe.pairs_per_batch,
        "seeds": list(request.seeds),
    }


def _plan_file(rows: Plan) -> dict[str, object]:
    """The plan as the report loads it; ``ours`` are NoteLLM's runs."""
    names = [[cell.folder.name for cell in cells] for _, cells in rows]
    planned = [
        {"table": row.table, "label": row.label, "value": row.value, "ranks": ranks_name(row.debias), "runs": runs}
        for (row, _), runs in zip(rows, names, strict=True)
    ]
    ours = next(runs for (_, cells), runs in zip(rows, names, strict=True) if cells[0].method.name == OURS_NAME)
    return {"ours": ours, "rows": planned}

"""One command from raw data to the paper's tables: the split, the plan, and the runs that are not done yet."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from model.files import write_json
from model.reproduction.grid import (
    CROSS_PLATFORM,
    GENERATING,
    OURS_NAME,
    Plan,
    Request,
    describe_plan,
    plan,
    pool_key,
    unique_cells,
)
from model.reproduction.results import FORMAT, PLAN, gold_file, ranks_name, write_arrays
from model.reproduction.run import Run, Runners
from model.reproduction.split import Data, Pool, Split, load_data, split_data, whole_pool

Stage = Literal["train", "measure"]


def reproduce(
    folder: Path, request: Request, out: Path, runners: Runners | None = None, only: Stage | None = None
) -> None:
    """Do every run of the asked tables that is not done, and save in ``out`` what the report needs.

    Started by torchrun, every process trains; when all trainings are done, the first alone measures and writes, so that
    no process waits for another's measurements.

    Args:
        folder: notes and events, see `load_notes` and `load_events`.
        runners: train, embed and predict; by default with this package.
        only: train alone, or measure what is trained: on another machine, or with another engine.

    Raises:
        DataError: if a file is not what it should be, or leaves nothing to train on or to rank.
        ValueError: see `model.training.train.train` and `open_encoder`; runs that are done stay done.
    """
    from model.network.sentence_bert import open_encoder

    data, other = _load(folder, request)
    if request.sentence_bert != "minilm":
        open_encoder(request.sentence_bert)  # one that cannot be opened is refused now, and not after a training
    rows = plan(request, data.digest, bool(data.categories), out, other.digest if other else "")
    split = split_data(data, request.split, request.tag_notes)
    pools = {pool_key(request, data.digest): split.pool}
    if other:
        pools[pool_key(request, other.digest, other=True)] = whole_pool(other, request.split.rules)
    rows = [(row, cells) for row, cells in rows if split.validation or not row.debias]
    if is_first_process():
        for key, pool in pools.items():
            write_arrays(out / gold_file(key), **pool.gold_arrays())
        write_json(out / PLAN, _plan_file(rows, pools, _statement(request, data, split)))
    runners = runners or Runners()
    runs = [Run(cell, split, pools, request.tag_notes, runners) for cell in unique_cells(rows)]
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    with tqdm(total=len(runs), desc="reproduce", unit="run", disable=not is_first_process()) as progress:
        for run in runs:
            progress.set_postfix_str(run.name)
            if only != "measure":
                run.train()
            if only != "train" and alone:
                run.measure()
            progress.update()
    if only != "train" and not alone and is_first_process():
        for run in tqdm(runs, desc="measure", unit="run"):
            run.measure()


def is_first_process() -> bool:
    """Whether this process measures and writes; of those that torchrun started one does."""
    return os.environ.get("RANK", "0") == "0"


def preview(folder: Path, request: Request, out: Path) -> str:
    """The runs that `reproduce` would do, a line each: its name, its progress, its tables. Raises DataError."""
    data, other = _load(folder, request)
    rows = plan(request, data.digest, bool(data.categories), out, other.digest if other else "")
    return describe_plan(rows, request.tag_notes)


def _load(folder: Path, request: Request) -> tuple[Data, Data | None]:
    """The data, and the other community's. Raises ValueError if the request cannot be met with it."""
    data = load_data(folder)
    generating = [table for table in request.tables if table in GENERATING]
    if generating and not any(note.category or note.hashtags for note in data.notes):
        raise ValueError(
            f"{data.name}: no note has a category or a hashtag, so nothing can learn to generate: leave out the "
            f"{'table' if len(generating) == 1 else 'tables'} {', '.join(generating)}"
        )
    return data, None if request.also_test is None else load_data(request.also_test)


def _statement(request: Request, data: Data, split: Split) -> dict[str, Any]:
    """Data, split and training in figures, for the head of the report."""
    recipe, rules = request.recipe, request.split
    return {
        "data": data.name,
        "digest": data.digest,
        "notes": len(data.notes),
        "events": len(data.events),
        "users": data.events.num_users,
        "categories": len(data.categories),
        "ordered": rules.rules.ordered and not data.events.untimed,
        "holdout": rules.holdout,
        "split_seed": rules.seed,
        "start": split.start,
        "whole_pool": rules.pool == "all",
        "rules": asdict(rules.rules),
        "training_notes": len(split.training_notes),
        "training_pairs": len(split.training),
        "pairs_min_users": rules.pairs_min_users,
        "tag_notes": request.tag_notes,
        "recipe": recipe.name,
        "base_model": Path(recipe.base_model).name,
        "steps": recipe.steps,
        "epochs": recipe.epochs,
        "pairs_per_batch": recipe.pairs_per_batch,
        "centered": recipe.centered,
        "seeds": list(request.seeds),
    }


def _plan_file(rows: Plan, pools: dict[str, Pool], statement: dict[str, Any]) -> dict[str, Any]:
    """The plan as the report loads it; ``ours`` are NoteLLM's runs."""
    main, *others = pools
    names = [[cell.folder.name for cell in cells] for _, cells in rows]
    planned = [
        {
            "table": row.table,
            "label": row.label,
            "value": row.value,
            "pool": others[0] if row.table == CROSS_PLATFORM else main,
            "ranks": ranks_name(row.debias),
            "runs": runs,
        }
        for (row, _), runs in zip(rows, names, strict=True)
    ]
    return {
        "format": FORMAT,
        "statement": statement,
        "pools": {key: {"data": pool.data.name, "notes": len(pool.notes)} for key, pool in pools.items()},
        "ours": next(runs for (_, cells), runs in zip(rows, names, strict=True) if cells[0].method.name == OURS_NAME),
        "rows": planned,
    }

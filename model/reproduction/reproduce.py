"""One command from raw data to the paper's Tables 2 to 6: the split, the plan, and the runs that are not there yet."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.data.cooccurrence import related_pairs, split_notes, training_pairs
from model.data.events import EventTable, load_events
from model.data.notes import is_blank, load_notes
from model.data.rows import DataError
from model.evaluation.debias import DEPTH, validation_notes
from model.evaluation.hashtags import sample_notes
from model.evaluation.retrieval import exposure_buckets
from model.files import write_json
from model.note import Note
from model.reproduction.grid import OURS_RUN, Question, Request, Rows, describe_plan, plan, unique_runs
from model.reproduction.results import FORMAT, PLAN, ranks_name, write_arrays
from model.reproduction.run import Runners, Split, Trial, has_tags


def reproduce(data: Path, request: Request, out: Path, tools: Runners | None = None) -> None:
    """Do every run of the asked tables that is not done, and leave what the report needs in ``out``.

    Started by torchrun, every process trains and the first alone measures and writes.

    Args:
        data: folder with notes and events, see `load_notes` and `load_events`.
        tools: what trains, embeds and writes; by default this package.

    Raises:
        DataError: if a file is not what it should be, or leaves nothing to train on or to ask for.
        ValueError: see `model.training.train.train`; runs that are done stay done.
    """
    question, notes, events = load_question(data, request)
    rows = plan(request, question, out)
    material = split_material(notes, events, request)
    rows = [(variant, runs) for variant, runs in rows if material.validation or not variant.debias]
    first = is_first_process()
    if first:
        gold_file = f"gold-{question.data}-{request.split_seed}-{request.holdout:g}.npz"
        write_arrays(out / gold_file, **_gold(material))
        statement = _statement(data, request, question, material, len(notes))
        write_json(out / PLAN, _plan_file(rows, gold_file, statement))
    bench = Trial(material, request.tag_notes, tools or Runners())
    runs = unique_runs(rows)
    with tqdm(total=len(runs), desc="reproduce", unit="run", disable=not first) as progress:
        for run in runs:
            progress.set_postfix_str(run.folder.name)
            bench.do(run, first)
            progress.update()


def is_first_process() -> bool:
    """Whether this is the process that measures and writes, of those that torchrun started, if it did."""
    return os.environ.get("RANK", "0") == "0"


def preview(data: Path, request: Request, out: Path) -> str:
    """What `reproduce` would do, as lines: a run, how far it is, the tables that need it. Raises DataError."""
    question, _, _ = load_question(data, request)
    return describe_plan(plan(request, question, out), request.tag_notes)


def load_question(data: Path, request: Request) -> tuple[Question, list[Note], EventTable]:
    """The data, and what every run is asked about it. Raises DataError."""
    notes, events = load_notes(data), load_events(data)
    question = Question(
        data=data_digest(notes, events),
        has_categories=any(note.category for note in notes),
        holdout=request.holdout,
        split_seed=request.split_seed,
        pairs_min_users=request.pairs_min_users,
    )
    return question, notes, events


def data_digest(notes: Sequence[Note], events: EventTable) -> str:
    """16 hex digits that change when a note or an event does."""
    digest = hashlib.blake2b(digest_size=8)
    for note in notes:
        digest.update(repr(note).encode("utf-8", "surrogatepass"))
    for column in (events.users, events.notes, events.ts, events.clicked):
        digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(repr(events.note_ids).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_material(notes: Sequence[Note], events: EventTable, request: Request) -> Split:
    """Split the data by note and find the pairs on either side. Raises DataError if a side has too few."""
    held_out = split_notes((note.id for note in notes), request.holdout, request.split_seed)
    written = [note for note in notes if not is_blank(note)]
    pool = [note for note in written if note.id in held_out]
    ordered = not events.untimed
    found = training_pairs(notes, events, holdout=request.holdout, seed=request.split_seed, ordered=ordered)
    training = found.supported_by(request.pairs_min_users)
    if len(training) < 2:
        raise DataError(
            f"{len(training)} of {len(found)} training pairs have {request.pairs_min_users} users behind them, and two "
            "are needed; ask for fewer users a pair"
        )
    gold = related_pairs(events, ordered=ordered, within=frozenset(note.id for note in pool))
    if not gold:
        raise DataError(f"no two of the {len(pool)} held-out notes are related; a larger holdout is needed")
    training_notes = [note for note in written if note.id not in held_out]
    validation = validation_notes(training_notes, request.split_seed)
    can_debias = len(validation) >= 2 * DEPTH and len({note.exposure for note in validation}) > 1
    return Split(
        events=events,
        training_notes=training_notes,
        training=training,
        pool=pool,
        gold=gold,
        categorised=sample_notes([note for note in pool if note.category], request.tag_notes),
        tagged=sample_notes([note for note in pool if has_tags(note)], request.tag_notes),
        categories=tuple(sorted({note.category for note in notes if note.category})),
        validation=validation if can_debias else [],
    )


def _gold(material: Split) -> dict[str, NDArray[Any]]:
    """What the report must know of each gold pair: target, users, and whether the truth is in a bucket."""
    truths = material.places(material.gold.related_ids)
    buckets = exposure_buckets(np.array([note.exposure for note in material.pool]))
    return {
        "targets": material.places(material.gold.note_ids),
        "users": material.gold.users,
        **{name: inside[truths] for name, inside in buckets.items()},
    }


def _statement(data: Path, request: Request, question: Question, material: Split, num_notes: int) -> dict[str, object]:
    """Data, split and training in figures, for the head of the report."""
    recipe = request.recipe
    return {
        "data": data.resolve().name,
        "digest": question.data,
        "notes": num_notes,
        "events": len(material.events),
        "users": material.events.num_users,
        "categories": len(material.categories),
        "ordered": not material.events.untimed,
        "holdout": request.holdout,
        "split_seed": request.split_seed,
        "pool": len(material.pool),
        "training_pairs": len(material.training),
        "pairs_min_users": request.pairs_min_users,
        "tag_notes": request.tag_notes,
        "recipe": recipe.name,
        "base_model": Path(recipe.base_model).name,
        "steps": recipe.steps,
        "pairs_per_batch": recipe.pairs_per_batch,
        "seeds": list(request.seeds),
    }


def _plan_file(rows: Rows, gold_file: str, statement: Mapping[str, object]) -> dict[str, object]:
    """The plan as the report reads it; ``ours`` are NoteLLM's runs."""
    planned = [
        {
            "table": variant.table,
            "label": variant.label,
            "value": variant.value,
            "ranks": ranks_name(variant.debias),
            "runs": [run.folder.name for run in runs],
        }
        for variant, runs in rows
    ]
    ours = next([run.folder.name for run in runs] for _, runs in rows if runs[0].method.name == OURS_RUN)
    return {"format": FORMAT, "statement": statement, "gold": gold_file, "ours": ours, "rows": planned}

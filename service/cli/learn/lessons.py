"""The steps of a turn that need no service: data, training, calibration and the gate."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.learn.turn import Turn, digest

if TYPE_CHECKING:
    from model.data.events import EventTable
    from model.data.pairs import Pairs
    from model.evaluation.gate.measured import Contender
    from model.note import Note
    from model.recipes import Recipe
    from model.training.distributed import Strategy

# Of the older notes, those that training does not see, for calibration; the share, and the seed of the draw.
HOLDOUT, SEED = 0.1, 0
# Notes among the newest that have related ones: below this the gate could pass nothing, and the training is wasted.
FEWEST_TARGETS = 30
# A training that goes through its pairs more often learns them by heart, and no longer what they have in common.
_PASSES = 4
# Notes that are predicted for calibration, and for each figure of the gate, at most.
_LIMIT = 1000
GATE = "gate.md"


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is done: the digests of what it was made of, what it found, and whether the turn ends with it."""

    inputs: Mapping[str, str]
    found: Mapping[str, Any]
    outcome: str | None = None
    why: str = ""


def gather(turn: Turn, notes: "Sequence[Note]", events: "EventTable") -> Done:
    """Notes and related pairs before a moment, to train on, and those of what came after it, to be judged by.

    Raises:
        ValueError: if the window holds too little, or an event has no time.
    """
    from model.data.cooccurrence import PairRules, split_notes
    from model.data.notes import is_blank, write_notes
    from model.data.pairs import write_pairs
    from model.data.periods import split_periods, temporal_pairs
    from model.data.times import in_unit_of
    from model.evaluation.gate.verdict import pairs_of, to_believe
    from model.evaluation.online.unseen import notes_of_turn, tags_of, unseen
    from model.evaluation.retrieval import fitting
    from model.network.adapter import merged
    from model.network.checkpoint import load_manifest

    asked, serving = turn.asked, merged(turn.serving)
    manifest = load_manifest(serving)
    recipe = warm(manifest.recipe, serving, asked["set"])  # a mistake in it is told now
    since = None if asked["from"] is None else in_unit_of(events.newest, asked["from"])
    periods = split_periods(events, share=asked["test_share"])
    if since is not None and since >= periods.start:
        raise ValueError(
            "no event between --from and the newest notes is left to train on: an earlier --from is needed"
        )
    kept_out = split_notes(periods.before, HOLDOUT, SEED)
    whole = [note for note in notes if not is_blank(note)]
    older, newest = ([note for note in whole if note.id in part] for part in (periods.before, periods.after))
    learned = [note for note in whole if note.id not in kept_out]
    pairs, gold = temporal_pairs(learned, events, periods, PairRules(since=since))
    fitting((asked["recall_at"],), len(newest))
    _check_size(pairs, gold)
    pairs = training_pairs(pairs, recipe)
    known = tags_of(notes_of_turn(turn.serving) or older)
    staged = turn.folder / ".data"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(turn.data, ignore_errors=True)
    (staged / "test").mkdir(parents=True)
    for folder, kept, related in ((staged, older, pairs), (staged / "test", newest, gold)):
        write_notes(folder / "notes.parquet", kept)
        write_pairs(folder / "pairs.parquet", related)
    staged.rename(turn.data)
    return Done(
        {},
        {
            "notes": len(older),
            "pairs": len(pairs),
            "learns": pairs_of(pairs),
            "newest_notes": len(newest),
            "newest_pairs": len(gold),
            "judged_by": pairs_of(to_believe(gold)),
            "newest_from": periods.start,
            "unseen": unseen(known, manifest.categories, newest).encode(),
        },
    )


def _check_size(pairs: "Pairs", gold: "Pairs") -> None:
    if not len(pairs):
        raise ValueError("the window holds no related pairs to train on: an earlier --from, or more events, are needed")
    if (targets := len(set(gold.note_ids))) < FEWEST_TARGETS:
        raise ValueError(
            f"{targets} of the newest notes have related ones and {FEWEST_TARGETS} are needed to judge a model by: "
            "a larger --test-share, or more events, are needed"
        )


def training_pairs(pairs: "Pairs", recipe: "Recipe") -> "Pairs":
    """The pairs `to_believe`, unless the recipe would go through them more than `_PASSES` times: then all."""
    from model.evaluation.gate.verdict import to_believe

    believed = to_believe(pairs)
    passes = recipe.steps * recipe.pairs_per_batch / len(believed) or recipe.epochs
    return believed if passes <= _PASSES else pairs


def train(turn: Turn, processes: int = 1, strategy: "Strategy" = "ddp") -> Done:
    """A new model, which starts as the serving one and learns the pairs; it resumes after a kill.

    Its closed set is the serving model's, with the categories of the notes. With several ``processes`` each has a GPU.
    """
    from model.network.checkpoint import described, load_manifest

    if processes == 1:
        _train(turn.folder, strategy)
    else:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        launch = LaunchConfig(
            1, 1, processes, run_id=turn.folder.name, rdzv_endpoint="localhost:0", rdzv_backend="c10d"
        )
        try:
            elastic_launch(launch, _train)(turn.folder, strategy)
        except ChildFailedError:
            raise ValueError("a process of the training failed; what it said of the reason stands above") from None
    trained, serving = load_manifest(turn.checkpoint), described(turn.serving)
    inputs = {
        "notes": digest(turn.data / "notes.parquet"),
        "pairs": digest(turn.data / "pairs.parquet"),
        "serving": serving.fingerprint,
    }
    return Done(
        inputs,
        {
            "fingerprint": trained.fingerprint,
            "steps": trained.trained_on["steps"],
            "losses": trained.trained_on["last_losses"],
            "new_categories": sorted({*trained.categories} - {*serving.categories}),
        },
    )


def _train(folder: Path, strategy: "Strategy") -> None:
    """One of the processes."""
    from model.data.notes import load_notes
    from model.data.pairs import load_pairs
    from model.network.adapter import merged
    from model.network.checkpoint import load_manifest
    from model.training.train import train as run

    turn = Turn.load(folder)
    serving = merged(turn.serving)
    manifest = load_manifest(serving)
    notes, newest = load_notes(turn.data), load_notes(turn.data / "test")
    pairs = load_pairs(turn.data / "pairs.parquet").ends()
    categories = {*manifest.categories, *(note.category for note in [*notes, *newest] if note.category)}
    recipe = warm(manifest.recipe, serving, turn.asked["set"])
    run(recipe, notes, pairs, turn.checkpoint, categories=sorted(categories), strategy=strategy)


def warm(recipe: "Recipe", serving: Path, settings: Sequence[str]) -> "Recipe":
    """The serving model's recipe, begun with its weights, its head and the scale that it has learned."""
    from safetensors.numpy import load_file

    from model.network.checkpoint import HEAD
    from model.recipes import changed

    tau = float(load_file(serving / HEAD)["log_scale"])
    return changed(replace(recipe, base_model=str(serving), teacher=None, tau=tau), settings)


def calibrate(turn: Turn) -> Done:
    """Scores that mean what they say, fitted on older notes that training did not see.

    Where too few have hashtags, or a category, the maps of the serving model stay, if it has any.
    """
    from model.data.notes import load_notes
    from model.evaluation.reliability import NothingToCalibrate
    from model.evaluation.reliability import calibrate as run
    from model.inference.calibration import Calibration
    from model.inference.many import embed_all, predict_all
    from model.inference.open import open_backend
    from model.network.checkpoint import add_calibration, described

    notes, serving = load_notes(turn.data), described(turn.serving).calibration
    kept = None if serving is None else Calibration.decode(serving)
    inputs = {"fingerprint": turn.found("train")["fingerprint"], "notes": digest(turn.data / "notes.parquet")}
    backend = open_backend("hf", turn.checkpoint)
    about = partial(predict_all, backend), partial(embed_all, backend)
    try:
        _, panels = run(
            turn.checkpoint,
            turn.checkpoint,
            notes,
            *about,
            holdout=HOLDOUT,
            seed=SEED,
            limit=_LIMIT,
            otherwise=kept,
        )
    except NothingToCalibrate as error:
        if kept is not None:
            add_calibration(turn.checkpoint, kept.encode())
        return Done(inputs, {"calibrated": False, "because": str(error), "kept": kept is not None})
    errors = {panel.name: {"before": panel.error_before, "after": panel.error_after} for panel in panels}
    left_out = [name for name in ("hashtags", "category") if name not in errors]
    return Done(inputs, {"calibrated": True, "errors": errors, "left_out": left_out, "kept": kept is not None})


def gate(turn: Turn) -> Done:
    """The new model against the serving one, on the newest notes."""
    from model.data.notes import load_notes
    from model.data.pairs import load_pairs
    from model.evaluation.gate.verdict import format_verdict, judge
    from model.files import write_bytes

    pool, gold = load_notes(turn.data / "test"), load_pairs(turn.data / "test" / "pairs.parquet")
    models = contender("serving", turn.serving), contender("new", turn.checkpoint)
    verdict = judge(*models, pool, gold, k=turn.asked["recall_at"], limit=_LIMIT)
    write_bytes(turn.folder / GATE, (format_verdict(verdict) + "\n").encode())
    inputs = {
        "fingerprint": turn.found("train")["fingerprint"],
        "newest_notes": digest(turn.data / "test" / "notes.parquet"),
        "newest_pairs": digest(turn.data / "test" / "pairs.parquet"),
    }
    found = {"rows": verdict.encode()}
    return Done(inputs, found) if verdict.passes else Done(inputs, found, "refused", verdict.reasons)


def contender(name: str, folder: Path) -> "Contender":
    """A checkpoint in the contest."""
    from model.evaluation.gate.measured import Contender
    from model.inference.many import embed_all, predict_all, write_all
    from model.inference.open import open_backend
    from model.network.adapter import merged
    from model.network.checkpoint import load_manifest

    checkpoint = merged(folder)
    backend = open_backend("hf", checkpoint)
    return Contender(
        name,
        partial(embed_all, backend),
        partial(predict_all, backend),
        partial(write_all, backend),
        load_manifest(checkpoint).categories,
    )

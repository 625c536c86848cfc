"""One command from raw data to the paper's Tables 2 to 6: which runs they need, and running those that are not there.

A table's row is a `Variant`: a recipe to train, or an opponent that needs no training. Rows of the same recipe share
one run, whose folder is named by what it depends on: recipe, data and split. So nothing finished is done again, and a
changed recipe or changed data never meets an old result. What the report reads:

    out/plan.json                         the rows, their runs, and the data in figures
    out/gold-<key>.npz                    the gold pairs: what every run ranked
    out/runs/<name>-<key>/result.json     what a run was, and how it generated
    out/runs/<name>-<key>/ranks.npz       the rank of every gold pair's truth
    out/runs/<name>-<key>/answers.npz     how right each category and each note's hashtags were, if it was asked
    out/runs/<name>-<key>/checkpoint/     may be deleted when the run is finished

Every file is written beside its place and renamed: a kill leaves the old file or the new one.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.answers import Read, Write, evaluate_categories, evaluate_hashtags, sample_notes
from model.baselines import BM25, Embeddings, MiniLM, Popularity, Ranker, SameCategory, TfIdf
from model.checkpoint import CheckpointError, read_manifest
from model.cooccurrence import HOLDOUT, SEED, related_pairs, split_notes, training_pairs
from model.data import DataError, EventTable, Pairs, is_blank, read_events, read_notes
from model.debias import DEPTH, STEPS, Debiased, fit_popularity_weight, validation_notes
from model.note import Note
from model.ranking import Embed, exposure_buckets, truth_ranks
from model.recipes import Recipe
from model.tag_baselines import MostFrequentTags, NeighborTags
from model.tags import clean_tags

FORMAT = 1
TABLES = (2, 3, 4, 5, 6)
# Table 5 and Table 6: what the paper varies.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0)
PAIRS_MIN_USERS = 2
TAG_NOTES = 1000
OURS, OURS_RUN = "NoteLLM", "notellm"
GENERATING = (4, 5, 6)  # the tables with figures of generation

PLAN, RESULT, RANKS, ANSWERS = "plan.json", "result.json", "ranks.npz", "answers.npz"

Train = Callable[[Recipe, Sequence[Note], Sequence[tuple[str, str]], Path], object]
"""Writes a checkpoint to a folder, going on from what an interrupted call left there."""
Answer = TypeVar("Answer")
Kind = Literal["popularity", "same-category", "tf-idf", "bm25", "minilm", "last-token"]

# It was pre-trained for what it is asked for here: the rate of a network that has to learn it would undo that.
ENCODER_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Untrained:
    """An opponent that learns nothing from pairs. ``last-token`` takes base model and template from a recipe."""

    name: str
    kind: Kind
    recipe: Recipe | None = None


Method = Recipe | Untrained


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a table, by the paper's name for it.

    ``value`` is what a sweep varies: r or alpha. ``debias``: how much popularity is taken out, see `model.debias`.
    """

    table: int
    label: str
    method: Method
    value: float | None = None
    debias: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be reproduced. ``tag_notes``: held-out notes asked at most for categories, and for hashtags."""

    recipe: Recipe
    tables: tuple[int, ...] = TABLES
    seeds: tuple[int, ...] = (0,)
    holdout: float = HOLDOUT
    split_seed: int = SEED
    pairs_min_users: int = PAIRS_MIN_USERS
    tag_notes: int = TAG_NOTES

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tables) - set(TABLES)):
            raise ValueError(f"there is no table {unknown[0]}; the tables are {', '.join(map(str, TABLES))}")
        if not self.tables or not self.seeds:
            raise ValueError("at least one table and one seed are needed")


@dataclass(frozen=True, slots=True)
class Question:
    """The data and its split: runs that differ in it cannot be compared. ``data`` is `data_digest`."""

    data: str
    has_categories: bool
    holdout: float
    split_seed: int
    pairs_min_users: int


@dataclass(frozen=True, slots=True)
class Run:
    """One method to train, if it is a recipe, and to measure.

    ``reads``: its figures of generation are wanted too. ``debiases``: its ranks without popularity are, too.
    """

    method: Method
    folder: Path
    reads: bool
    debiases: bool = False

    @property
    def checkpoint(self) -> Path:
        """Where training writes, and from where it goes on."""
        return self.folder / "checkpoint"

    def trained_on(self) -> Mapping[str, Any] | None:
        """What a finished training said, while its checkpoint is there: a manifest is written last."""
        try:
            return read_manifest(self.checkpoint).trained_on
        except CheckpointError:
            return None


@dataclass(frozen=True, slots=True)
class Result:
    """What is saved of a run beside its arrays.

    ``trained_on``: what training said, None for who needs none. ``debias_weight``: b of `model.debias`, where it was
    fitted. ``generation``: figures over all asked notes, and how many were wanted; None until the run was asked.
    """

    method: Mapping[str, Any]
    trained_on: Mapping[str, Any] | None = None
    debias_weight: float | None = None
    generation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """The data, split by note: what training may see, and what every run is asked.

    ``gold``: every pair of pool notes, whatever the number of its users. ``categorised`` and ``tagged``: the pool's
    notes that are asked for their category and for their hashtags, the same ones for every run. ``categories``: the
    closed set. ``validation``: training notes to fit the debias on, none where exposure says nothing.
    """

    events: EventTable
    training_notes: list[Note]
    training: Pairs
    pool: list[Note]
    gold: Pairs
    categorised: list[Note]
    tagged: list[Note]
    categories: tuple[str, ...]
    validation: list[Note]

    def places(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Positions in the pool, shape (len(names),)."""
        place = {note.id: row for row, note in enumerate(self.pool)}
        return np.array([place[name] for name in names], dtype=np.int64)


Rows = Sequence[tuple[Variant, Sequence[Run]]]


def variants(base: Recipe) -> list[Variant]:
    """Every row of every table, in the paper's order, and popularity and TF-IDF beside them."""
    ours = replace(base, name=OURS_RUN)
    popularity, tf_idf = Untrained("popularity", "popularity"), Untrained("tf-idf", "tf-idf")
    rivals: list[tuple[str, Method]] = [
        ("SentenceBERT, fine-tuned", _sentence_bert(base)),
        ("PromptEOL+CSE", replace(base, name="prompteol-cse", template="eol", alpha=0.0)),
        ("RepLLaMA style", replace(base, name="repllama", template="bare", alpha=0.0)),
        (OURS, ours),
    ]
    simple: list[tuple[str, Method]] = [("popularity", popularity), ("TF-IDF", tf_idf)]
    ablations: list[tuple[str, Method]] = [
        (OURS, ours),
        ("w/o CSFT", _with_alpha(base, 0.0)),
        *((f"w/o GCL (r = {share:.0%})", _without_gcl(base, share)) for share in (0.4, 0.0, 1.0)),
    ]
    untrained: list[tuple[str, Method]] = [
        ("popularity", popularity),
        ("same category, by popularity", Untrained("same-category", "same-category")),
        ("TF-IDF", tf_idf),
        ("BM25", Untrained("bm25", "bm25")),
        ("SentenceBERT (MiniLM) zero-shot", Untrained("minilm", "minilm")),
        ("zero-shot, last token", Untrained("zero-shot", "last-token", replace(base, template="bare"))),
        ("PromptEOL zero-shot", Untrained("prompteol", "last-token", replace(base, template="eol"))),
    ]
    tables = {2: untrained + rivals, 3: simple + rivals, 4: simple + ablations, 5: simple, 6: simple}
    rows = [Variant(table, label, method) for table, named in tables.items() for label, method in named]
    shares, alphas = sorted({*SHARES, base.hashtag_share}), sorted({*ALPHAS, base.alpha})
    rows += [Variant(3, f"{OURS}, debias {step:g}", ours, debias=step) for step in STEPS if step]
    rows += [Variant(5, f"r = {share:.0%}", _with_share(base, share), share) for share in shares]
    rows += [Variant(6, f"α = {alpha:g}", _with_alpha(base, alpha), alpha) for alpha in alphas]
    return sorted(rows, key=lambda row: row.table)


def _with_share(base: Recipe, share: float) -> Recipe:
    return replace(base, name=OURS_RUN if share == base.hashtag_share else f"r-{share:g}", hashtag_share=share)


def _with_alpha(base: Recipe, alpha: float) -> Recipe:
    names = {0.0: "without-csft", base.alpha: OURS_RUN}
    return replace(base, name=names.get(alpha, f"alpha-{alpha:g}"), alpha=alpha)


def _without_gcl(base: Recipe, share: float) -> Recipe:
    # A teacher or negatives would bring back by another door what is left out here.
    return replace(
        base, name=f"without-gcl-r-{share:g}", contrastive=False, hashtag_share=share, teacher=None, hard_negatives=0
    )


def _sentence_bert(base: Recipe) -> Recipe:
    return replace(
        base,
        name="sentence-bert",
        base_model=base.base_model if _is_encoder(base.base_model) else "minilm",
        architecture="encoder",
        template="bare",
        alpha=0.0,
        learning_rate=min(base.learning_rate, ENCODER_RATE),
        teacher=None,
        hard_negatives=0,
    )


def _is_encoder(base_model: str) -> bool:
    """True for a folder with a BERT in it."""
    config = Path(base_model) / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "bert"


def plan(request: Request, question: Question, out: Path) -> Rows:
    """The rows of the asked tables with the runs behind each: one a seed where something is trained, else one.

    A run is named after the first row of all tables that needs it, so its folder is the same whatever is asked.
    """
    everything = [row for row in variants(request.recipe) if question.has_categories or not _needs_categories(row)]
    names: dict[str, str] = {}
    for variant in everything:
        names.setdefault(_key(variant.method, question), variant.method.name)
    asked = [variant for variant in everything if variant.table in request.tables]
    reads = {_key(variant.method, question) for variant in asked if variant.table in GENERATING}
    debiases = {_key(variant.method, question) for variant in everything if variant.debias}

    def runs(method: Method) -> list[Run]:
        shared = _key(method, question)
        named = replace(method, name=names[shared])
        drawn: list[Method] = [named]
        if isinstance(named, Recipe):
            drawn = [replace(named, seed=seed) for seed in request.seeds]
        folders = [out / "runs" / f"{named.name}-{_key(one, question)}" for one in drawn]
        asks = shared in reads and _writes(method)
        return [Run(one, folder, asks, shared in debiases) for one, folder in zip(drawn, folders, strict=True)]

    return [(variant, runs(variant.method)) for variant in asked]


def _has_tags(note: Note) -> bool:
    """Whether it has hashtags to ask for and text to find them in."""
    return bool(clean_tags(list(note.hashtags)) and (note.title + note.content).strip())


def _needs_categories(row: Variant) -> bool:
    return isinstance(row.method, Untrained) and row.method.kind == "same-category"


def _key(method: Method, question: Question) -> str:
    """10 hex digits of everything that a run depends on; its name is not among it."""
    identity = [FORMAT, asdict(replace(method, name="")), asdict(question)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def _writes(method: Method) -> bool:
    """Whether it has hashtags to offer: every decoder has, and two simple opponents."""
    return method.architecture == "decoder" if isinstance(method, Recipe) else method.kind in ("popularity", "tf-idf")


def train_here(recipe: Recipe, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], out: Path) -> None:
    """`model.train.train`."""
    from model.train import train

    train(recipe, notes, pairs, out)


def embedder(recipe: Recipe, checkpoint: Path) -> Embed:
    """What embeds notes with a trained checkpoint, whatever its architecture: (N notes) -> (N, D)."""
    if recipe.architecture == "encoder":
        from model.sentence_bert import SentenceEncoder

        return _in_bfloat16(SentenceEncoder.open(checkpoint).embed)
    from model.backends import open_backend
    from model.reading import embed_all

    backend = open_backend("hf", checkpoint)
    return _in_bfloat16(partial(embed_all, backend))


def writer(checkpoint: Path) -> tuple[Read, Write]:
    """What reads notes with a trained decoder, and what writes their categories unconstrained."""
    from model.backends.hf import HfBackend
    from model.reading import read_all

    backend = HfBackend.open(checkpoint)
    return (
        _in_bfloat16(partial(read_all, backend)),
        _in_bfloat16(lambda notes: backend.write_categories(backend.tokenize(notes))),
    )


def zero_shot(recipe: Recipe) -> Embed:
    """What embeds notes with the recipe's base model as it comes."""
    from model.zero_shot import last_token

    return _in_bfloat16(partial(last_token, recipe))


def _in_bfloat16(work: Callable[[Sequence[Note]], Answer]) -> Callable[[Sequence[Note]], Answer]:
    """The work with its matrix products in bfloat16, as training computes them."""

    def run(notes: Sequence[Note]) -> Answer:
        import torch

        with torch.autocast("cpu", torch.bfloat16):
            return work(notes)

    return run


@dataclass(frozen=True, slots=True)
class Tools:
    """What does the work of a run."""

    train: Train = train_here
    embedder: Callable[[Recipe, Path], Embed] = embedder
    writer: Callable[[Path], tuple[Read, Write]] = writer
    zero_shot: Callable[[Recipe], Embed] = zero_shot


def reproduce(data: Path, request: Request, out: Path, tools: Tools | None = None) -> None:
    """Do every run of the asked tables that is not done, and leave what the report needs in ``out``.

    Started by torchrun, every process trains and the first alone measures and writes.

    Args:
        data: folder with notes and events, see `read_notes` and `read_events`.
        tools: what trains, embeds and writes; by default this package.

    Raises:
        DataError: if a file is not what it should be, or leaves nothing to train on or to ask for.
        ValueError: see `model.train.train`; runs that are done stay done.
    """
    question, notes, events = read_question(data, request)
    rows = plan(request, question, out)
    material = split_material(notes, events, request)
    rows = [(variant, runs) for variant, runs in rows if material.validation or not variant.debias]
    first = is_first_process()
    if first:
        gold_file = f"gold-{question.data}-{request.split_seed}-{request.holdout:g}.npz"
        write_arrays(out / gold_file, **_gold(material))
        statement = _statement(data, request, question, material, len(notes))
        write_json(out / PLAN, _plan_file(rows, gold_file, statement))
    bench = _Bench(material, request.tag_notes, tools or Tools())
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
    question, _, _ = read_question(data, request)
    return describe_plan(plan(request, question, out), request.tag_notes)


def read_question(data: Path, request: Request) -> tuple[Question, list[Note], EventTable]:
    """The data, and what every run is asked about it. Raises DataError."""
    notes, events = read_notes(data), read_events(data)
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


def split_material(notes: Sequence[Note], events: EventTable, request: Request) -> Material:
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
    return Material(
        events=events,
        training_notes=training_notes,
        training=training,
        pool=pool,
        gold=gold,
        categorised=sample_notes([note for note in pool if note.category], request.tag_notes),
        tagged=sample_notes([note for note in pool if _has_tags(note)], request.tag_notes),
        categories=tuple(sorted({note.category for note in notes if note.category})),
        validation=validation if can_debias else [],
    )


def _gold(material: Material) -> dict[str, NDArray[Any]]:
    """What the report must know of each gold pair: target, users, and whether the truth is in a bucket."""
    truths = material.places(material.gold.related_ids)
    buckets = exposure_buckets(np.array([note.exposure for note in material.pool]))
    return {
        "targets": material.places(material.gold.note_ids),
        "users": material.gold.users,
        **{name: inside[truths] for name, inside in buckets.items()},
    }


def _statement(
    data: Path, request: Request, question: Question, material: Material, num_notes: int
) -> dict[str, object]:
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
            "ranks": _ranks_name(variant.debias),
            "runs": [run.folder.name for run in runs],
        }
        for variant, runs in rows
    ]
    ours = next([run.folder.name for run in runs] for _, runs in rows if runs[0].method.name == OURS_RUN)
    return {"format": FORMAT, "statement": statement, "gold": gold_file, "ours": ours, "rows": planned}


def _ranks_name(debias: float) -> str:
    """The array of a run's ranks with so much popularity taken out."""
    return f"debias-{debias:g}" if debias else "ranks"


def unique_runs(rows: Rows) -> list[Run]:
    """Every run once, in the order of the tables."""
    return list({run.folder: run for _, runs in rows for run in runs}.values())


def state(run: Run, tag_notes: int) -> str:
    """How far a run is: done, ranked, trained, interrupted, or to do."""
    result = read_result(run.folder)
    if result is not None:
        return "ranked" if _must_read(run, result, tag_notes) else "done"
    if run.trained_on() is not None:
        return "trained"
    return "interrupted" if run.checkpoint.exists() else "to do"


def describe_plan(rows: Rows, tag_notes: int) -> str:
    """The runs as lines: name, how far it is, tables that need it; the last line counts them."""
    tables: dict[Path, dict[str, None]] = {}
    for variant, runs in rows:
        for run in runs:
            tables.setdefault(run.folder, {})[str(variant.table)] = None
    runs = unique_runs(rows)
    states = [state(run, tag_notes) for run in runs]
    width = max(len(run.folder.name) for run in runs)
    lines = [
        f"{run.folder.name:<{width}}  {found:<11}  table {', '.join(tables[run.folder])}"
        for run, found in zip(runs, states, strict=True)
    ]
    training = sum(_must_train(run, found) for run, found in zip(runs, states, strict=True))
    return "\n".join([*lines, f"{len(runs)} runs: {states.count('done')} done, {training} to train"])


def _must_read(run: Run, result: Result, tag_notes: int) -> bool:
    return run.reads and (result.generation is None or result.generation["wanted"] != tag_notes)


def _must_train(run: Run, found: str) -> bool:
    return isinstance(run.method, Recipe) and found != "done" and run.trained_on() is None


def read_result(folder: Path) -> Result | None:
    """What a run left, None if it did not get so far."""
    path = folder / RESULT
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as a compressed .npz, as safely as `write_json`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class _Bench:
    """Does runs on one material."""

    def __init__(self, material: Material, tag_notes: int, tools: Tools) -> None:
        self._material = material
        self._tag_notes = tag_notes
        self._tools = tools

    def do(self, run: Run, measures: bool) -> None:
        """Train, rank and read what of it is not done; each step is on disk before the next begins."""
        result = read_result(run.folder)
        if result is not None and not _must_read(run, result, self._tag_notes):
            return
        trained_on = self._train(run) if isinstance(run.method, Recipe) else None
        if not measures:
            return
        if result is None:
            ranks, weight = self._ranked(run)
            write_arrays(run.folder / RANKS, **ranks)
            result = Result(asdict(run.method), trained_on, weight)
            write_json(run.folder / RESULT, asdict(result))
        if _must_read(run, result, self._tag_notes):
            write_json(run.folder / RESULT, asdict(replace(result, generation=self._read(run))))

    def _train(self, run: Run) -> Mapping[str, Any]:
        assert isinstance(run.method, Recipe)
        trained_on = run.trained_on()
        if trained_on is None:
            notes, pairs = self._material.training_notes, self._material.training.ends()
            self._tools.train(run.method, notes, pairs, run.checkpoint)
            trained_on = read_manifest(run.checkpoint).trained_on
        return trained_on

    def _ranked(self, run: Run) -> tuple[dict[str, NDArray[np.int64]], float | None]:
        """Ranks by their name in the file, and the weight of the debias if there is any."""
        material = self._material
        if not isinstance(run.method, Recipe):
            return {_ranks_name(0.0): self._ranks(self._untrained(run.method))}, None
        embed = self._tools.embedder(run.method, run.checkpoint)
        ranker = self._embeddings(run.method.name, embed)
        ranks = {_ranks_name(0.0): self._ranks(ranker)}
        if not (run.debiases and material.validation):
            return ranks, None
        weight = fit_popularity_weight(
            embed(material.validation), np.array([note.exposure for note in material.validation])
        )
        exposure_N = np.array([note.exposure for note in material.pool])
        for step in filter(None, STEPS):
            ranks[_ranks_name(step)] = self._ranks(Debiased(ranker, exposure_N, step * weight))
        return ranks, weight

    def _ranks(self, ranker: Ranker) -> NDArray[np.int64]:
        material = self._material
        targets, truths = material.places(material.gold.note_ids), material.places(material.gold.related_ids)
        return truth_ranks(ranker, targets, truths, len(material.pool))

    def _untrained(self, method: Untrained) -> Ranker:
        pool, events = self._material.pool, self._material.events
        match method.kind:
            case "popularity":
                return Popularity(pool, events)
            case "same-category":
                return SameCategory(pool, Popularity(pool, events))
            case "tf-idf":
                return TfIdf(pool)
            case "bm25":
                return BM25(pool)
            case "minilm":
                return self._embeddings(method.name, _in_bfloat16(MiniLM().embed))
            case "last-token":
                assert method.recipe is not None
                return self._embeddings(method.name, self._tools.zero_shot(method.recipe))

    def _embeddings(self, name: str, embed: Embed) -> Ranker:
        return Embeddings(name, embed(self._material.pool))

    def _read(self, run: Run) -> Mapping[str, Any]:
        """Save how right each answer is, and return the figures over all of them."""
        of_each, at_once = self._judged(run)
        write_arrays(run.folder / ANSWERS, **of_each)
        means = {name: float(values.mean()) for name, values in of_each.items()}
        return {"wanted": self._tag_notes, "means": means, "at_once": at_once}

    def _judged(self, run: Run) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
        """Figures of every note, and those of all notes at once."""
        categorised, tagged = self._material.categorised, self._material.tagged
        answers = self._answers(
            run,
            [replace(note, category=None) for note in categorised],
            [replace(note, hashtags=(), category=None) for note in tagged],
        )
        of_each: dict[str, NDArray[np.float64]] = {}
        at_once: dict[str, float] = {}
        if categorised and answers.categories is not None:
            truth = [note.category or "" for note in categorised]
            of_each |= judge_categories(answers.categories, answers.written, truth, self._material.categories)
        if tagged:
            of_tags, at_once = judge_hashtags(answers.tags, [note.hashtags for note in tagged])
            of_each |= of_tags
        return of_each, at_once

    def _answers(self, run: Run, categorised: Sequence[Note], tagged: Sequence[Note]) -> "_Answers":
        if isinstance(run.method, Recipe):
            read, write = self._tools.writer(run.checkpoint)
            return _Answers(
                [reading.category.name if reading.category else None for reading in read(categorised)],
                write(categorised),
                [[scored.name for scored in reading.hashtags] for reading in read(tagged)],
            )
        training = self._material.training_notes
        carriers = [note for note in training if _has_tags(note)]
        if run.method.kind == "popularity":
            most = _most_frequent([note.category for note in training if note.category])
            return _Answers([most] * len(categorised), None, MostFrequentTags(carriers).tags(tagged))
        return _Answers(None, None, NeighborTags(carriers).tags(tagged) if carriers else [[] for _ in tagged])


@dataclass(frozen=True, slots=True)
class _Answers:
    """Categories, held to the closed set and written freely, and hashtags; None for who does not name categories."""

    categories: Sequence[str | None] | None
    written: Sequence[str] | None
    tags: Sequence[Sequence[str]]


def judge_categories(
    said: Sequence[str | None], written: Sequence[str] | None, truth: Sequence[str], categories: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Acc. and Ill. of each category that was said, and of each that was written freely, each of shape (notes,)."""
    rows = [
        evaluate_categories([name], [true], categories, None if written is None else [written[place]])
        for place, (name, true) in enumerate(zip(said, truth, strict=True))
    ]
    names = ["accuracy", "illegal", *(["unconstrained_accuracy", "unconstrained_illegal"] if written else [])]
    return {name: np.array([getattr(row, name) for row in rows]) for name in names}


def judge_hashtags(
    said: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """ROUGE and F1 of each note's hashtags, each of shape (notes,), and the figures of all notes' at once."""
    rows = [evaluate_hashtags([tags], [true]) for tags, true in zip(said, truth, strict=True)]
    together = evaluate_hashtags(said, truth)
    of_each = {name: np.array([getattr(row, name) for row in rows]) for name in ("rouge1", "rouge2", "rouge_l", "f1")}
    return of_each, {"bleu4": together.bleu4, "bleu4_public_code": together.bleu4_public_code}


def _most_frequent(names: Sequence[str]) -> str | None:
    count = Counter(names)
    return min(count, key=lambda name: (-count[name], name), default=None)

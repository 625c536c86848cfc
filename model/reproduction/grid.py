"""The rows of the paper's Tables 2 to 6, and the runs behind them.

A row is a `Variant`: a recipe to train, or an opponent that needs no training. Rows of the same recipe share one run,
whose folder is named by what it depends on: recipe, data and split. So nothing finished is done again, and a changed
recipe or changed data never meets an old result.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from model.data.cooccurrence import HOLDOUT, SEED
from model.evaluation.debias import STEPS
from model.network.checkpoint import CheckpointError, load_manifest
from model.recipes import Recipe
from model.reproduction.results import FORMAT, Result, load_result

TABLES = (2, 3, 4, 5, 6)
# Table 5 and Table 6: what the paper varies.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0)
PAIRS_MIN_USERS = 2
TAG_NOTES = 1000
OURS, OURS_RUN = "NoteLLM", "notellm"
GENERATING = (4, 5, 6)  # the tables with figures of generation
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

    ``value`` is what a sweep varies: r or alpha. ``debias``: how much popularity is taken out, see
    `model.evaluation.debias`.
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
            return load_manifest(self.checkpoint).trained_on
        except CheckpointError:
            return None


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


def _needs_categories(row: Variant) -> bool:
    return isinstance(row.method, Untrained) and row.method.kind == "same-category"


def _key(method: Method, question: Question) -> str:
    """10 hex digits of everything that a run depends on; its name is not among it."""
    identity = [FORMAT, asdict(replace(method, name="")), asdict(question)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def _writes(method: Method) -> bool:
    """Whether it has hashtags to offer: every decoder has, and two simple opponents."""
    return method.architecture == "decoder" if isinstance(method, Recipe) else method.kind in ("popularity", "tf-idf")


def unique_runs(rows: Rows) -> list[Run]:
    """Every run once, in the order of the tables."""
    return list({run.folder: run for _, runs in rows for run in runs}.values())


def state(run: Run, tag_notes: int) -> str:
    """How far a run is: done, ranked, trained, interrupted, or to do."""
    result = load_result(run.folder)
    if result is not None:
        return "ranked" if must_read(run, result, tag_notes) else "done"
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


def must_read(run: Run, result: Result, tag_notes: int) -> bool:
    return run.reads and (result.generation is None or result.generation["wanted"] != tag_notes)


def _must_train(run: Run, found: str) -> bool:
    return isinstance(run.method, Recipe) and found != "done" and run.trained_on() is None

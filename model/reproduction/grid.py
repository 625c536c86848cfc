"""The grid: the rows of the paper's Tables 2 to 6, and the cells that are run for them.

A row has a method: a recipe to train, or an opponent that needs no training. A cell is a method with one seed, and its
folder is named by everything that it depends on: method, data and split. Rows with one method share their cells,
nothing finished is run again, and a changed recipe or changed data never meets an old result.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from model.data.cooccurrence import HOLDOUT, SEED
from model.evaluation.debias import STEPS
from model.network.checkpoint import CheckpointError, load_manifest
from model.recipes import Recipe
from model.reproduction.results import FORMAT, Result, load_result

TABLES = (2, 3, 4, 5, 6)
# Table 5 and Table 6: the values of the paper.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0)
OURS, OURS_NAME = "NoteLLM", "notellm"
GENERATING = (4, 5, 6)  # the tables with figures of generation
# SentenceBERT was pre-trained for this task: the rate of a network that has to learn it would undo that.
ENCODER_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Untrained:
    """An opponent that learns nothing from pairs; with a recipe, that recipe's base model and template, zero-shot."""

    name: str
    recipe: Recipe | None = None


Method = Recipe | Untrained
POPULARITY, SAME_CATEGORY, TF_IDF, BM25, MINILM = map(
    Untrained, ("popularity", "same-category", "tf-idf", "bm25", "minilm")
)


@dataclass(frozen=True, slots=True)
class GridRow:
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
    """The options of a reproduction. ``tag_notes``: limit on the notes to predict categories for, and hashtags for."""

    recipe: Recipe
    tables: tuple[int, ...] = TABLES
    seeds: tuple[int, ...] = (0,)
    holdout: float = HOLDOUT
    split_seed: int = SEED
    pairs_min_users: int = 2
    tag_notes: int = 1000

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tables) - set(TABLES)):
            raise ValueError(f"there is no table {unknown[0]}; the tables are {', '.join(map(str, TABLES))}")
        if not self.tables or not self.seeds:
            raise ValueError("at least one table and one seed are needed")


@dataclass(frozen=True, slots=True)
class Cell:
    """One method to train, if it is a recipe, and to measure. ``predicts``: the tables show its generation, too."""

    method: Method
    folder: Path
    predicts: bool

    @property
    def checkpoint(self) -> Path:
        """Where training writes and resumes."""
        return self.folder / "checkpoint"

    def trained_on(self) -> Mapping[str, Any] | None:
        """What a finished training reported, while its checkpoint is there: a manifest is written last."""
        try:
            return load_manifest(self.checkpoint).trained_on
        except CheckpointError:
            return None

    def must_predict(self, result: Result, tag_notes: int) -> bool:
        """Whether the result lacks predictions for so many notes."""
        return self.predicts and (result.generation is None or result.generation["wanted"] != tag_notes)

    def state(self, tag_notes: int) -> str:
        """Its progress: done, ranked, trained, interrupted, or to do."""
        result = load_result(self.folder)
        if result is not None:
            return "ranked" if self.must_predict(result, tag_notes) else "done"
        if self.trained_on() is not None:
            return "trained"
        return "interrupted" if self.checkpoint.exists() else "to do"


Plan = Sequence[tuple[GridRow, Sequence[Cell]]]


def grid(base: Recipe) -> list[GridRow]:
    """Every row of every table, in the paper's order, with popularity and TF-IDF in each."""
    ours = replace(base, name=OURS_NAME)
    simple: dict[str, Method] = {"popularity": POPULARITY, "TF-IDF": TF_IDF}
    untrained: dict[str, Method] = {
        "popularity": POPULARITY,
        "same category, by popularity": SAME_CATEGORY,
        "TF-IDF": TF_IDF,
        "BM25": BM25,
        "SentenceBERT (MiniLM) zero-shot": MINILM,
        "zero-shot, last token": Untrained("zero-shot", replace(base, template="bare")),
        "PromptEOL zero-shot": Untrained("prompteol", replace(base, template="eol")),
    }
    rivals: dict[str, Method] = {
        "SentenceBERT, fine-tuned": _sentence_bert(base),
        "PromptEOL+CSE": replace(base, name="prompteol-cse", template="eol", alpha=0.0, generative=False),
        "RepLLaMA style": replace(base, name="repllama", template="bare", alpha=0.0, generative=False),
        OURS: ours,
    }
    ablations: dict[str, Method] = {
        OURS: ours,
        "w/o CSFT": replace(base, name="without-csft", alpha=0.0, generative=False),
    }
    ablations |= {f"w/o GCL (r = {share:.0%})": _without_gcl(base, share) for share in (0.4, 0.0, 1.0)}
    tables = {2: untrained | rivals, 3: simple | rivals, 4: simple | ablations, 5: simple, 6: simple}
    rows = [GridRow(table, label, method) for table, named in tables.items() for label, method in named.items()]
    shares, alphas = sorted({*SHARES, base.hashtag_share}), sorted({*ALPHAS, base.alpha})
    rows += [GridRow(3, f"{OURS}, debias {step:g}", ours, debias=step) for step in STEPS if step]
    rows += [GridRow(5, f"r = {share:.0%}", _with_share(base, share), share) for share in shares]
    rows += [GridRow(6, f"α = {alpha:g}", _with_alpha(base, alpha), alpha) for alpha in alphas]
    return sorted(rows, key=lambda row: row.table)


def _with_share(base: Recipe, share: float) -> Recipe:
    return replace(base, name=OURS_NAME if share == base.hashtag_share else f"r-{share:g}", hashtag_share=share)


def _with_alpha(base: Recipe, alpha: float) -> Recipe:
    return replace(base, name=OURS_NAME if alpha == base.alpha else f"alpha-{alpha:g}", alpha=alpha)


def _without_gcl(base: Recipe, share: float) -> Recipe:
    # A teacher would bring back what is left out here.
    return replace(base, name=f"without-gcl-r-{share:g}", contrastive=False, hashtag_share=share, teacher=None)


def _sentence_bert(base: Recipe) -> Recipe:
    return replace(
        base,
        name="sentence-bert",
        base_model=base.base_model if _is_encoder(base.base_model) else "minilm",
        architecture="encoder",
        template="bare",
        alpha=0.0,
        generative=False,
        learning_rate=min(base.learning_rate, ENCODER_RATE),
        teacher=None,
    )


def _is_encoder(base_model: str) -> bool:
    """True for a folder with a BERT in it."""
    config = Path(base_model) / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "bert"


def plan(request: Request, digest: str, has_categories: bool, out: Path) -> Plan:
    """The rows of the asked tables with their cells: one a seed where a method is trained, else one.

    A cell is named as NoteLLM or after the first row of all tables that needs it, so its folder is the same for any
    choice of tables.
    """
    rows = [row for row in grid(request.recipe) if has_categories or row.method != SAME_CATEGORY]
    asked = [row for row in rows if row.table in request.tables]
    names = {_unnamed(row.method): row.method.name for row in reversed(rows)} | {_unnamed(request.recipe): OURS_NAME}
    predicting = {_unnamed(row.method) for row in asked if row.table in GENERATING and _suggests(row.method)}
    split = (digest, request.holdout, request.split_seed, request.pairs_min_users)

    def cells(method: Method) -> Iterator[Cell]:
        shared = _unnamed(method)
        for one in [replace(method, seed=seed) for seed in request.seeds] if isinstance(method, Recipe) else [method]:
            named = replace(one, name=names[shared])
            identity = json.dumps([FORMAT, asdict(_unnamed(one)), *split], sort_keys=True)
            folder = f"{named.name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
            yield Cell(named, out / "runs" / folder, shared in predicting)

    return [(row, list(cells(row.method))) for row in asked]


def _unnamed(method: Method) -> Method:
    """The identity of a method: recipes that differ in their names alone train the same network."""
    return replace(method, name="") if isinstance(method, Recipe) else method


def _suggests(method: Method) -> bool:
    """Whether it suggests hashtags: every decoder does, and two simple opponents."""
    return method.architecture == "decoder" if isinstance(method, Recipe) else method in (POPULARITY, TF_IDF)


def unique_cells(rows: Plan) -> list[Cell]:
    """Every cell once, in the order of the tables."""
    return list(dict.fromkeys(cell for _, cells in rows for cell in cells))


def describe_plan(rows: Plan, tag_notes: int) -> str:
    """The cells as lines: name, progress, tables that need it; the last line counts them."""
    tables: dict[Cell, list[str]] = {}
    for row, cell in ((row, cell) for row, cells in rows for cell in cells):
        tables[cell] = list(dict.fromkeys([*tables.get(cell, []), str(row.table)]))
    states = {cell: cell.state(tag_notes) for cell in tables}
    width = max(len(cell.folder.name) for cell in tables)
    lines = [f"{cell.folder.name:<{width}}  {states[cell]:<11}  table {', '.join(tables[cell])}" for cell in tables]
    undone = [cell for cell, state in states.items() if state != "done"]
    to_train = sum(isinstance(cell.method, Recipe) and cell.trained_on() is None for cell in undone)
    return "\n".join([*lines, f"{len(tables)} runs: {len(tables) - len(undone)} done, {to_train} to train"])

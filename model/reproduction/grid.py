"""The grid: the rows of the paper's Tables 2 to 6 and of three more, and the cells that are run for them.

A row has a method: a recipe to train, or an opponent that needs no training. A cell is a method with one seed, and its
folder is named by everything that it depends on: method, data and split. Rows with one method share their cells,
nothing finished is run again, and a changed recipe or changed data never meets an old result.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from model.evaluation.debias import STEPS
from model.network.checkpoint import CheckpointError, load_manifest
from model.recipes import Recipe
from model.reproduction.results import FORMAT, Result, load_result, ranks_file
from model.reproduction.split import SplitRules

METHODS, EXPOSURE, ABLATIONS, SHARE, ALPHA = PAPER_TABLES = ("2", "3", "4", "5", "6")
# Recall by clicks of the truth; trained on one community, tested on another; NoteLLM with each of two prompts.
COLD_START, CROSS_PLATFORM, PROMPTS = "cold-start", "cross-platform", "prompts"
TABLES = (*PAPER_TABLES, COLD_START, CROSS_PLATFORM, PROMPTS)
GENERATING = (ABLATIONS, SHARE, ALPHA, PROMPTS)  # the tables with figures of generation
# Table 5 and Table 6: the values of the paper.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0)
OURS, OURS_NAME = "NoteLLM", "notellm"
# SentenceBERT was pre-trained for this task: the rate of a network that has to learn it would undo that.
ENCODER_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Untrained:
    """An opponent that learns nothing from pairs: by its name alone, or a recipe's base model and template, zero-shot,
    or an encoder (see `model.network.sentence_bert.open_encoder`) as it comes."""

    name: str
    recipe: Recipe | None = None
    encoder: str | None = None


Method = Recipe | Untrained
POPULARITY, SAME_CATEGORY, TF_IDF, BM25 = map(Untrained, ("popularity", "same-category", "tf-idf", "bm25"))


@dataclass(frozen=True, slots=True)
class GridRow:
    """One row of a table, by the paper's name for it.

    ``value`` is what a sweep varies: r or alpha. ``debias``: how much popularity is taken out, see
    `model.evaluation.debias`.
    """

    table: str
    label: str
    method: Method
    value: float | None = None
    debias: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """The options of a reproduction.

    ``sentence_bert`` is the encoder of every SentenceBERT, ``also_test`` the folder of another community's notes and
    events, for the table `CROSS_PLATFORM`. ``tag_notes``: limit on the notes to predict categories for, and hashtags
    for.
    """

    recipe: Recipe
    tables: tuple[str, ...] = PAPER_TABLES
    seeds: tuple[int, ...] = (0,)
    split: SplitRules = field(default_factory=SplitRules)
    sentence_bert: str = "minilm"
    also_test: Path | None = None
    tag_notes: int = 1000

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tables) - set(TABLES)):
            raise ValueError(f"there is no table {unknown[0]}; the tables are {', '.join(TABLES)}")
        if not self.tables or not self.seeds:
            raise ValueError("at least one table and one seed are needed")
        if (CROSS_PLATFORM in self.tables) is not (self.also_test is not None):
            raise ValueError(f"the table {CROSS_PLATFORM} is of the notes that --also-test names: give both or neither")


@dataclass(frozen=True, slots=True)
class Cell:
    """One method to train, if it is a recipe, and to measure.

    ``pools``: keys of the pools that it ranks. ``predicts``: the tables show its generation, too.
    """

    method: Method
    folder: Path
    pools: tuple[str, ...]
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

    def unranked(self) -> list[str]:
        """The keys of the pools that it has not ranked yet."""
        return [key for key in self.pools if not (self.folder / ranks_file(key)).is_file()]

    def must_predict(self, result: Result, tag_notes: int) -> bool:
        """Whether the result lacks predictions for so many notes."""
        return self.predicts and (result.generation is None or result.generation["wanted"] != tag_notes)

    def state(self, tag_notes: int) -> str:
        """Its progress: done, ranked, trained, interrupted, or to do."""
        result = load_result(self.folder)
        if result is not None and not self.unranked():
            return "ranked" if self.must_predict(result, tag_notes) else "done"
        if self.trained_on() is not None:
            return "trained"
        return "interrupted" if self.checkpoint.exists() else "to do"


Plan = Sequence[tuple[GridRow, Sequence[Cell]]]


def grid(base: Recipe, sentence_bert: str = "minilm") -> list[GridRow]:
    """Every row of every table, in the paper's order, with popularity and TF-IDF in each but that of the prompts."""
    ours = replace(base, name=OURS_NAME)
    encoder = "MiniLM" if sentence_bert == "minilm" else Path(sentence_bert).name
    simple: dict[str, Method] = {"popularity": POPULARITY, "TF-IDF": TF_IDF}
    zero_shot: dict[str, Method] = {
        f"SentenceBERT ({encoder}) zero-shot": Untrained("sentence-bert-zero-shot", encoder=sentence_bert)
    }
    untrained: dict[str, Method] = {
        "popularity": POPULARITY,
        "same category, by popularity": SAME_CATEGORY,
        "TF-IDF": TF_IDF,
        "BM25": BM25,
        **zero_shot,
        "zero-shot, last token": Untrained("zero-shot", replace(base, template="bare")),
        "PromptEOL zero-shot": Untrained("prompteol", replace(base, template="eol")),
    }
    fine_tuned: dict[str, Method] = {"SentenceBERT, fine-tuned": _sentence_bert(base, sentence_bert)}
    rivals: dict[str, Method] = {
        **fine_tuned,
        "PromptEOL+CSE": _without_csft(base, "prompteol-cse", "eol"),
        "RepLLaMA style": _without_csft(base, "repllama", "bare"),
        OURS: ours,
    }
    ablations: dict[str, Method] = {OURS: ours, "w/o CSFT": _without_csft(base, "without-csft", base.template)}
    ablations |= {f"w/o GCL (r = {share:.0%})": _without_gcl(base, share) for share in (0.4, 0.0, 1.0)}
    elsewhere = simple | zero_shot | fine_tuned | {OURS: ours}
    templates = dict.fromkeys(("paper", "shared", base.template))
    prompts: dict[str, Method] = {f"{OURS}, prompt {name}": _with_prompt(base, name) for name in templates}
    tables = {
        METHODS: untrained | rivals,
        EXPOSURE: simple | rivals,
        ABLATIONS: simple | ablations,
        SHARE: simple,
        ALPHA: simple,
        COLD_START: elsewhere,
        CROSS_PLATFORM: elsewhere,
        PROMPTS: prompts,
    }
    rows = [GridRow(table, label, method) for table, named in tables.items() for label, method in named.items()]
    shares, alphas = sorted({*SHARES, base.hashtag_share}), sorted({*ALPHAS, base.alpha})
    rows += [GridRow(EXPOSURE, f"{OURS}, debias {step:g}", ours, debias=step) for step in STEPS if step]
    rows += [GridRow(SHARE, f"r = {share:.0%}", _with_share(base, share), share) for share in shares]
    rows += [GridRow(ALPHA, f"α = {alpha:g}", _with_alpha(base, alpha), alpha) for alpha in alphas]
    return sorted(rows, key=lambda row: TABLES.index(row.table))


def _with_share(base: Recipe, share: float) -> Recipe:
    return replace(base, name=OURS_NAME if share == base.hashtag_share else f"r-{share:g}", hashtag_share=share)


def _with_alpha(base: Recipe, alpha: float) -> Recipe:
    return replace(base, name=OURS_NAME if alpha == base.alpha else f"alpha-{alpha:g}", alpha=alpha)


def _with_prompt(base: Recipe, template: str) -> Recipe:
    return replace(base, name=OURS_NAME if template == base.template else f"prompt-{template}", template=template)


def _without_csft(base: Recipe, name: str, template: str) -> Recipe:
    return replace(base, name=name, template=template, alpha=0.0, generative=False)


def _without_gcl(base: Recipe, share: float) -> Recipe:
    # A teacher would bring back what is left out here.
    return replace(base, name=f"without-gcl-r-{share:g}", contrastive=False, hashtag_share=share, teacher=None)


def _sentence_bert(base: Recipe, encoder: str) -> Recipe:
    return replace(
        _without_csft(base, "sentence-bert", "bare"),
        base_model=encoder,
        architecture="encoder",
        trained_dim=0,
        learning_rate=min(base.learning_rate, ENCODER_RATE),
        teacher=None,
    )


def plan(request: Request, digest: str, has_categories: bool, out: Path, other_digest: str = "") -> Plan:
    """The rows of the asked tables with their cells: one a seed where a method is trained, else one.

    A cell is named as NoteLLM or after the first row of all tables that needs it, so its folder is the same for any
    choice of tables. ``other_digest`` is of the notes of `Request.also_test`.
    """
    rows = [row for row in grid(request.recipe, request.sentence_bert) if has_categories or row.method != SAME_CATEGORY]
    asked = [row for row in rows if row.table in request.tables]
    names = {_unnamed(row.method): row.method.name for row in reversed(rows)} | {_unnamed(request.recipe): OURS_NAME}
    predicting = {_unnamed(row.method) for row in asked if row.table in GENERATING and _suggests(row.method)}
    pools: dict[Method, dict[str, None]] = {}
    for row in asked:
        key = pool_key(request, other_digest if row.table == CROSS_PLATFORM else digest, row.table == CROSS_PLATFORM)
        pools.setdefault(_unnamed(row.method), {})[key] = None

    def cells(method: Method) -> Iterator[Cell]:
        shared = _unnamed(method)
        for one in [replace(method, seed=seed) for seed in request.seeds] if isinstance(method, Recipe) else [method]:
            named = replace(one, name=names[shared])
            folder = f"{named.name}-{_digest(FORMAT, asdict(_unnamed(one)), digest, request.split.of_training())}"
            yield Cell(named, out / "runs" / folder, tuple(pools[shared]), shared in predicting)

    return [(row, list(cells(row.method))) for row in asked]


def pool_key(request: Request, digest: str, other: bool = False) -> str:
    """The name of a pool's files: test notes of data with this digest, or all notes of an ``other`` data set."""
    return _digest(digest, asdict(request.split.rules) if other else asdict(request.split))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


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
        tables[cell] = list(dict.fromkeys([*tables.get(cell, []), row.table]))
    states = {cell: cell.state(tag_notes) for cell in tables}
    width = max(len(cell.folder.name) for cell in tables)
    lines = [f"{cell.folder.name:<{width}}  {states[cell]:<11}  table {', '.join(tables[cell])}" for cell in tables]
    undone = [cell for cell, state in states.items() if state != "done"]
    to_train = sum(isinstance(cell.method, Recipe) and cell.trained_on() is None for cell in undone)
    return "\n".join([*lines, f"{len(tables)} runs: {len(tables) - len(undone)} done, {to_train} to train"])

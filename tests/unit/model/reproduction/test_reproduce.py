"""The plan of a reproduction and its runs, on sample notes, with a trainer that takes no time."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny import tiny_base

from model.backend import Prediction, Scored
from model.data.cooccurrence import split_notes
from model.data.notes import load_notes
from model.data.rows import DataError
from model.data.samples.generate import write
from model.files import write_bytes
from model.network.checkpoint import FORMAT, MANIFEST, Manifest
from model.note import Note
from model.recipes import Recipe, mini, small
from model.reproduction.grid import Cell, GridRow, Plan, Request, Untrained, grid, plan, unique_cells
from model.reproduction.report import write_report
from model.reproduction.reproduce import preview, reproduce
from model.reproduction.results import ANSWERS, PLAN, RANKS, load_result
from model.reproduction.run import Runners
from model.reproduction.split import data_digest, load_data
from model.text.prompt import SpecialIds

RECIPE = replace(small(), steps=3)


class Workshop(Runners):
    """Trains in no time, and writes down what it was asked to do."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.trained: list[Recipe] = []
        self.notes: list[Note] = []
        self.pairs: list[tuple[str, str]] = []
        self.embedded: list[str] = []
        self.predicted: list[tuple[str, tuple[str, ...]]] = []
        self.fails_at = fails_at

    @property
    def names(self) -> list[str]:
        return [recipe.name for recipe in self.trained]

    def train(self, recipe: Recipe, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], out: Path) -> None:
        if recipe.name == self.fails_at:
            out.mkdir(parents=True)
            (out / "state").write_text("half of the steps")
            raise KeyboardInterrupt
        self.trained.append(recipe)
        self.notes, self.pairs = list(notes), list(pairs)
        manifest = Manifest("0" * 16, 2, (), recipe, SpecialIds(0, 1, 2, 3), {}, {"steps": recipe.steps})
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).write_text(json.dumps({"format": FORMAT, **asdict(manifest)}))

    def embedder(self, recipe: Recipe, checkpoint: Path):
        self.embedded.append(checkpoint.parent.name)
        return self._embed

    def zero_shot(self, recipe: Recipe):
        return self._embed

    def predictor(self, checkpoint: Path):
        def predict(notes: Sequence[Note]) -> list[Prediction]:
            self.predicted.append((checkpoint.parent.name, tuple(note.id for note in notes)))
            assert not any(note.category for note in notes)
            return [Prediction(np.ones(2, np.float32), (Scored("tea", 0.5),), Scored("Tea", 0.5)) for _ in notes]

        return predict, lambda notes: ["Coffee or tea"] * len(notes)

    def _embed(self, notes: Sequence[Note]) -> np.ndarray:
        """Notes of one category stand together."""
        codes = {name: code for code, name in enumerate(sorted({note.category or "" for note in notes}))}
        return np.eye(len(codes), dtype=np.float32)[[codes[note.category or ""] for note in notes]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, 1500)
    return folder


@pytest.fixture
def request_of_two_tables() -> Request:
    return Request(RECIPE, tables=(4, 5), tag_notes=20)


def plan_of(request: Request, out: Path) -> Plan:
    return plan(request, "digest", True, out)


def labels(table: int, recipe: Recipe = RECIPE) -> list[str]:
    return [row.label for row in grid(recipe) if row.table == table]


def recipes(rows: Sequence[GridRow]) -> dict[str, Recipe]:
    return {row.label: row.method for row in rows if isinstance(row.method, Recipe)}


def test_the_tables_have_the_papers_rows_and_popularity():
    assert labels(2) == [
        "popularity",
        "same category, by popularity",
        "TF-IDF",
        "BM25",
        "SentenceBERT (MiniLM) zero-shot",
        "zero-shot, last token",
        "PromptEOL zero-shot",
        "SentenceBERT, fine-tuned",
        "PromptEOL+CSE",
        "RepLLaMA style",
        "NoteLLM",
    ]
    assert labels(3)[2:] == [
        "SentenceBERT, fine-tuned",
        "PromptEOL+CSE",
        "RepLLaMA style",
        "NoteLLM",
        "NoteLLM, debias 0.5",
        "NoteLLM, debias 1",
    ]
    assert labels(4)[2:] == [
        "NoteLLM",
        "w/o CSFT",
        "w/o GCL (r = 40%)",
        "w/o GCL (r = 0%)",
        "w/o GCL (r = 100%)",
    ]
    assert labels(5)[2:] == [f"r = {percent}%" for percent in (0, 20, 40, 60, 80, 100)]
    assert labels(6, replace(RECIPE, alpha=0.01))[2:] == [
        f"α = {alpha}" for alpha in ("0", "0.001", "0.01", "0.1", "1", "10")
    ]
    assert all(labels(table)[0] == "popularity" for table in (2, 3, 4, 5, 6))


def test_a_recipes_own_values_join_the_sweeps():
    assert "r = 50%" in labels(5, mini())
    assert "α = 0.3" in labels(6, replace(small(), alpha=0.3))


def test_every_rival_differs_from_the_recipe_in_what_the_paper_says():
    rows = recipes([row for row in grid(RECIPE) if row.table in (2, 4)])

    def changed(label: str) -> dict[str, object]:
        ours, other = asdict(RECIPE), asdict(rows[label])
        return {name: other[name] for name in ours if other[name] != ours[name] and name != "name"}

    assert changed("NoteLLM") == {}
    no_generation = {"generative": False, "alpha": 0.0}
    assert changed("PromptEOL+CSE") == {"template": "eol", **no_generation}
    assert changed("RepLLaMA style") == {"template": "bare", **no_generation}
    sentence_bert = {"architecture": "encoder", "template": "bare", "learning_rate": 1e-4, **no_generation}
    assert changed("SentenceBERT, fine-tuned") == sentence_bert
    assert changed("w/o CSFT") == no_generation
    assert changed("w/o GCL (r = 40%)") == {"contrastive": False}
    assert changed("w/o GCL (r = 100%)") == {"contrastive": False, "hashtag_share": 1.0}


def test_a_backbone_that_is_no_encoder_leaves_sentence_bert_to_minilm(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')

    def base_of(name: str) -> str:
        return recipes(grid(replace(RECIPE, base_model=name)))["SentenceBERT, fine-tuned"].base_model

    assert base_of("meta-llama/Llama-2-7b-hf") == "minilm"
    assert base_of(str(tmp_path)) == str(tmp_path)


def test_what_two_tables_share_is_trained_once(data, tmp_path, request_of_two_tables):
    workshop = Workshop()

    reproduce(data, request_of_two_tables, tmp_path, workshop)

    shared = ["notellm", "without-csft", "without-gcl-r-0.4", "without-gcl-r-0", "without-gcl-r-1"]
    assert workshop.names == [*shared, "r-0", "r-0.2", "r-0.6", "r-0.8", "r-1"]
    rows = json.loads((tmp_path / PLAN).read_text())["rows"]
    [ours, as_r] = [row["runs"] for row in rows if row["label"] in ("NoteLLM", "r = 40%")]
    assert ours == as_r


def test_training_sees_no_held_out_note_and_pairs_with_two_users(data, tmp_path):
    workshop = Workshop()

    reproduce(data, Request(RECIPE, tables=(3,)), tmp_path, workshop)

    held_out = split_notes(note.id for note in load_notes(data))
    assert workshop.pairs
    assert not held_out & {note.id for note in workshop.notes}
    assert {name for pair in workshop.pairs for name in pair} <= {note.id for note in workshop.notes}


def test_a_second_call_does_nothing_again(data, tmp_path, request_of_two_tables):
    reproduce(data, request_of_two_tables, tmp_path, Workshop())
    again = Workshop()

    reproduce(data, request_of_two_tables, tmp_path, again)

    assert (again.trained, again.embedded, again.predicted) == ([], [], [])


def test_an_interrupted_call_goes_on_with_the_run_it_was_at(data, tmp_path, request_of_two_tables):
    first, second, whole = Workshop(fails_at="r-0"), Workshop(), Workshop()
    with pytest.raises(KeyboardInterrupt):
        reproduce(data, request_of_two_tables, tmp_path / "a", first)
    states = preview(data, request_of_two_tables, tmp_path / "a")

    reproduce(data, request_of_two_tables, tmp_path / "a", second)
    reproduce(data, request_of_two_tables, tmp_path / "b", whole)

    assert "interrupted" in next(line for line in states.splitlines() if line.startswith("r-0-"))
    assert first.names + second.names == whole.names
    saved = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.npz")}
    assert saved == {path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*.npz")}


def test_a_kill_between_training_and_ranking_keeps_the_training(data, tmp_path):
    request = Request(RECIPE, tables=(3,))
    reproduce(data, request, tmp_path, Workshop())
    [result] = (tmp_path / "runs").glob("notellm-*/result.json")
    result.unlink()
    again = Workshop()

    reproduce(data, request, tmp_path, again)

    assert (again.trained, [name.startswith("notellm-") for name in again.embedded]) == ([], [True])


def test_asking_for_more_notes_predicts_again_and_trains_nothing(data, tmp_path):
    reproduce(data, Request(RECIPE, tables=(4,), tag_notes=10), tmp_path, Workshop())
    again = Workshop()

    reproduce(data, Request(RECIPE, tables=(4,), tag_notes=15), tmp_path, again)

    assert (again.trained, again.embedded) == ([], [])
    assert {len(asked) for _, asked in again.predicted} == {15}


def test_every_run_is_asked_about_the_same_notes(data, tmp_path, request_of_two_tables):
    workshop = Workshop()

    reproduce(data, request_of_two_tables, tmp_path, workshop)

    assert len({run for run, _ in workshop.predicted}) == 10
    assert len({frozenset(asked) for _, asked in workshop.predicted}) == 1


def test_tables_of_related_notes_alone_need_no_predictions(data, tmp_path):
    workshop = Workshop()

    reproduce(data, Request(RECIPE, tables=(3,)), tmp_path, workshop)

    assert workshop.predicted == []


def test_changed_data_and_another_split_are_trained_anew(data, tmp_path):
    request = Request(RECIPE, tables=(3,))
    changed = tmp_path / "changed"
    write(changed, 1501)
    reproduce(data, request, tmp_path / "out", Workshop())
    for folder, asked in ((changed, request), (data, replace(request, split_seed=1))):
        workshop = Workshop()
        reproduce(folder, asked, tmp_path / "out", workshop)
        assert workshop.names == ["sentence-bert", "prompteol-cse", "repllama", "notellm"]


def test_the_digest_is_of_the_content(data):
    loaded = load_data(data)
    notes, events = loaded.notes, loaded.events
    other = [*notes[:-1], replace(notes[-1], title="Another title")]

    assert data_digest(notes, events) == loaded.digest
    assert data_digest(other, events) != loaded.digest
    assert data_digest(notes[:-1], events) != loaded.digest


def test_every_seed_is_a_run_of_what_is_trained_and_of_nothing_else(tmp_path):
    rows = plan_of(Request(RECIPE, seeds=(0, 1)), tmp_path)

    for row, cells in rows:
        assert len(cells) == (1 if isinstance(row.method, Untrained) else 2)
    [ours] = [cells for row, cells in rows if row.label == "NoteLLM" and row.table == 2]
    assert [cell.method.seed for cell in ours if isinstance(cell.method, Recipe)] == [0, 1]
    assert len(unique_cells(rows)) == len({cell.folder for _, cells in rows for cell in cells})


def test_a_runs_folder_does_not_depend_on_the_tables_asked_for(tmp_path):
    def folders(*tables: int) -> set[Path]:
        return {cell.folder for cell in unique_cells(plan_of(Request(RECIPE, tables=tables), tmp_path))}

    assert folders(6) <= folders(2, 3, 4, 5, 6)


def test_the_preview_lists_runs_and_trains_nothing(data, tmp_path):
    text = preview(data, Request(RECIPE, tables=(3, 5)), tmp_path)

    lines = text.splitlines()
    [ours] = [line for line in lines if line.startswith("notellm-")]
    assert ours.split()[1:] == ["to", "do", "table", "3,", "5"]
    assert lines[-1] == "11 runs: 0 done, 9 to train"
    assert not list(tmp_path.iterdir())


def test_without_categories_nobody_ranks_by_them(tmp_path):
    rows = plan(Request(RECIPE, tables=(2,)), "digest", False, tmp_path)

    assert "same category, by popularity" not in [row.label for row, _ in rows]


def test_another_process_of_torchrun_trains_and_writes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    workshop = Workshop()

    reproduce(data, Request(RECIPE, tables=(3,)), tmp_path, workshop)

    assert workshop.names == ["sentence-bert", "prompteol-cse", "repllama", "notellm"]
    assert workshop.embedded == []
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {MANIFEST}


def test_answers_are_judged_note_by_note(data, tmp_path):
    """The workshop calls everything Tea."""
    reproduce(data, Request(RECIPE, tables=(4,), tag_notes=2000), tmp_path, Workshop())

    [folder] = (tmp_path / "runs").glob("notellm-*")
    result = load_result(folder)
    assert result is not None
    assert result.generation is not None
    assert result.trained_on == {"steps": 3}
    with np.load(folder / ANSWERS) as answers:
        right, illegal, free = answers["accuracy"], answers["illegal"], answers["unconstrained_illegal"]
    tea = [note for note in load_notes(data) if note.category == "Tea"]
    assert right.sum() == len(split_notes(note.id for note in tea))
    assert result.generation["means"]["accuracy"] == pytest.approx(right.mean())
    assert (illegal.max(), free.min()) == (0, 1)


def test_ranks_are_those_of_the_gold_pairs(data, tmp_path):
    reproduce(data, Request(RECIPE, tables=(3,)), tmp_path, Workshop())

    plan_file = json.loads((tmp_path / PLAN).read_text())
    with (
        np.load(tmp_path / plan_file["gold"]) as gold,
        np.load(next((tmp_path / "runs").glob("notellm-*")) / RANKS) as own,
    ):
        targets, ranks = gold["targets"], own["ranks"]
    assert ranks.shape == targets.shape
    assert ranks.min() >= 0
    assert ranks.max() < plan_file["statement"]["pool"] - 1


def test_popularity_is_taken_out_of_our_own_ranks_alone(data, tmp_path):
    reproduce(data, Request(RECIPE, tables=(3,)), tmp_path, Workshop())

    names = {folder.name.rpartition("-")[0]: folder for folder in (tmp_path / "runs").iterdir()}
    for name, folder in names.items():
        with np.load(folder / RANKS) as saved:
            assert set(saved) == ({"ranks", "debias-0.5", "debias-1"} if name == "notellm" else {"ranks"})
    result = load_result(names["notellm"])
    assert result is not None
    assert result.debias_weight is not None
    assert result.debias_weight >= 0


def test_where_exposure_says_nothing_there_is_no_debias(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(data / "events.jsonl", folder)
    notes = [json.loads(line) | {"exposure": 0} for line in (data / "notes.jsonl").read_text().splitlines()]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))

    reproduce(folder, Request(RECIPE, tables=(3,)), tmp_path / "out", Workshop())

    rows = json.loads((tmp_path / "out" / PLAN).read_text())["rows"]
    assert [row["label"] for row in rows][-1] == "NoteLLM"
    assert write_report(tmp_path / "out").missing == []


def test_too_few_users_behind_the_training_pairs_is_one_clear_line(data, tmp_path):
    with pytest.raises(DataError, match=r"0 of \d+ training pairs have 999 users behind them.* fewer users"):
        reproduce(data, Request(RECIPE, pairs_min_users=999), tmp_path, Workshop())


def test_a_table_that_the_paper_does_not_have_is_refused():
    with pytest.raises(ValueError, match="there is no table 7; the tables are 2, 3, 4, 5, 6"):
        Request(RECIPE, tables=(2, 7))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")

    assert path.read_bytes() == b"old"


def test_a_checkpoint_half_written_is_not_a_trained_one(tmp_path):
    cell = Cell(RECIPE, tmp_path, predicts=False)
    cell.checkpoint.mkdir()

    assert cell.trained_on() is None


@pytest.mark.timeout(900)  # a processor without bfloat16 takes minutes
def test_the_real_thing_on_a_handful_of_notes(tmp_path, monkeypatch):
    """Two steps on a tiny Llama with random weights, the encoder on MiniLM; nothing is learned, everything runs."""
    monkeypatch.setattr("model.training.train.open_base", lambda name, notes, dtype: tiny_base("llama"))
    monkeypatch.setattr("model.evaluation.zero_shot.open_base", lambda name, notes, dtype: tiny_base("llama"))
    few = tmp_path / "data"
    write(few, 4000)
    lines = (few / "notes.jsonl").read_text().splitlines(keepends=True)[:150]
    (few / "notes.jsonl").write_text("".join(lines))
    recipe = replace(small(), base_model="tiny", steps=2, pairs_per_batch=4, dim=16, title_tokens=8, content_tokens=8)
    request = Request(recipe, tables=(2, 4), pairs_min_users=1, tag_notes=4)

    reproduce(few, request, tmp_path / "out")
    for checkpoint in (tmp_path / "out").glob("runs/*/checkpoint"):
        shutil.rmtree(checkpoint)
    report = write_report(tmp_path / "out")

    assert report.missing == []
    assert [row.label for row in report.rows if row.table == 2] == labels(2, recipe)
    generation = {row.label: row.generation for row in report.rows if row.table == 4}
    assert all(generation[label]["illegal"].mean == 0 for label in ("NoteLLM", "w/o CSFT", "popularity"))
    assert "unconstrained_accuracy" in generation["NoteLLM"]
    assert "accuracy" not in generation["TF-IDF"]
    assert generation["TF-IDF"]["rouge1"].mean > 0
    assert preview(few, request, tmp_path / "out").splitlines()[-1].endswith("15 done, 0 to train")

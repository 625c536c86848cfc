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
from model.data.cooccurrence import PairRules, split_notes
from model.data.files import DataError
from model.data.notes import load_notes
from model.data.samples.generate import write
from model.files import write_bytes
from model.network.base_models import BaseModel, open_base
from model.network.checkpoint import FORMAT, MANIFEST, Manifest, fingerprint_of
from model.note import Note
from model.recipes import Recipe, mini, small
from model.reproduction.grid import (
    COLD_START,
    CROSS_PLATFORM,
    PROMPTS,
    TABLES,
    Cell,
    GridRow,
    Plan,
    Request,
    Untrained,
    grid,
    plan,
    pool_key,
    unique_cells,
)
from model.reproduction.report import write_report
from model.reproduction.reproduce import preview, reproduce
from model.reproduction.results import ANSWERS, DEBIAS_WEIGHT, PLAN, gold_file, load_arrays, load_result
from model.reproduction.run import Runners
from model.reproduction.split import SplitRules, data_digest, load_data, split_data
from model.text.prompt import SpecialIds

RECIPE = replace(small(), steps=3)


class Workshop(Runners):
    """Trains in no time, and writes down what it was asked to do."""

    def __init__(self, fails_at: str | None = None) -> None:
        super().__init__()
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
        manifest = Manifest(
            fingerprint_of({}, recipe.template, (), 2),
            2,
            (),
            recipe,
            SpecialIds(0, 1, 2, 3),
            {},
            {"steps": recipe.steps},
        )
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).write_text(json.dumps({"format": FORMAT, **asdict(manifest)}))

    def embedder(self, recipe: Recipe, checkpoint: Path):
        self.embedded.append(checkpoint.parent.name)
        return self._embed

    def zero_shot(self, recipe: Recipe):
        return self._embed

    def encoder(self, name: str):
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
    return Request(RECIPE, tables=("4", "5"), tag_notes=20)


def plan_of(request: Request, out: Path) -> Plan:
    return plan(request, "digest", True, out)


def labels(table: str, recipe: Recipe = RECIPE) -> list[str]:
    return [row.label for row in grid(recipe) if row.table == table]


def recipes(rows: Sequence[GridRow]) -> dict[str, Recipe]:
    return {row.label: row.method for row in rows if isinstance(row.method, Recipe)}


def test_the_tables_have_the_papers_rows_and_popularity():
    assert labels("2") == [
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
    assert labels("3")[2:] == [
        "SentenceBERT, fine-tuned",
        "PromptEOL+CSE",
        "RepLLaMA style",
        "NoteLLM",
        "NoteLLM, debias 0.5",
        "NoteLLM, debias 1",
    ]
    assert labels("4")[2:] == [
        "NoteLLM",
        "w/o CSFT",
        "w/o GCL (r = 40%)",
        "w/o GCL (r = 0%)",
        "w/o GCL (r = 100%)",
    ]
    assert labels("5")[2:] == [f"r = {percent}%" for percent in (0, 20, 40, 60, 80, 100)]
    assert labels("6", replace(RECIPE, alpha=0.01))[2:] == [
        f"α = {alpha}" for alpha in ("0", "0.001", "0.01", "0.1", "1", "10")
    ]
    assert all(labels(table)[0] == "popularity" for table in TABLES if table != PROMPTS)


def test_a_recipes_own_values_join_the_sweeps():
    assert "r = 50%" in labels("5", mini())
    assert "α = 0.3" in labels("6", replace(small(), alpha=0.3))


def test_every_rival_differs_from_the_recipe_in_what_the_paper_says():
    rows = recipes([row for row in grid(RECIPE) if row.table in ("2", "4")])

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


def test_alpha_0_is_no_run_without_csft():
    """Table 6's first row still sees the prompts of both tasks; table 4's second never does."""
    rows = recipes(grid(RECIPE))

    assert rows["α = 0"] == replace(RECIPE, name="alpha-0", alpha=0.0)
    assert rows["w/o CSFT"].generative is False


def test_any_encoder_can_be_sentence_bert():
    rows = {row.label: row.method for row in grid(RECIPE, "models/bert-base-chinese") if row.table == "2"}

    zero_shot, fine_tuned = rows["SentenceBERT (bert-base-chinese) zero-shot"], rows["SentenceBERT, fine-tuned"]
    assert isinstance(zero_shot, Untrained)
    assert isinstance(fine_tuned, Recipe)
    assert zero_shot.encoder == fine_tuned.base_model == "models/bert-base-chinese"


def test_prompts_differ_in_the_template_alone():
    rows = [row.method for row in grid(RECIPE) if row.table == PROMPTS]

    assert rows == [replace(RECIPE, name="prompt-paper", template="paper"), replace(RECIPE, name="notellm")]


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

    reproduce(data, Request(RECIPE, tables=("3",)), tmp_path, workshop)

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
    request = Request(RECIPE, tables=("3",))
    reproduce(data, request, tmp_path, Workshop())
    for saved in (tmp_path / "runs").glob("notellm-*/*.*"):
        saved.unlink()
    again = Workshop()

    reproduce(data, request, tmp_path, again)

    assert (again.trained, [name.startswith("notellm-") for name in again.embedded]) == ([], [True])


def test_asking_for_more_notes_predicts_again_and_trains_nothing(data, tmp_path):
    reproduce(data, Request(RECIPE, tables=("4",), tag_notes=10), tmp_path, Workshop())
    again = Workshop()

    reproduce(data, Request(RECIPE, tables=("4",), tag_notes=15), tmp_path, again)

    assert (again.trained, again.embedded) == ([], [])
    assert {len(asked) for _, asked in again.predicted} == {15}


def test_every_run_is_asked_about_the_same_notes(data, tmp_path, request_of_two_tables):
    workshop = Workshop()

    reproduce(data, request_of_two_tables, tmp_path, workshop)

    assert len({run for run, _ in workshop.predicted}) == 10
    assert len({frozenset(asked) for _, asked in workshop.predicted}) == 1


def test_tables_of_related_notes_alone_need_no_predictions(data, tmp_path):
    workshop = Workshop()

    reproduce(data, Request(RECIPE, tables=("3",)), tmp_path, workshop)

    assert workshop.predicted == []


def test_changed_data_and_another_split_are_trained_anew(data, tmp_path):
    request = Request(RECIPE, tables=("3",))
    changed = tmp_path / "changed"
    write(changed, 1501)
    reproduce(data, request, tmp_path / "out", Workshop())
    for folder, asked in ((changed, request), (data, replace(request, split=SplitRules(seed=1)))):
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
    [ours] = [cells for row, cells in rows if row.label == "NoteLLM" and row.table == "2"]
    assert [cell.method.seed for cell in ours if isinstance(cell.method, Recipe)] == [0, 1]
    assert len(unique_cells(rows)) == len({cell.folder for _, cells in rows for cell in cells})


def test_a_runs_folder_does_not_depend_on_the_tables_asked_for(tmp_path):
    def folders(*tables: str) -> set[Path]:
        return {cell.folder for cell in unique_cells(plan_of(Request(RECIPE, tables=tables), tmp_path))}

    assert folders("6") <= folders("2", "3", "4", "5", "6")


def test_the_preview_lists_runs_and_trains_nothing(data, tmp_path):
    text = preview(data, Request(RECIPE, tables=("3", "5")), tmp_path)

    lines = text.splitlines()
    [ours] = [line for line in lines if line.startswith("notellm-")]
    assert ours.split()[1:] == ["to", "do", "table", "3,", "5"]
    assert lines[-1] == "11 runs: 0 done, 9 to train"
    assert not list(tmp_path.iterdir())


def test_without_categories_nobody_ranks_by_them(tmp_path):
    rows = plan(Request(RECIPE, tables=("2",)), "digest", False, tmp_path)

    assert "same category, by popularity" not in [row.label for row, _ in rows]


def test_another_process_of_torchrun_trains_and_writes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    workshop = Workshop()

    reproduce(data, Request(RECIPE, tables=("3",)), tmp_path, workshop)

    assert workshop.names == ["sentence-bert", "prompteol-cse", "repllama", "notellm"]
    assert workshop.embedded == []
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {MANIFEST}


def test_the_first_process_of_torchrun_measures_after_the_last_training(data, tmp_path, monkeypatch):
    """Else the others wait in the next training until the collective times out."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    class Ordered(Workshop):
        def embedder(self, recipe: Recipe, checkpoint: Path):
            assert self.names == ["sentence-bert", "prompteol-cse", "repllama", "notellm"]
            return super().embedder(recipe, checkpoint)

    workshop = Ordered()
    reproduce(data, Request(RECIPE, tables=("3",)), tmp_path, workshop)

    assert len(workshop.embedded) == 4


def test_training_and_measuring_can_be_two_calls(data, tmp_path):
    request, trainer, judge = Request(RECIPE, tables=("4",), tag_notes=10), Workshop(), Workshop()

    reproduce(data, request, tmp_path, judge, "measure")
    assert (judge.trained, judge.embedded) == ([], []), "nothing is trained, so nothing can be measured"
    reproduce(data, request, tmp_path, trainer, "train")
    assert (len(trainer.trained), trainer.embedded, trainer.predicted) == (5, [], [])
    reproduce(data, request, tmp_path, judge, "measure")

    assert (judge.trained, len(judge.embedded), len({run for run, _ in judge.predicted})) == ([], 5, 5)
    assert write_report(tmp_path).missing == []


LATER = 10**9


@pytest.fixture(scope="module")
def two_periods(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Readers and notes with an even number come first, the odd ones later."""
    folder = tmp_path_factory.mktemp("periods")
    shutil.copy(data / "notes.jsonl", folder)
    place = {note.id: number for number, note in enumerate(load_notes(data))}
    users: dict[str, int] = {}
    kept = []
    for event in map(json.loads, (data / "events.jsonl").read_text().splitlines()):
        odd = users.setdefault(event["user_id"], len(users)) % 2
        if place[event["note_id"]] % 2 == odd:
            kept.append(event | {"ts": event["ts"] % 1000 + odd * LATER})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in kept))
    return folder


@pytest.mark.parametrize("pool", ["test", "all"])
def test_by_time_training_sees_the_first_period_and_gold_pairs_are_of_the_second(two_periods, tmp_path, pool):
    workshop = Workshop()
    request = Request(RECIPE, tables=("3",), split=SplitRules(start=LATER, pool=pool, pairs_min_users=1))

    reproduce(two_periods, request, tmp_path, workshop)

    loaded = load_data(two_periods)
    place = {note.id: number for number, note in enumerate(loaded.notes)}
    seen = {loaded.events.note_ids[note] for note in loaded.events.notes}
    assert {name for pair in workshop.pairs for name in pair} <= {note.id for note in workshop.notes}
    assert {note.id for note in workshop.notes} == {note_id for note_id in seen if place[note_id] % 2 == 0}
    split = split_data(loaded, request.split, 10)
    assert {place[note_id] % 2 for pair in split.pool.gold.ends() for note_id in pair} == {1}
    later = {note_id for note_id in seen if place[note_id] % 2}
    assert {note.id for note in split.pool.notes} == ({note.id for note in loaded.notes} if pool == "all" else later)
    plan_file = json.loads((tmp_path / PLAN).read_text())
    assert plan_file["statement"]["start"] == LATER
    assert plan_file["pools"][pool_key(request, loaded.digest)]["notes"] == len(split.pool.notes)


def test_another_pool_is_ranked_anew_and_nothing_is_trained_again(data, tmp_path):
    request = Request(RECIPE, tables=("3",))
    reproduce(data, request, tmp_path, Workshop())
    again = Workshop()

    reproduce(data, replace(request, split=SplitRules(pool="all")), tmp_path, again)

    assert (again.trained, len(again.embedded)) == ([], 4)


def test_a_split_by_time_without_times_is_one_line_before_any_training(data, tmp_path):
    folder = tmp_path / "untimed"
    folder.mkdir()
    shutil.copy(data / "notes.jsonl", folder)
    events = [json.loads(line) | {"ts": None} for line in (data / "events.jsonl").read_text().splitlines()]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    workshop = Workshop()

    with pytest.raises(ValueError, match="have no ts"):
        reproduce(folder, Request(RECIPE, split=SplitRules(share=0.3)), tmp_path, workshop)
    assert workshop.trained == []


def test_notes_without_categories_and_hashtags_have_no_tables_of_generation(data, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(data / "events.jsonl", folder)
    notes = [json.loads(line) for line in (data / "notes.jsonl").read_text().splitlines()]
    plain = [note | {"hashtags": [], "category": None} for note in notes]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in plain))

    with pytest.raises(ValueError, match=r"no note has a category or a hashtag.*leave out the tables 4, 5"):
        reproduce(folder, Request(RECIPE, tables=("2", "4", "5")), tmp_path, Workshop())


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    write(folder, 800, 5)
    return folder


def test_across_platforms_all_notes_of_the_other_data_are_ranked_by_what_was_trained_here(data, elsewhere, tmp_path):
    workshop = Workshop()
    request = Request(RECIPE, tables=("3", CROSS_PLATFORM), also_test=elsewhere)

    reproduce(data, request, tmp_path, workshop)

    assert workshop.names == ["sentence-bert", "prompteol-cse", "repllama", "notellm"], "nothing is trained for it"
    plan_file = json.loads((tmp_path / PLAN).read_text())
    main, other = plan_file["pools"]
    assert plan_file["pools"][other] == {"data": elsewhere.name, "notes": len(load_notes(elsewhere))}
    ranks = {folder.name.rpartition("-")[0]: set(folder.glob("ranks-*")) for folder in (tmp_path / "runs").iterdir()}
    assert {len(ranks["notellm"]), len(ranks["sentence-bert"]), len(ranks["popularity"])} == {2}
    assert len(ranks["repllama"]) == 1, "no row of the other data needs it"
    report = write_report(tmp_path)
    assert report.missing == []
    assert {row.pool for row in report.rows if row.table == CROSS_PLATFORM} == {other}
    assert {row.pool for row in report.rows if row.table == "3"} == {main}


def test_the_other_data_needs_its_table_and_the_table_its_data():
    for request in ({"tables": (CROSS_PLATFORM,)}, {"also_test": Path("elsewhere")}):
        with pytest.raises(ValueError, match=r"cross-platform.*--also-test"):
            Request(RECIPE, **request)


def test_recall_by_clicks_counts_readers_of_the_truth(data, tmp_path):
    reproduce(data, Request(RECIPE, tables=(COLD_START,)), tmp_path, Workshop())

    loaded = load_data(data)
    split = split_data(loaded, SplitRules(), 10)
    readers: dict[str, set[int]] = {}
    for user, note, clicked in zip(loaded.events.users, loaded.events.notes, loaded.events.clicked, strict=True):
        if clicked:
            readers.setdefault(loaded.events.note_ids[note], set()).add(int(user))
    [key] = json.loads((tmp_path / PLAN).read_text())["pools"]
    cold = load_arrays(tmp_path / gold_file(key))["3 to 9 clicks"]
    assert cold.tolist() == [3 <= len(readers[truth]) <= 9 for truth in split.pool.gold.related_ids]
    assert 0 < cold.sum() < len(cold)
    report = write_report(tmp_path)
    assert {name for row in report.rows for name in row.sliced} <= {
        "1 or 2 clicks",
        "3 to 9 clicks",
        "10 clicks or more",
    }


def test_bounds_of_eq_1_are_options(data, tmp_path):
    def pairs(rules: PairRules) -> int:
        return len(split_data(load_data(data), SplitRules(rules=rules), 10).training)

    assert pairs(PairRules(top=1)) < pairs(PairRules(top=3)) < pairs(PairRules())


def test_without_contrastive_learning_the_raw_state_is_the_embedding(tmp_path):
    asked: list[Recipe] = []

    class States(Runners):
        def zero_shot(self, recipe: Recipe):
            asked.append(recipe)
            return lambda notes: np.ones((len(notes), 2), np.float32)

    recipe = replace(RECIPE, contrastive=False)
    States().embedder(recipe, tmp_path)([])

    assert asked == [replace(recipe, base_model=str(tmp_path))]


def test_an_engine_is_opened_once_a_run_and_closed_before_the_next_training(data, tmp_path, monkeypatch):
    """Two do not fit into a GPU, nor does a training beside one."""
    events: list[str] = []

    class Engine:
        def close(self) -> None:
            events.append("close")

    class Engines(Workshop):
        def train(self, recipe: Recipe, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], out: Path) -> None:
            events.append("train")
            super().train(recipe, notes, pairs, out)

        def embedder(self, recipe: Recipe, checkpoint: Path):
            self._open(checkpoint)
            return super().embedder(recipe, checkpoint)

        def predictor(self, checkpoint: Path):
            self._open(checkpoint)
            return super().predictor(checkpoint)

    def opened(*_: object) -> Engine:
        events.append("open")
        return Engine()

    monkeypatch.setattr("model.reproduction.run.open_backend", opened)
    reproduce(data, Request(RECIPE, tables=(PROMPTS,), tag_notes=5), tmp_path, Engines())

    assert events == ["train", "open", "close"] * 2


def test_a_backend_that_is_not_installed_is_refused_before_any_training(monkeypatch):
    monkeypatch.setattr("model.reproduction.run.find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match="vllm"):
        Runners("vllm")


def test_answers_are_judged_note_by_note(data, tmp_path):
    """The workshop calls everything Tea."""
    reproduce(data, Request(RECIPE, tables=("4",), tag_notes=2000), tmp_path, Workshop())

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
    reproduce(data, Request(RECIPE, tables=("3",)), tmp_path, Workshop())

    plan_file = json.loads((tmp_path / PLAN).read_text())
    [key] = plan_file["pools"]
    targets = load_arrays(tmp_path / gold_file(key))["targets"]
    ranks = load_arrays(next((tmp_path / "runs").glob(f"notellm-*/ranks-{key}.npz")))["ranks"]
    assert ranks.shape == targets.shape
    assert ranks.min() >= 0
    assert ranks.max() < plan_file["pools"][key]["notes"] - 1


def test_popularity_is_taken_out_of_our_own_ranks_alone(data, tmp_path):
    reproduce(data, Request(RECIPE, tables=("3",)), tmp_path, Workshop())

    for folder in (tmp_path / "runs").iterdir():
        [saved] = map(load_arrays, folder.glob("ranks-*.npz"))
        ours = folder.name.startswith("notellm-")
        assert set(saved) == ({"ranks", "debias-0.5", "debias-1", DEBIAS_WEIGHT} if ours else {"ranks"})
        if ours:
            assert saved[DEBIAS_WEIGHT].shape == (1,)
            assert saved[DEBIAS_WEIGHT] >= 0


def test_where_exposure_says_nothing_there_is_no_debias(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(data / "events.jsonl", folder)
    notes = [json.loads(line) | {"exposure": 0} for line in (data / "notes.jsonl").read_text().splitlines()]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))

    reproduce(folder, Request(RECIPE, tables=("3",)), tmp_path / "out", Workshop())

    rows = json.loads((tmp_path / "out" / PLAN).read_text())["rows"]
    assert [row["label"] for row in rows][-1] == "NoteLLM"
    assert write_report(tmp_path / "out").missing == []


def test_too_few_users_behind_the_training_pairs_is_one_clear_line(data, tmp_path):
    with pytest.raises(DataError, match=r"0 of \d+ training pairs have 999 users behind them.* fewer users"):
        reproduce(data, Request(RECIPE, split=SplitRules(pairs_min_users=999)), tmp_path, Workshop())


def test_a_table_that_the_paper_does_not_have_is_refused():
    with pytest.raises(
        ValueError, match="there is no table 7; the tables are 2, 3, 4, 5, 6, cold-start, cross-platform, prompts"
    ):
        Request(RECIPE, tables=("2", "7"))


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
    cell = Cell(RECIPE, tmp_path, (), predicts=False)
    cell.checkpoint.mkdir()

    assert cell.trained_on() is None


@pytest.mark.timeout(900)  # a processor without bfloat16 takes minutes
def test_the_real_thing_on_a_handful_of_notes(tmp_path, monkeypatch):
    """Two steps on a tiny Llama with random weights, the encoder on MiniLM; nothing is learned, everything runs."""

    def tiny(name: str, notes: Sequence[Note], dtype: str) -> BaseModel:
        return tiny_base("llama") if name == "tiny" else open_base(name, notes, dtype)

    monkeypatch.setattr("model.training.train.open_base", tiny)
    monkeypatch.setattr("model.evaluation.zero_shot.open_base", tiny)
    few = tmp_path / "data"
    write(few, 4000)
    lines = (few / "notes.jsonl").read_text().splitlines(keepends=True)[:150]
    (few / "notes.jsonl").write_text("".join(lines))
    recipe = replace(small(), base_model="tiny", steps=2, pairs_per_batch=4, dim=16, title_tokens=8, content_tokens=8)
    request = Request(recipe, tables=("2", "4"), split=SplitRules(pairs_min_users=1), tag_notes=4)

    reproduce(few, request, tmp_path / "out")
    for checkpoint in (tmp_path / "out").glob("runs/*/checkpoint"):
        shutil.rmtree(checkpoint)
    report = write_report(tmp_path / "out")

    assert report.missing == []
    assert [row.label for row in report.rows if row.table == "2"] == labels("2", recipe)
    generation = {row.label: row.generation for row in report.rows if row.table == "4"}
    assert all(generation[label]["illegal"].mean == 0 for label in ("NoteLLM", "w/o CSFT", "popularity"))
    assert "unconstrained_accuracy" in generation["NoteLLM"]
    assert "accuracy" not in generation["TF-IDF"]
    assert generation["TF-IDF"]["rouge1"].mean > 0
    assert preview(few, request, tmp_path / "out").splitlines()[-1].endswith("15 done, 0 to train")

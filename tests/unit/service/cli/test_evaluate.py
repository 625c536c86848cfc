"""The commands `notellm evaluate` and `notellm cases`, as a person types them, on a model of random weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.checkpoint import tiny_checkpoint

from model.data.pairs import Pairs, write_pairs
from model.data.samples.generate import clicks, sample_notes
from service.cli.main import cli

NOTES = sample_notes()[:72]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as an encoder, which any folder of transformers may be."""
    folder = tmp_path_factory.mktemp("encoder")
    for file in checkpoint.iterdir():
        if file.name not in ("notellm.json", "head.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Some sample notes, and what readers of those alone clicked."""
    rows = [
        {"note_id": note.id, "title": note.title, "content": note.content, "hashtags": list(note.hashtags)}
        | {"category": note.category}
        for note in NOTES
    ]
    events = [
        {"user_id": user, "note_id": note_id, "event": "click", "ts": ts} for user, note_id, ts in clicks(NOTES, 400)
    ]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return tmp_path


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    """Three pairs of notes that are in the data."""
    ids = [note.id for note in NOTES]
    pairs = Pairs((ids[0], ids[3], ids[5]), (ids[1], ids[4], ids[6]), np.ones(3), np.full(3, 2))
    write_pairs(tmp_path / "gold.parquet", pairs)
    return tmp_path / "gold.parquet"


def test_recall_at_any_k_with_any_encoder_as_text_and_as_json(data, checkpoint, encoder):
    answer = invoke(
        "evaluate", data, "--checkpoint", checkpoint, "--holdout", 0.5, "--recall-at", "5,20,10000", "--no-generation",
        "--sentence-bert", encoder, "--json", data / "figures.json",
    )  # fmt: skip

    assert answer.exit_code == 0, answer.output
    assert "| ranker | R@5 (95% interval) | R@20 (95% interval) | Avg. (95% interval) |" in answer.output
    assert "Recall@10,000 is left out: the pool has" in answer.output
    figures = json.loads((data / "figures.json").read_text())
    names = [row["name"] for row in figures["gold"][0]["rankers"]]
    assert names[-4:] == ["TF-IDF", "BM25", f"SentenceBERT ({encoder}) zero-shot", "NoteLLM"]
    assert figures["categories"] is figures["hashtags"] is None


def test_given_pairs_are_looked_for_in_a_given_pool(data, checkpoint, encoder, gold):
    answer = invoke(
        "evaluate", data, "--checkpoint", checkpoint, "--pool", data, "--gold", gold, "--limit", 2,
        "--sentence-bert", encoder,
    )  # fmt: skip

    assert answer.exit_code == 0, answer.output
    assert (
        f"A pool of {len(NOTES)} held-out notes: the notes of {data.name}; the pairs of gold.parquet." in answer.output
    )
    assert "Gold: 3 all pairs, of 3 targets." in answer.output
    assert "| NoteLLM + neighbors | 2 |" not in answer.output, (
        "every note of the data is in the pool: there are no neighbors"
    )


def test_notes_without_events_are_judged_by_categories_and_hashtags(data, checkpoint):
    (data / "events.jsonl").unlink()
    rows = [json.loads(line) | {"category": "Travel"} for line in (data / "notes.jsonl").read_text().splitlines()]
    (data / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    answer = invoke("evaluate", data, "--checkpoint", checkpoint, "--holdout", 0.5, "--limit", 3)

    assert answer.exit_code == 0, answer.output
    assert "| held to the closed set | 3 |" in answer.output
    assert "| hashtags of TF-IDF neighbors | 3 |" in answer.output
    assert "Gold:" not in answer.output


@pytest.fixture
def unusable(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose weights are gone: whoever opens it fails."""
    folder = tmp_path / "unusable"
    folder.mkdir()
    (folder / "notellm.json").write_bytes((checkpoint / "notellm.json").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gold", "gold.parquet"], r"gold.parquet: \d of its 6 notes are not among the \d+ notes of the pool"),
        (["--recall-at", "5000"], r"the pool has \d+ notes, so that Recall@5000 is 1 whatever their order"),
        (["--recall-at", "0,10"], r"the k of Recall@k must be at least 1, got 0"),
        (["--min-users", "999"], r"no pair of the \d+ notes of the pool has 999 users behind it"),
        (["--pool", "elsewhere"], r"elsewhere: the name must end in .parquet or .jsonl"),
        (["--pool", "notes.jsonl", "--holdout", "0.5"], r"--holdout and --split-seed choose the notes to rank"),
        (["--sentence-bert", "./nowhere"], r"cannot open the encoder ./nowhere: "),
        (["--sentence-bert", "unusable"], r"unusable is a checkpoint of NoteLLM, which embeds by \[EMB\]"),
        ([], r"config.json is missing"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_opens(data, gold, unusable, options, message, monkeypatch):
    monkeypatch.chdir(data)

    answer = invoke("evaluate", data, "--checkpoint", unusable, *options)

    assert answer.exit_code != 0
    assert re.search(message, answer.output), answer.output
    assert "Traceback" not in answer.output


def test_an_encoder_is_no_checkpoint_to_generate_with(data, unusable):
    manifest = json.loads((unusable / "notellm.json").read_text())
    manifest["recipe"]["architecture"] = "encoder"
    (unusable / "notellm.json").write_text(json.dumps(manifest))

    for arguments, option in (
        (("evaluate", data, "--checkpoint", unusable), "--sentence-bert"),
        (("cases", unusable, "--data", data), "--against"),
    ):
        answer = invoke(*arguments)
        assert f"is a SentenceBERT, which generates nothing: name it with {option}" in answer.output


def test_cases_are_shown_as_text_and_as_a_page(data, checkpoint, encoder):
    answer = invoke(
        "cases", checkpoint, "--data", data, "--holdout", 0.5, "--count", 2, "--out", data / "cases.html",
        "--against", checkpoint, "--against", encoder,
    )  # fmt: skip

    assert answer.exit_code == 0, answer.output
    names = ["NoteLLM", f"NoteLLM ({checkpoint})", f"SentenceBERT ({encoder}) zero-shot", "TF-IDF", "BM25"]
    width = max(map(len, names))
    for name in [*names, "the author's hashtags", "NoteLLM's hashtags", "hashtags of TF-IDF neighbors"]:
        assert answer.output.count(f"\n   {name:<{width}} ") == 2, name
    assert answer.output.endswith(f"2 cases in {data / 'cases.html'}; * is a related note\n")
    page = (data / "cases.html").read_text()
    assert page.count("<article") == 2 * (1 + len(names))


def test_cases_of_chosen_notes(data, checkpoint, gold):
    options = ["--data", data, "--pool", data, "--out", data / "cases.html", "--no-generation", "--against", checkpoint]

    answer = invoke("cases", checkpoint, *options, "--note", NOTES[7].id)
    refused = invoke("cases", checkpoint, *options, "--note", "nowhere")

    assert answer.output.startswith(f"1. {NOTES[7].title}"[:60])
    assert refused.output == f"Error: 1 of 1 notes are not in the pool of {len(NOTES)}, 'nowhere' for one\n"

from dataclasses import replace

import pytest
import torch
from support.tiny import NOTES, tiny_base

import model.training.loop
import model.training.train
from model.network.checkpoint import load, load_manifest
from model.recipes import Recipe, small
from model.training.distributed import Ranks
from model.training.state import History
from model.training.train import train
from model.training.validation import LEAST_PAIRS, RECALL_AT, Validation, split_off

MANY = [
    replace(note, id=f"{note.id}-{number}", title=f"{note.title} {number}") for number in range(30) for note in NOTES
]
PAIRS = [(one.id, other.id) for step in (1, 2) for one, other in zip(MANY, MANY[step:], strict=False)]


class Vectors:
    """A step whose embeddings are given: one row a note."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self._vectors = vectors
        self.ranks = Ranks(0, 1, torch.device("cpu"))

    def embed(self, examples, notes) -> torch.Tensor:
        return self._vectors[list(notes)]


def test_no_note_is_both_trained_and_validated_with():
    kept, gold = split_off(PAIRS, 0.3, seed=0)
    trained, apart = ({note for pair in pairs for note in pair} for pairs in (kept, gold))
    assert trained.isdisjoint(apart)
    assert set(kept) | set(gold) < set(PAIRS)
    assert len(apart) == pytest.approx(0.3 * len(MANY), abs=2)
    assert split_off(PAIRS, 0.3, seed=0) == (kept, gold)
    assert split_off(PAIRS, 0.3, seed=1) != (kept, gold)


def test_too_few_pairs_to_validate_with_are_an_error_that_says_what_helps():
    with pytest.raises(ValueError, match=rf"needs {LEAST_PAIRS} pairs of .* raise validation_share"):
        split_off(PAIRS, 0.01, seed=0)


def test_the_recall_is_that_of_a_plain_count():
    vectors = torch.randn(len(MANY), 8, generator=torch.Generator().manual_seed(0))
    _, gold = split_off(PAIRS, 0.3, seed=0)
    validation = Validation.of(gold, [note.id for note in MANY])
    place = {note.id: number for number, note in enumerate(MANY)}
    pool = sorted({note for pair in gold for note in pair})
    found = 0
    for target, truth in [*gold, *((b, a) for a, b in gold)]:
        cosine = {
            other: float(torch.cosine_similarity(vectors[place[target]], vectors[place[other]], dim=0))
            for other in pool
            if other != target
        }
        found += truth in sorted(cosine, key=cosine.get, reverse=True)[:RECALL_AT]
    assert validation.recall(Vectors(vectors), None) == pytest.approx(found / (2 * len(gold)))


def test_the_best_is_the_first_of_equals_and_patience_counts_from_it():
    history = History(recalls={2: 0.3, 4: 0.5, 6: 0.5, 8: 0.4})
    assert history.best == 4
    assert history.is_over(2)
    assert not history.is_over(3)
    assert not history.is_over(0)


@pytest.fixture
def recipe(monkeypatch) -> Recipe:
    monkeypatch.setattr(model.training.train, "open_base", lambda name, notes, dtype: tiny_base("llama"))
    monkeypatch.setattr(model.training.train.golden, "record", load_manifest)
    fields = {"base_model": "tiny", "pairs_per_batch": 3, "dim": 16, "saved_dtype": "float32"}
    return replace(small(), **fields, steps=12, validate_every=2, validation_share=0.3)


@pytest.fixture
def recalls(monkeypatch) -> list[tuple[float, torch.Tensor]]:
    """Each measured recall, which is drawn from a list, and a weight as it was then."""
    measured: list[tuple[float, torch.Tensor]] = []
    drawn = [0.2, 0.6, 0.4, 0.6, 0.5, 0.1]

    def recall(self, step, examples) -> float:
        weight = step.network.head.weight.detach().clone()
        measured.append((drawn[len(measured)], weight))
        return measured[-1][0]

    monkeypatch.setattr(Validation, "recall", recall)
    return measured


def test_the_checkpoint_has_the_best_weights_and_names_their_step(recipe, recalls, tmp_path):
    manifest, history = train(recipe, MANY, PAIRS, tmp_path)
    assert len(history) == 12
    assert [recall for recall, _ in recalls] == [0.2, 0.6, 0.4, 0.6, 0.5, 0.1]
    torch.testing.assert_close(load(tmp_path)[0].head.weight, recalls[1][1], rtol=0, atol=0)
    assert manifest.trained_on["validation"]["step"] == 4
    assert manifest.trained_on["validation"]["recall@10"] == 0.6
    assert not list((tmp_path / "run").glob("best-*"))


def test_training_ends_when_patience_does(recipe, recalls, tmp_path):
    _, history = train(replace(recipe, patience=2), MANY, PAIRS, tmp_path)
    assert len(history) == 8


class Killed(Exception):
    """As a signal would end the run."""


def test_a_killed_run_still_knows_its_best(recipe, recalls, tmp_path, monkeypatch):
    original = model.training.loop.clip
    steps = []

    def clip(*arguments):
        steps.append(arguments)
        if len(steps) == 8:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(model.training.loop, "clip", clip)
    with pytest.raises(Killed):
        train(recipe, MANY, PAIRS, tmp_path, save_every=5)
    # The state is of step 5, after the recalls 0.2 and 0.6; 0.4 at step 6 is measured again.
    del recalls[2:]
    manifest, history = train(recipe, MANY, PAIRS, tmp_path, save_every=5)
    assert len(history) == 12
    assert manifest.trained_on["validation"]["step"] == 4
    torch.testing.assert_close(load(tmp_path)[0].head.weight, recalls[1][1], rtol=0, atol=0)


def test_recall_of_a_real_run_is_logged(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    manifest, _ = train(recipe, MANY, PAIRS, tmp_path)
    log = EventAccumulator(str(tmp_path / "run")).Reload()
    written = {event.step + 1: event.value for event in log.Scalars("recall@10")}
    assert sorted(written) == [2, 4, 6, 8, 10, 12]
    assert max(written.values()) == pytest.approx(manifest.trained_on["validation"]["recall@10"], abs=1e-4)
    assert all(0 < value < 1 for value in written.values())

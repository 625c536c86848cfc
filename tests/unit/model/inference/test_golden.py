import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.checkpoint import tiny_checkpoint

from model.backend import Backend, Scored
from model.inference import golden
from model.inference.canaries import CANARIES
from model.inference.hf import HfBackend
from model.network.checkpoint import CheckpointError, load_manifest
from service.settings import MINI


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


class Twin(Backend):
    """A backend whose predictions something changes."""

    def __init__(self, folder: Path, change, dtype: str = "float32") -> None:
        self.honest = HfBackend.open(folder)
        self.dtype = dtype
        self.tokenize = self.honest.tokenize
        self._change = change

    def predict(self, prompts, max_hashtags):
        return self._change(self.honest.predict(prompts, max_hashtags))


def rotated(by: float):
    """Every vector turned towards a random direction, each its own, so that cosine is about ``1 - by``."""

    def change(predictions):
        random = np.random.default_rng(0)
        changed = []
        for prediction in predictions:
            aside = random.standard_normal(len(prediction.vector)).astype(np.float32)
            aside -= (aside @ prediction.vector) * prediction.vector
            aside /= np.linalg.norm(aside)
            turned = (1 - by) * prediction.vector + np.sqrt(2 * by - by**2) * aside
            changed.append(dataclasses.replace(prediction, vector=turned.astype(np.float32)))
        return changed

    return change


def test_there_are_32_canaries_and_no_two_are_alike():
    assert len({(note.title, note.content, note.hashtags) for note in CANARIES}) == len(CANARIES) == 32
    assert len({note.id for note in CANARIES}) == 32


def test_the_model_that_was_saved_passes(folder):
    golden.check(HfBackend.open(folder), load_manifest(folder))


def test_the_committed_model_passes():
    golden.check(HfBackend.open(MINI), load_manifest(MINI))


def test_recording_keeps_the_fingerprint(folder):
    before = load_manifest(folder)
    assert golden.record(folder).fingerprint == before.fingerprint
    assert golden.record(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda predictions: predictions[::-1], "the vector of canary-"),
        (rotated(0.002), "0.999 is the least in float32"),
        (
            lambda predictions: [
                dataclasses.replace(prediction, vector=np.full_like(prediction.vector, np.nan))
                for prediction in predictions
            ],
            "cosine nan",
        ),
        (
            lambda predictions: [
                dataclasses.replace(prediction, category=Scored("Elsewhere", 1.0)) for prediction in predictions
            ],
            "of the canaries' categories",
        ),
        (
            lambda predictions: [
                dataclasses.replace(prediction, hashtags=tuple(Scored(f"else {place}", 1.0) for place in range(5)))
                for prediction in predictions
            ],
            "of the canaries' hashtags",
        ),
    ],
)
def test_a_backend_that_says_something_else_is_refused(folder, change, message):
    with pytest.raises(golden.GoldenError, match=message):
        golden.check(Twin(folder, change), load_manifest(folder))


def test_half_precision_may_round_more(folder):
    manifest = load_manifest(folder)
    golden.check(Twin(folder, rotated(0.002), "bfloat16"), manifest)
    with pytest.raises(golden.GoldenError, match=r"0\.99 is the least in bfloat16"):
        golden.check(Twin(folder, rotated(0.02), "bfloat16"), manifest)


def test_hashtags_that_differ_count_by_their_probability():
    """Where all are sure it is the Jaccard similarity; the other side of a tie is hardly a difference."""
    assert golden._alike({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}) == pytest.approx(1 / 3)
    assert golden._alike({"a": 0.3}, {"b": 0.29}) == pytest.approx(1 - 0.59 / 2)
    assert golden._alike({"a": 0.3}, {"a": 0.9}) == golden._alike({}, {}) == 1.0
    assert golden._alike({}, {"a": 0.9}) == pytest.approx(0.1)


def test_a_manifest_of_before_without_probabilities_is_understood(folder):
    written = load_manifest(folder).golden
    names = [list(tags) for tags in written["hashtags"]]
    before = {**written, "hashtags": names, "categories": [*[None] * 31, "Travel"]}
    decoded = golden.Golden.decode(before, 16)
    assert decoded.hashtags == tuple(dict.fromkeys(tags, 1.0) for tags in names)
    assert decoded.categories[30:] == ({}, {"Travel": 1.0})


def test_a_neighbor_may_change_between_ties_alone():
    """Three notes; the first two lie within 0.001 of the third's nearest, and then one of them moves away."""
    expected = np.array([[1, 0, 0], [0.999, 0.045, 0], [0.98, 0.199, 0]], dtype=np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert golden._strayed(expected, expected, tie=0.0) == []
    swapped = expected[[0, 2, 1]]
    assert golden._strayed(swapped, expected, tie=0.002) != []
    assert golden._strayed(swapped, expected, tie=0.1) == []


def test_a_checkpoint_without_golden_answers_says_what_adds_them(folder):
    manifest = dataclasses.replace(load_manifest(folder), golden=None)
    with pytest.raises(CheckpointError, match="notellm golden"):
        golden.check(HfBackend.open(folder), manifest)

"""Calibration on notes whose hashtags are drawn with known probabilities."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.checkpoint import tiny_checkpoint

from model.backend import Prediction, Scored
from model.data.cooccurrence import split_notes
from model.evaluation.metrics import calibration_error, chance_calibration_error, reliability
from model.evaluation.reliability import (
    LEAST_NOTES,
    MARKDOWN,
    PLOT,
    Evidence,
    calibrate,
    fit,
    fit_logit,
    fit_suggestions,
    format_calibration,
    gather,
    measure,
)
from model.inference.calibration import Calibration, LogitMap, SuggestionMap, scores_of
from model.network.checkpoint import load_manifest
from model.note import Note
from model.text.suggestions import Candidate

NOTES = 600


def drawn(seed: int = 0) -> tuple[Evidence, np.ndarray]:
    """Ten suggestions a note from a world with a known law, and the true probability of each.

    The model is overconfident: it says p where sigmoid(-2 + 0.5 logit p) is true, and a vote beside it helps.
    """
    rng = np.random.default_rng(seed)
    count = 10 * NOTES
    said = rng.beta(3, 2, count)
    votes = rng.random(count) ** 3
    kind = rng.integers(0, 3, count)  # model alone, neighbors alone, both
    strength = np.log1p(20 * votes)
    odds = np.where(kind == 1, -3 + 1.2 * strength, -2 + 0.5 * np.log(said / (1 - said)) + (kind == 2) * 0.8 * strength)
    true = 1 / (1 + np.exp(-odds))
    found = [
        Candidate(
            f"tag{place}", f"tag{place}", None if kind[place] == 1 else said[place], votes[place] * (kind[place] > 0)
        )
        for place in range(count)
    ]
    category = rng.beta(5, 1, NOTES)
    named = rng.random(NOTES) < 1 / (1 + np.exp(0.5 - 0.4 * np.log(category / (1 - category))))
    note = np.repeat(np.arange(NOTES), 10)
    return Evidence(found, note, rng.random(count) < true, category, named), true


def test_the_known_law_is_found_again():
    evidence, true = drawn()
    maps = fit(evidence)

    found = np.array([maps.suggestion(candidate) for candidate in evidence.candidates])

    assert np.abs(found - true).mean() < 0.015
    assert maps.suggestions.slope == pytest.approx(0.5, abs=0.1)
    assert maps.suggestions.vote == pytest.approx(1.2, abs=0.1)
    assert maps.suggestions.vote_beside == pytest.approx(0.8, abs=0.1)
    assert maps.by_category is not None
    assert maps.by_category.slope == pytest.approx(0.4, abs=0.15)


def test_the_error_falls_to_what_chance_leaves():
    hashtags, category = measure(drawn()[0])

    assert hashtags.error_before > 0.15
    assert hashtags.error_after < 0.1 * hashtags.error_before + hashtags.chance
    assert category.error_before > 0.15
    assert category.error_after < category.chance + 0.03
    assert hashtags.first is not None
    assert hashtags.first[1] > hashtags.first[0], "what is likelier comes first more often"


class Witness:
    """A calibration that remembers what it was fitted on."""

    def __init__(self, evidence: Evidence) -> None:
        self._maps = fit(evidence)
        self._seen = {candidate.key for candidate in evidence.candidates}
        self._seen_categories = set(evidence.category_Q.tolist())

    def suggestion(self, candidate: Candidate) -> float:
        assert candidate.key not in self._seen
        return self._maps.suggestion(candidate)

    def category(self, probability: float) -> float:
        assert probability not in self._seen_categories
        return self._maps.category(probability)


def test_each_note_is_scored_by_maps_that_have_not_seen_it(monkeypatch):
    evidence, _ = drawn()
    witnesses: list[Evidence] = []
    monkeypatch.setattr("model.evaluation.reliability.fit", lambda part: witnesses.append(part) or Witness(part))

    measure(evidence)

    assert {part.notes for part in witnesses} == {NOTES * 4 // 5}, "whole notes, four in five of them"
    assert all(len(part.category_Q) == NOTES * 4 // 5 for part in witnesses)


def test_no_slope_is_negative_even_where_the_evidence_points_down():
    rng = np.random.default_rng(0)
    said = rng.random(2000)
    wrong_way = rng.random(2000) < 1 - said

    assert fit_logit(said.tolist(), wrong_way).slope == 0.0
    assert fit_logit(said.tolist(), wrong_way)(0.5) == pytest.approx(wrong_way.mean(), abs=0.01)
    map_ = fit_suggestions([Candidate("t", "t", p, v) for p, v in zip(said, rng.random(2000), strict=True)], wrong_way)
    assert (map_.slope, map_.vote) == (0.0, 0.0)
    assert map_.vote_beside >= 0


def test_where_nothing_was_ever_right_the_map_is_flat_next_to_zero():
    flat = fit_logit([0.2, 0.9, 0.5] * 10, np.zeros(30, dtype=bool))

    assert flat.slope == 0.0
    assert flat(0.9) == pytest.approx(0.5 / 31)
    assert fit_logit([], np.zeros(0, dtype=bool))(0.9) == pytest.approx(0.5)


def test_bins_and_error_are_those_counted_by_hand():
    score = np.array([0.05, 0.02, 0.81, 0.89, 1.0])
    right = np.array([False, True, True, False, True])

    low, high, top = reliability(score, right)

    assert (low.score, low.right, low.count) == (pytest.approx(0.035), 0.5, 2)
    assert (high.score, high.right, high.count) == (pytest.approx(0.85), 0.5, 2)
    assert (top.score, top.right, top.count) == (1.0, 1.0, 1)
    assert calibration_error(score, right) == pytest.approx((2 * 0.465 + 2 * 0.35 + 0) / 5)


def test_exact_scores_show_the_error_of_chance_which_shrinks_with_their_number():
    rng = np.random.default_rng(1)
    few, many = rng.random(100), rng.random(10_000)

    assert chance_calibration_error(few) > 5 * chance_calibration_error(many) > 0
    assert calibration_error(many, rng.random(10_000) < many) == pytest.approx(chance_calibration_error(many), abs=0.01)
    assert chance_calibration_error(np.zeros(10)) == 0.0


PLACES = ["Harbor", "Castle", "Market", "Museum", "Garden", "River", "Temple", "Bridge"]


class Places:
    """A model of notes about one place each, which it names as a hashtag: in the plural, with too much confidence."""

    def __init__(self, count: int = 400) -> None:
        rng = np.random.default_rng(0)
        self.notes = []
        for number in range(count):
            place = PLACES[rng.integers(8)]
            tags = (place,) if rng.random() < 0.6 else ("other",)
            self.notes.append(Note(f"n{number}", place, "secret", tags, "Even" if rng.random() < 0.5 else "Odd"))
        self.asked: list[Note] = []

    def read(self, notes: list[Note]) -> list[Prediction]:
        self.asked += notes
        return [
            Prediction(vector, (Scored(f"{note.title}s", 0.95), Scored("nothing", 0.9)), Scored("Even", 0.99))
            for note, vector in zip(notes, self.embed(notes), strict=True)
        ]

    def embed(self, notes: list[Note]) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[[PLACES.index(note.title) for note in notes]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


def test_a_checkpoint_is_calibrated_on_held_out_notes_with_a_report(checkpoint, tmp_path):
    places = Places()
    fingerprint = load_manifest(checkpoint).fingerprint

    manifest, panels = calibrate(checkpoint, tmp_path, places.notes, places.read, places.embed, holdout=0.5, seed=1)

    held_out = split_notes((note.id for note in places.notes), 0.5, 1)
    assert {note.id for note in places.asked} == held_out
    assert all(note.hashtags == () and note.category is None for note in places.asked)
    assert manifest.fingerprint == fingerprint
    scores = scores_of(load_manifest(checkpoint))
    place, nothing = (scores.suggestion(Candidate("", "", said, vote)) for said, vote in ((0.95, 0.6), (0.9, 0.0)))
    assert place == pytest.approx(0.6, abs=0.1), "six notes in ten carry their place"
    assert nothing < 0.05
    assert scores.category(0.99) == pytest.approx(0.5, abs=0.1)
    assert [panel.name for panel in panels] == ["hashtags", "category"]
    assert all(panel.error_after < 0.1 < panel.error_before for panel in panels)
    report = (tmp_path / MARKDOWN).read_text()
    assert f"| hashtags | {sum(one.count for one in panels[0].after):,} |" in report
    assert PLOT in re.findall(r"!\[[^]]+\]\(([^)]+)\)", report)
    texts = "".join(ElementTree.fromstring((tmp_path / PLOT).read_text()).itertext())  # noqa: S314 - our own file
    assert all(word in texts for word in ("before", "after", "exact", "hashtags", "category"))
    assert "secret" not in report
    assert format_calibration(checkpoint, manifest).count("before") == 2
    assert MARKDOWN not in format_calibration(checkpoint, manifest)
    (checkpoint / MARKDOWN).write_text(report)
    assert f"]({checkpoint / MARKDOWN})" in format_calibration(checkpoint, manifest)


def test_too_few_held_out_notes_are_refused(checkpoint):
    places = Places(LEAST_NOTES)

    with pytest.raises(ValueError, match=f"{LEAST_NOTES} of either are needed to calibrate"):
        gather(places.notes, places.read, places.embed, holdout=0.5)


@pytest.mark.parametrize("tagged", [0, 10])
def test_a_community_with_few_hashtags_has_its_categories_calibrated_alone(tagged, tmp_path):
    tiny_checkpoint(tmp_path)
    places = Places()
    notes = [note if row < tagged else replace(note, hashtags=()) for row, note in enumerate(places.notes)]
    kept = Calibration(SuggestionMap(1.0, 0.0, 0.0, 0.0, 0.0), LogitMap(1.0, 0.0), LogitMap(9.0, 0.0), {})

    manifest, panels = calibrate(tmp_path, tmp_path, notes, places.read, places.embed, holdout=0.5, otherwise=kept)

    assert [panel.name for panel in panels] == ["category"]
    assert panels[0].error_after < 0.1 < panels[0].error_before
    scores = scores_of(manifest)
    assert scores.category(0.99) == pytest.approx(0.5, abs=0.1)
    assert scores.alone(0.3) == kept.alone(0.3)
    assert f"{len(places.asked)} held-out notes" in (tmp_path / MARKDOWN).read_text()
    assert "hashtags" not in format_calibration(tmp_path, manifest)
    manifest, _ = calibrate(tmp_path, tmp_path, notes, places.read, places.embed, holdout=0.5)
    assert scores_of(manifest).alone(0.3) == 0.3


def test_a_community_without_categories_has_its_hashtags_calibrated_alone(checkpoint, tmp_path):
    places = Places()
    notes = [replace(note, category=None) for note in places.notes]

    manifest, panels = calibrate(checkpoint, tmp_path, notes, places.read, places.embed, holdout=0.5)

    assert [panel.name for panel in panels] == ["hashtags"]
    assert scores_of(manifest).category(0.99) == 0.99


def test_a_model_that_is_never_right_is_refused_and_not_changed(checkpoint, tmp_path):
    places = Places()
    before = load_manifest(checkpoint)
    strangers = [Note(note.id, note.title, "", (f"own{note.id}",)) for note in places.notes]

    with pytest.raises(ValueError, match="nothing to calibrate"):
        calibrate(checkpoint, tmp_path, strangers, places.read, places.embed, holdout=0.5)
    assert load_manifest(checkpoint) == before
    assert not (tmp_path / MARKDOWN).exists()

"""The maps from what model and neighbors say to a score, and what the manifest keeps of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoint import tiny_checkpoint

from model.inference import golden
from model.inference.calibration import Calibration, LogitMap, SuggestionMap, logit, scores_of, sigmoid
from model.network.checkpoint import CheckpointError, add_calibration, load_manifest
from model.text.suggestions import Candidate, Uncalibrated

shares = st.floats(0, 1)
biases = st.floats(-8, 8)
slopes = st.floats(0, 4)
MAPS = Calibration(
    SuggestionMap(bias=-3.0, generated=2.0, slope=0.5, vote=1.5, vote_beside=1.0),
    LogitMap(-1.0, 0.5),
    LogitMap(0.2, 0.7),
    {"notes": 100, "calibration_error": {"hashtags": {"before": 0.2, "after": 0.02}}},
)


def suggested(probability: float | None, vote: float) -> Candidate:
    return Candidate("sea", "sea", probability, vote)


def test_the_maps_are_the_formulas_of_their_docstrings():
    both = -3 + 2 + 0.5 * math.log(0.8 / 0.2) + 1.0 * math.log(1 + 20 * 0.3)
    carried = -3 + 1.5 * math.log(1 + 20 * 0.3)

    assert MAPS.suggestion(suggested(0.8, 0.3)) == pytest.approx(1 / (1 + math.exp(-both)))
    assert MAPS.suggestion(suggested(None, 0.3)) == pytest.approx(1 / (1 + math.exp(-carried)))
    assert MAPS.suggestion(suggested(0.5, 0.0)) == pytest.approx(1 / (1 + math.exp(1)))
    assert MAPS.alone(0.5) == pytest.approx(1 / (1 + math.exp(1)))
    assert MAPS.category(0.9) == pytest.approx(1 / (1 + math.exp(-0.2 - 0.7 * math.log(9))))
    assert replace(MAPS, by_category=None).category(0.9) == 0.9


def test_without_a_map_the_models_own_probability_stands_and_another_calibration_may_have_one():
    part = replace(MAPS, suggestions=None, by_model=None, measured={})

    assert part.suggestion(suggested(0.8, 0.3)) == Uncalibrated().suggestion(suggested(0.8, 0.3))
    assert (part.alone(0.3), part.category(0.9)) == (0.3, MAPS.category(0.9))
    assert Calibration.decode(part.encode()) == part
    other = Calibration(SuggestionMap(1.0, 1.0, 1.0, 1.0, 1.0), LogitMap(1.0, 1.0), LogitMap(1.0, 1.0), {"notes": 3})
    assert part.completed(other) == replace(other, by_category=MAPS.by_category, measured={})


@given(st.builds(SuggestionMap, biases, biases, slopes, slopes, slopes), shares, shares, shares, shares)
def test_a_hashtag_of_which_more_is_said_never_scores_less(maps, one, other, vote, louder):
    low, high = sorted((one, other))
    quiet, loud = sorted((vote, louder))

    assert 0 <= maps(low, quiet) <= maps(high, loud) <= 1
    assert 0 <= maps(None, quiet) <= maps(None, loud) <= 1


@given(st.floats(0.001, 0.999))
def test_sigmoid_undoes_logit(share):
    assert sigmoid(logit(share)) == pytest.approx(share)


@pytest.mark.parametrize(("value", "share"), [(1e6, 1.0), (-1e6, 0.0), (0.0, 0.5)])
def test_no_value_is_too_far_out(value, share):
    assert sigmoid(value) == share
    assert math.isfinite(logit(share))


def test_calibrating_changes_nothing_that_names_the_model(tmp_path: Path):
    before = tiny_checkpoint(tmp_path)
    after = add_calibration(tmp_path, MAPS.encode())

    assert (before.calibration, scores_of(before).alone(0.3)) == (None, 0.3)
    assert isinstance(scores_of(before), Uncalibrated)
    assert after == replace(before, calibration=after.calibration)
    assert scores_of(after) == scores_of(load_manifest(tmp_path)) == MAPS
    assert golden.record(tmp_path) == after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"votes": [10, 0.05]}, "made for other votes"),
        ({"by_model": {"bias": 0.0}}, "not readable"),
        ({"by_model": {"bias": 0.0, "slope": "steep"}}, "not readable"),
        ({"by_category": {"bias": 0.0, "slope": math.inf}}, "not readable"),
        ({"suggestions": [1, 2, 3]}, "not readable"),
        ({"votes": None, "suggestions": None}, "made for other votes"),
        ({"suggestions": 7, "by_model": None}, "not readable"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused_with_what_to_do(tmp_path, change, message):
    tiny_checkpoint(tmp_path)
    manifest = add_calibration(tmp_path, json.loads(json.dumps(MAPS.encode() | change)))

    with pytest.raises(CheckpointError, match=message) as refused:
        scores_of(manifest)
    assert "notellm calibrate" in str(refused.value)

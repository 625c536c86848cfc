"""Scores of a running service are what the checkpoint's calibration makes of model and neighbors."""

import math
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import httpx
import pytest
from support.service import NOTELLM, UNSET, Service, running

from model.backend import Prediction
from model.inference.calibration import Calibration, LogitMap, SuggestionMap
from model.inference.hf import HfBackend
from model.network.checkpoint import add_calibration
from model.note import Note
from service.settings import MINI

DRAFT = {"title": "A weekend of ramen in Osaka", "content": "Four bowls in two days, ranked."}
NEAR = {"title": "Ramen in Osaka", "content": "Four bowls, ranked.", "hashtags": ["RamenCounters"]}
MAPS = Calibration(SuggestionMap(-1.0, 0.5, 0.6, 2.0, 1.5), LogitMap(0.3, 0.8), LogitMap(-0.4, 0.5), {})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed model with maps of our own."""
    folder = tmp_path_factory.mktemp("calibrated") / "mini"
    copytree(MINI, folder)
    add_calibration(folder, MAPS.encode())
    return folder


@pytest.fixture(scope="module")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(Service(tmp_path_factory.mktemp("state"), checkpoint)) as service:
        yield service


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    """What the model itself says of the draft."""
    backend = HfBackend.open(MINI)
    [found] = backend.predict(backend.tokenize([Note("", **DRAFT)]), 5)
    return found


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def odds(share: float) -> float:
    return math.log(share / (1 - share))


def test_the_scores_follow_the_calibration_with_neighbors_and_without(service, prediction):
    with httpx.Client(base_url=service.api, timeout=60) as client:
        alone = client.post("/notes/tags", json=DRAFT).raise_for_status().json()
        client.put("/notes/near?wait=10", json=NEAR).raise_for_status()
        beside = client.post("/notes/tags", json={**DRAFT, "related": 1}).raise_for_status().json()
        stored = client.get("/notes/near").raise_for_status().json()

    said = {tag.name: -1.0 + 0.5 + 0.6 * odds(tag.score) for tag in prediction.hashtags}
    assert {tag["tag"]: tag["score"] for tag in alone["hashtags"]} == {
        name: pytest.approx(sigmoid(value), abs=1e-3) for name, value in said.items()
    }
    strength = math.log(1 + beside["related"][0]["score"])  # the vote is the cosine over twenty
    scores = {tag["tag"]: (tag["score"], tag["source"]) for tag in beside["hashtags"]}
    assert scores["RamenCounters"] == (pytest.approx(sigmoid(-1.0 + 2.0 * strength), abs=1e-3), "neighbors")
    assert [tag["score"] for tag in beside["hashtags"]] == sorted((s for s, _ in scores.values()), reverse=True)
    category = pytest.approx(sigmoid(-0.4 + 0.5 * odds(min(prediction.category.score, 0.9999))), abs=1e-3)
    assert beside["category"] == {"name": prediction.category.name, "score": category}

    backend = HfBackend.open(MINI)
    note = Note("near", NEAR["title"], NEAR["content"], ("RamenCounters",))
    [own] = backend.predict(backend.tokenize([note]), 5)
    assert [tag["score"] for tag in stored["suggested_hashtags"]] == [
        pytest.approx(sigmoid(0.3 + 0.8 * odds(tag.score)), abs=1e-3) for tag in own.hashtags
    ]


def test_a_gateway_does_not_start_with_a_calibration_of_other_votes(checkpoint, tmp_path):
    folder = tmp_path / "mini"
    copytree(checkpoint, folder)
    add_calibration(folder, replace(MAPS, measured={}).encode() | {"votes": [3, 0.1]})

    ended = subprocess.run(
        [*NOTELLM, "gateway"],
        env={**UNSET, "NOTELLM_CHECKPOINT": str(folder), "NOTELLM_REDIS_URL": "redis://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "notellm calibrate" in ended.stderr

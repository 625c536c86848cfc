import gzip
from pathlib import Path

import msgpack
import numpy as np
import pytest
from support.checkpoint import tiny_checkpoint
from support.tiny import NOTES

from model.inference.hf import HfBackend
from model.inference.many import HASHTAGS, predict_all
from model.network.checkpoint import PREDICTIONS
from service.store.records import source_of
from service.worker import precomputed
from service.worker.prediction_cache import PredictionCache


@pytest.fixture
def backend(tmp_path) -> HfBackend:
    tiny_checkpoint(tmp_path)
    backend = HfBackend.open(tmp_path)
    precomputed.write(tmp_path, backend, NOTES)
    return backend


def test_what_is_read_is_what_the_worker_would_predict(backend, tmp_path):
    known = {one.source: one for one in precomputed.read(tmp_path, backend.fingerprint)}
    assert len(known) == len(NOTES)
    for note, expected in zip(NOTES, predict_all(backend, NOTES), strict=True):
        found = known[source_of(note, HASHTAGS)]
        assert found.vector @ expected.vector > 0.9999
        assert np.linalg.norm(found.vector) == pytest.approx(1.0, abs=1e-6)
        assert [name for name, _ in found.hashtags] == [tag.name for tag in expected.hashtags]
        assert found.category[0] == expected.category.name


def test_a_cache_starts_with_them_and_evicts_them_as_any_other(backend, tmp_path):
    known = precomputed.read(tmp_path, backend.fingerprint)
    assert PredictionCache(10, known).get(known[0].source) is known[0]
    cache = PredictionCache(2, known)
    assert [cache.get(one.source) for one in known] == [None] * (len(known) - 2) + known[-2:]


def test_those_of_another_model_are_left_out(backend, tmp_path):
    assert precomputed.read(tmp_path, "another") == []


def test_a_checkpoint_without_any_has_none(tmp_path):
    assert precomputed.read(tmp_path, "another") == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def no_gzip(path: Path) -> None:
    path.write_bytes(b"x" * 100)


def other_rows(path: Path) -> None:
    model, rows = msgpack.unpackb(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(msgpack.packb([model, [row[:2] for row in rows]])))


def no_list(path: Path) -> None:
    path.write_bytes(gzip.compress(msgpack.packb(7)))


@pytest.mark.parametrize("damage", [cut, no_gzip, other_rows, no_list])
def test_a_damaged_file_costs_a_line_in_the_log_and_nothing_else(backend, tmp_path, caplog, damage):
    damage(tmp_path / PREDICTIONS)
    assert precomputed.read(tmp_path, backend.fingerprint) == []
    assert [record.message for record in caplog.records] == ["precomputed_predictions_damaged"]

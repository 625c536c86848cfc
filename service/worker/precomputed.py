"""Precomputed predictions: a file in a checkpoint's folder, by the source of each note, so that no worker makes them.

The demo's checkpoints come with those of the sample notes. Vectors have 8 bits a number: their cosine to the exact ones
is 0.9999 and more. A file of another model, or a damaged one, is left out: the
worker then predicts as it always does.
"""

import gzip
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from model.backend import Backend, Prediction
from model.files import write_bytes
from model.inference.many import HASHTAGS, predict_all
from model.network.checkpoint import PREDICTIONS
from model.note import Note
from service.store.records import StoredPrediction, scored, source_of

log = logging.getLogger(__name__)

_LARGEST = 127  # of a number in 8 bits; the scale of a vector is in its length, which is 1


def write(folder: Path, backend: Backend, notes: Sequence[Note]) -> int:
    """Predict notes and write the predictions into the folder of their checkpoint; returns the file's bytes."""
    rows = [_row(note, one) for note, one in zip(notes, predict_all(backend, notes), strict=True)]
    content = gzip.compress(msgpack.packb([backend.fingerprint, rows]), mtime=0)
    write_bytes(folder / PREDICTIONS, content)
    return len(content)


def read(checkpoint: Path, fingerprint: str) -> list[StoredPrediction]:
    """The predictions beside a checkpoint, with version 0; none without a file of this model."""
    try:
        model, rows = msgpack.unpackb(gzip.decompress((checkpoint / PREDICTIONS).read_bytes()))
        return list(_stored(rows, fingerprint)) if model == fingerprint else []
    except FileNotFoundError:
        return []
    except (OSError, EOFError, ValueError, TypeError, msgpack.UnpackException) as error:
        log.warning("precomputed_predictions_damaged", extra={"error": type(error).__name__})
        return []


def _row(note: Note, prediction: Prediction) -> tuple[Any, ...]:
    category = prediction.category
    return (
        source_of(note, HASHTAGS),
        np.rint(prediction.vector * (_LARGEST / np.abs(prediction.vector).max())).astype(np.int8).tobytes(),
        [(tag.name, round(tag.score, 4)) for tag in prediction.hashtags],
        None if category is None else (category.name, round(category.score, 4)),
    )


def _stored(rows: list[Any], fingerprint: str) -> Iterator[StoredPrediction]:
    for source, packed, hashtags, category in rows:
        vector = np.frombuffer(packed, np.int8).astype(np.float32)
        yield StoredPrediction(
            0,
            fingerprint,
            vector / np.linalg.norm(vector),
            tuple(map(scored, hashtags)),
            None if category is None else scored(category),
            source,
        )

from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from support.tiny import NOTES

from model.inference.sentence_encoder import SentenceEncoder
from model.network.checkpoint import CheckpointError, load
from model.network.minilm import minilm_folder
from model.note import Note
from model.recipes import small
from model.training.train import train

RECIPE = replace(
    small(), architecture="encoder", alpha=0.0, steps=12, pairs_per_batch=3, learning_rate=1e-4, whitened_head=False
)
PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6"), ("n3", "n6")]


def test_untrained_it_is_the_sentence_encoder_that_was_published():
    """The published pipeline (mean pooling over tokens, then unit length) is the oracle."""
    texts = [Note("a", "A night train to Lisbon"), Note("b", "Sourdough bread"), Note("c", "x")]
    ours = SentenceEncoder.open(minilm_folder()).embed(texts)
    published = SentenceTransformer(str(minilm_folder())).encode([note.title for note in texts])
    np.testing.assert_allclose(ours, published, atol=1e-4)


def test_a_note_alone_is_the_note_in_a_batch():
    encoder = SentenceEncoder.open(minilm_folder())
    together = encoder.embed(NOTES)
    for note, vector in zip(NOTES, together, strict=True):
        np.testing.assert_allclose(encoder.embed([note])[0], vector, atol=1e-5)


def test_it_trains_on_the_same_pairs_with_the_same_loss_and_opens_again(tmp_path):
    _, history = train(RECIPE, NOTES, PAIRS, tmp_path)
    assert history[-1].contrastive < history[0].contrastive
    assert {losses.generation for losses in history} == {0.0}
    before = SentenceEncoder.open(minilm_folder()).embed(NOTES)
    after = SentenceEncoder.open(tmp_path).embed(NOTES)
    assert not np.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(np.linalg.norm(after, axis=1)), torch.ones(len(NOTES)))


def test_it_cannot_serve(tmp_path):
    train(replace(RECIPE, steps=1), NOTES, PAIRS, tmp_path)
    with pytest.raises(CheckpointError, match="names no head"):
        load(tmp_path)


def test_what_was_cut_in_training_is_cut_when_it_is_used(tmp_path):
    train(replace(RECIPE, steps=1, title_tokens=3, content_tokens=5), NOTES, PAIRS, tmp_path)
    encoder = SentenceEncoder.open(tmp_path)
    long, cut = encoder.embed([Note("a", "a b c d e", "f g h i j k l m"), Note("b", "a b c", "f g h i j")])
    np.testing.assert_allclose(long, cut, atol=1e-6)

import numpy as np
import pytest
import torch
from support.checkpoint import tiny_checkpoint
from support.tiny import NOTES, tiny_base

from model.inference.hf import HfBackend
from model.inference.many import embed_all
from model.network.base_models import special_ids
from model.network.notellm import NoteLLM, add_embedding_token
from model.recipes import small
from model.text.prompt import SHARED, PromptBuilder
from model.training.examples import TrainingSet
from model.training.head import follow_teacher, paired_states
from model.training.teacher import principal_components, teacher_vectors


def unit(rows: int, size: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_all_components_keep_every_cosine_of_the_centered_vectors():
    vectors = unit(40, 12)
    centered = vectors - vectors.mean(axis=0)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    reduced = principal_components(vectors, 12)
    np.testing.assert_allclose(reduced @ reduced.T, centered @ centered.T, atol=1e-5)


def test_the_strongest_components_are_kept_and_missing_ones_are_zero():
    flat = unit(50, 10) * np.array([1, 1, 1, *[1e-3] * 7], dtype=np.float32)
    kept = principal_components(flat, 3)
    whole = principal_components(flat, 10)
    np.testing.assert_allclose(kept @ kept.T, whole @ whole.T, atol=0.02)
    assert principal_components(flat, 16).shape == (50, 16)
    assert not principal_components(flat, 16)[:, 10:].any()


def test_the_teacher_finds_the_notes_about_one_thing_close():
    vectors = teacher_vectors("minilm", NOTES, small())
    bread = vectors[1] @ vectors[3]
    assert bread > max(vectors[1] @ vectors[other] for other in (0, 2, 5))


def test_a_larger_notellm_teaches_with_its_own_vectors(tmp_path):
    tiny_checkpoint(tmp_path)
    vectors = teacher_vectors(str(tmp_path), NOTES, small())
    expected = embed_all(HfBackend.open(tmp_path), NOTES)
    assert vectors.shape == (len(NOTES), 16)
    assert (vectors * expected).sum(axis=1).min() > 0.99


def test_a_head_that_follows_a_teacher_starts_nearer_to_it_than_chance():
    base = tiny_base("llama")
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    network = NoteLLM(base.backbone, 8)
    builder = PromptBuilder(base.tokenizer, special, SHARED, 20, 80)
    training_set = TrainingSet(NOTES, [("n1", "n2"), ("n3", "n4"), ("n5", "n6")], builder)
    states, notes = paired_states(network, training_set)
    # A teacher that is a linear map of the states can be followed all the way, but for the ridge.
    torch.manual_seed(0)
    target = torch.zeros(len(NOTES), 8)
    target[notes] = torch.nn.functional.normalize(
        (states - states.mean(dim=0)) @ torch.randn(states.shape[1], 8), dim=1
    )
    follow_teacher(network, training_set, target)
    cosines = torch.cosine_similarity(network.embedding(states), target[notes])
    assert cosines.mean().item() > 0.8


def test_an_unknown_teacher_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="cannot open the encoder /nowhere: "):
        teacher_vectors("/nowhere", NOTES, small())

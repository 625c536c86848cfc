from dataclasses import replace

import torch
from support.tiny import NOTES

import model.network.checkpoint
import model.training.adapt
from model.network.base_models import open_base, special_ids
from model.recipes import adapted, small
from model.training.adapt import TextSet, adapt
from model.training.examples import Sampling
from model.training.teacher import principal_components, teacher_vectors
from model.training.train import train

RECIPE = replace(adapted(5), base_model="minilm-mini", pairs_per_batch=3, learning_rate=3e-4)
PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6")]


def texts() -> TextSet:
    base = open_base("minilm-mini", NOTES)
    return TextSet(NOTES, base.tokenizer, special_ids(base.tokenizer, base.bos, base.eos, base.pad), RECIPE)


def test_the_state_at_a_position_predicts_the_next_token_and_never_the_embedding_token():
    found = texts()
    for step in range(6):
        for chunk in found.batch(step, Sampling(3, None, 4, 0)).chunks:
            flat = chunk.ids_CL.flatten()
            assert flat[chunk.predict_T + 1].tolist() == chunk.target_T.tolist()
            emb = chunk.ids_CL[0, chunk.before_emb_C[0] + 1]
            assert emb not in chunk.target_T
            assert 0 not in chunk.target_T, "padding is no text"


def test_ranks_share_the_notes_of_a_batch():
    found, sampling = texts(), Sampling(3, None, 4, 0)
    shares = [found.batch(1, sampling, rank, 2) for rank in (0, 1)]
    assert shares[0].notes == shares[1].notes
    rows = [row for share in shares for chunk in share.chunks for row in chunk.rows]
    assert sorted(rows) == list(range(6))


def test_an_adapted_decoder_says_more_of_its_teacher_and_writes_better(tmp_path, monkeypatch):
    # Six notes are so few that the head alone could say all of it.
    monkeypatch.setattr(model.training.adapt, "follow_teacher", lambda *_: None)
    history = adapt(RECIPE, NOTES, tmp_path)
    assert history[-1].teacher < history[0].teacher
    assert history[-1].generation < history[0].generation
    assert {losses.contrastive for losses in history} == {0.0}


def test_training_starts_from_the_adapted_network_and_the_first_rows_of_its_head(tmp_path, monkeypatch):
    kept = {}
    save_head = model.training.adapt.save_head
    monkeypatch.setattr(
        model.training.adapt,
        "save_head",
        lambda folder, network: kept.update(head=network.head) or save_head(folder, network),
    )
    adapt(RECIPE, NOTES, tmp_path / "base")
    recipe = replace(small(), base_model=str(tmp_path / "base"), steps=1, pairs_per_batch=2, dim=16, learning_rate=0.0)
    train(recipe, NOTES, PAIRS, tmp_path / "checkpoint")
    network, _, _ = model.network.checkpoint.load(tmp_path / "checkpoint")
    torch.testing.assert_close(network.head.weight, kept["head"].weight[:16])


def test_the_head_gives_the_teachers_strongest_components_first():
    vectors = teacher_vectors("minilm", NOTES, small())
    both = principal_components(vectors, 384)
    few = principal_components(vectors, 3)
    unit = both[:, :3] / (both[:, :3] ** 2).sum(axis=1, keepdims=True) ** 0.5
    assert abs((unit * few).sum(axis=1) - 1).max() < 1e-3

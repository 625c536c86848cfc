import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny import NOTES, tiny_base

import model.training.loop
import model.training.state
import model.training.train
from model.network.checkpoint import CheckpointError, load, load_manifest
from model.network.chunk import Chunk
from model.recipes import RECIPES, Recipe, mini, paper, small
from model.text.vocabulary import VocabularyError
from model.training.loop import TrainingError
from model.training.train import train

PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6"), ("n3", "n6")]


@pytest.fixture
def recipe(monkeypatch) -> Recipe:
    """A few steps on a tiny model with random weights."""

    def opened(name, notes, dtype):
        base = tiny_base("llama")
        base.backbone.to(getattr(torch, dtype))
        return base

    monkeypatch.setattr(model.training.train, "open_base", opened)
    return replace(small(), base_model="tiny", steps=6, pairs_per_batch=3, dim=16, learning_rate=3e-3)


def test_the_same_seed_gives_the_same_losses_to_the_last_bit(recipe, tmp_path):
    _, first = train(recipe, NOTES, PAIRS, tmp_path / "a")
    _, second = train(recipe, NOTES, PAIRS, tmp_path / "b")
    _, other = train(replace(recipe, seed=1), NOTES, PAIRS, tmp_path / "c")
    assert first == second
    assert first != other


def test_both_losses_fall(recipe, tmp_path):
    _, history = train(replace(recipe, steps=60, alpha=1.0), NOTES, PAIRS, tmp_path)

    def mean(name: str, part: list) -> float:
        return sum(getattr(losses, name) for losses in part) / len(part)

    for name in ("contrastive", "generation"):
        assert mean(name, history[-15:]) < 0.6 * mean(name, history[:15])


def test_as_many_passes_over_the_pairs_as_epochs_when_no_steps_are_given(recipe, tmp_path):
    _, history = train(replace(recipe, steps=0, epochs=3), NOTES, PAIRS, tmp_path)
    assert len(history) == 3 * (len(PAIRS) // 3)


def embeddings(folder: Path) -> torch.Tensor:
    """Of the notes, not normalized."""
    network, builder, _ = load(folder)
    chunk = Chunk.of_prompts(builder.prompts(NOTES), builder.special.pad)
    with torch.inference_mode():
        return network.embedding(network.states(chunk))


def test_a_centered_head_keeps_what_tells_notes_apart_in_fewer_numbers(recipe, tmp_path):
    recipe = replace(recipe, compute_dtype="float32", saved_dtype="float32", hide_hashtags=0.0)
    train(replace(recipe, dim=24), NOTES, PAIRS, tmp_path / "wide")
    manifest, _ = train(replace(recipe, trained_dim=24, centered=True), NOTES, PAIRS, tmp_path / "narrow")
    assert manifest is not None
    wide, narrow = embeddings(tmp_path / "wide"), embeddings(tmp_path / "narrow")

    assert (manifest.dim, narrow.shape[1]) == (16, 16)
    assert wide.mean(dim=0).norm() > 0.1
    torch.testing.assert_close(narrow.mean(dim=0), torch.zeros(16), atol=1e-4, rtol=0)
    # Six notes differ in five directions, so that sixteen keep all of it.
    apart = wide - wide.mean(dim=0)
    torch.testing.assert_close(narrow @ narrow.T, apart @ apart.T, atol=1e-3, rtol=1e-3)


def test_a_training_from_a_narrowed_head_goes_on_with_it(recipe, tmp_path):
    recipe = replace(recipe, trained_dim=24, centered=True)
    train(recipe, NOTES, PAIRS, tmp_path / "first")
    manifest, _ = train(replace(recipe, base_model=str(tmp_path / "first")), NOTES, PAIRS, tmp_path / "second")
    assert manifest is not None
    assert manifest.dim == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_dim": 24}, "trained_dim is what embeddings have before they are centered; set centered=true"),
        ({"trained_dim": 8, "centered": True}, "trained_dim=8 is less than dim=16; 0 trains as many as are kept"),
    ],
)
def test_numbers_of_an_embedding_that_do_not_fit_are_refused(recipe, changes, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}$"):
        train(replace(recipe, **changes), NOTES, PAIRS, tmp_path)


def test_a_checkpoint_gives_back_what_was_trained(recipe, tmp_path):
    manifest, _ = train(recipe, NOTES, PAIRS, tmp_path)
    network, builder, loaded = load(tmp_path)
    assert loaded == manifest
    assert manifest.categories == ("Baking", "Home Decor", "Travel")
    assert network.dim == 16
    assert builder.template.name == "shared"
    assert manifest.trained_on["steps"] == 6
    assert load_manifest(tmp_path).fingerprint == manifest.fingerprint


def test_another_seed_another_fingerprint(recipe, tmp_path):
    first, _ = train(recipe, NOTES, PAIRS, tmp_path / "a")
    again, _ = train(recipe, NOTES, PAIRS, tmp_path / "b")
    other, _ = train(replace(recipe, seed=1), NOTES, PAIRS, tmp_path / "c")
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_a_loss_that_is_not_finite_stops_before_the_step(recipe, tmp_path):
    with pytest.raises(TrainingError, match="step 0 is not finite"):
        train(replace(recipe, tau=float("nan")), NOTES, PAIRS, tmp_path)
    assert not (tmp_path / "notellm.json").exists()


def test_a_category_that_cannot_be_written_is_refused_before_the_first_step_unless_nothing_is_generated(
    recipe, tmp_path
):
    with pytest.raises(VocabularyError, match="has no tokens for '': rename"):
        train(recipe, NOTES, PAIRS, tmp_path, categories=("Travel", ""))
    assert not list(tmp_path.iterdir())
    train(replace(recipe, generative=False, steps=1), NOTES, PAIRS, tmp_path, categories=("Travel", ""))


def test_tau_and_biases_stay_out_of_weight_decay():
    network = model.training.train.NoteLLM(tiny_base("bert").backbone, 16)
    decayed, free, scale = model.training.loop.parameter_groups(network, 0.001)
    assert decayed["weight_decay"] == 0.001
    assert free["weight_decay"] == scale["weight_decay"] == 0.0
    assert [weight is network.log_scale for weight in scale["params"]] == [True]
    assert any(weight is network.head.bias for weight in free["params"])
    count = sum(1 for _ in network.parameters())
    assert sum(len(group["params"]) for group in (decayed, free, scale)) == count


class Killed(Exception):
    """As a signal would end the run."""


@pytest.mark.parametrize("extras", [{}, {"lora_rank": 2}])
def test_a_resumed_run_is_the_uninterrupted_run_to_the_last_bit(recipe, tmp_path, monkeypatch, extras):
    recipe = replace(recipe, steps=9, **extras)
    manifest, history = train(recipe, NOTES, PAIRS, tmp_path / "whole", save_every=2)
    original = model.training.loop.clip
    calls = []

    def clip(*arguments):
        calls.append(arguments)
        if len(calls) == 6:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(model.training.loop, "clip", clip)
    with pytest.raises(Killed):
        train(recipe, NOTES, PAIRS, tmp_path / "resumed", save_every=2)
    calls.clear()
    calls.extend(range(6))
    again, resumed = train(recipe, NOTES, PAIRS, tmp_path / "resumed", save_every=2)
    assert len(calls) == 6 + 9 - 4, "it goes on from step 4, the last one saved"
    assert resumed == history
    assert again.fingerprint == manifest.fingerprint
    assert not list((tmp_path / "resumed" / "run").glob("*state-*"))


@pytest.fixture
def interrupted(recipe, tmp_path, monkeypatch) -> Path:
    """The folder of a run whose state was saved after step 4 and not deleted."""

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(model.training.state.TrainingState, "delete", killed)
        with pytest.raises(Killed):
            train(recipe, NOTES, PAIRS, tmp_path, save_every=2)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "pairs", "difference"),
    [
        ({"alpha": 0.5, "learning_rate": 1e-5}, PAIRS, "learning_rate was 0.003, alpha was 0.1; finish"),
        ({}, PAIRS[1:], "notes and pairs was "),
    ],
)
def test_the_state_of_another_run_is_refused_and_what_differs_is_named(
    recipe, interrupted, settings, pairs, difference
):
    with pytest.raises(TrainingError, match=difference):
        train(replace(recipe, **settings), NOTES, pairs, interrupted)


def test_a_run_that_goes_on_may_be_computed_in_another_way(recipe, interrupted):
    _, history = train(recipe, NOTES, PAIRS, interrupted / "whole")
    changes = {"chunk_notes": 2, "recompute": True, "gradient_checkpointing": True}
    _, resumed = train(replace(recipe, **changes), NOTES, PAIRS, interrupted)
    assert resumed[:4] == history[:4]
    assert [losses.total for losses in resumed[4:]] == pytest.approx([losses.total for losses in history[4:]], rel=0.02)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_moves_the_weights(recipe, tmp_path, monkeypatch, name):
    """In bfloat16 an update at the paper's learning rate would be rounded away: 4% of the weights moved."""
    fields = {"base_model": "tiny", "steps": 4, "pairs_per_batch": 3, "dim": 16, "saved_dtype": "float32"}
    train(replace(RECIPES[name](), **fields), NOTES, PAIRS, tmp_path)
    before = tiny_base("llama").backbone.model.layers.state_dict()
    after = load(tmp_path)[0].backbone.model.layers.state_dict()
    assert len(before) > 10
    for weight, value in before.items():
        assert (after[weight] != value).float().mean() > 0.95, weight


def test_every_step_is_logged_for_tensorboard(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = train(recipe, NOTES, PAIRS, tmp_path)
    log = EventAccumulator(str(tmp_path / "run")).Reload()
    written = [event.value for event in log.Scalars("contrastive")]
    assert written == pytest.approx([losses.contrastive for losses in history])


def test_without_contrastive_learning_only_the_generation_loss_falls(recipe, tmp_path):
    _, history = train(replace(recipe, contrastive=False, alpha=1.0, steps=30), NOTES, PAIRS, tmp_path)
    assert {losses.contrastive for losses in history} == {0.0}
    assert history[-1].generation < history[0].generation


def test_without_generation_no_output_token_is_learned(recipe, tmp_path):
    _, history = train(replace(recipe, generative=False), NOTES, PAIRS, tmp_path)
    assert {losses.generation for losses in history} == {0.0}


def test_adapters_train_little_and_leave_a_checkpoint_like_any_other(recipe, tmp_path):
    manifest, history = train(replace(recipe, lora_rank=4, steps=40), NOTES, PAIRS, tmp_path)
    assert history[-1].total < history[0].total
    network, _, _ = load(tmp_path)
    assert not any("lora" in name for name, _ in network.named_parameters())
    frozen = tiny_base("llama").backbone.state_dict()["model.layers.0.input_layernorm.weight"]
    torch.testing.assert_close(network.backbone.state_dict()["model.layers.0.input_layernorm.weight"], frozen)
    assert manifest.recipe.lora_rank == 4


@pytest.mark.parametrize(
    "extras",
    [
        {"teacher": "minilm"},
        {"gradient_checkpointing": True},
        {"template": "eol", "generative": False},
        {"template": "bare", "generative": False},
    ],
)
def test_what_the_paper_does_not_have_still_lets_the_contrastive_loss_fall(recipe, tmp_path, extras):
    _, history = train(replace(recipe, steps=30, **extras), NOTES, PAIRS, tmp_path)
    first, last = history[:5], history[-5:]
    assert sum(losses.contrastive for losses in last) < sum(losses.contrastive for losses in first)


@pytest.mark.parametrize("name", ["head.safetensors", "model.safetensors", "tokenizer.json", "notellm.json"])
def test_a_missing_file_is_an_error_that_names_it(recipe, tmp_path, name):
    train(recipe, NOTES, PAIRS, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path)


def test_an_altered_file_is_an_error_that_names_it(recipe, tmp_path):
    train(recipe, NOTES, PAIRS, tmp_path)
    weights = bytearray((tmp_path / "head.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "head.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"head\.safetensors is not the file that was saved"):
        load(tmp_path)


def test_a_manifest_without_a_head_is_never_filled_in(recipe, tmp_path):
    train(recipe, NOTES, PAIRS, tmp_path)
    manifest = json.loads((tmp_path / "notellm.json").read_text())
    del manifest["files"]["head.safetensors"]
    (tmp_path / "notellm.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="was altered"):
        load(tmp_path)


def test_a_recipe_with_a_field_of_before_loads_unless_the_field_was_used(recipe, tmp_path):
    trained, _ = train(recipe, NOTES, PAIRS, tmp_path)
    manifest = json.loads((tmp_path / "notellm.json").read_text())
    manifest["recipe"] |= {"matryoshka": [], "hard_negatives": 0, "cached_negatives": 0, "dtype": "bfloat16"}
    (tmp_path / "notellm.json").write_text(json.dumps(manifest))
    assert load_manifest(tmp_path) == trained
    manifest["recipe"]["hard_negatives"] = 2
    (tmp_path / "notellm.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="hard_negatives"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 256}, "dim=256 is more than vLLM can serve"),
        ({"patience": 2}, "set validate_every"),
        ({"validate_every": 2}, "validation needs 30 pairs of 20 notes at least"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_model_is_opened(
    recipe, tmp_path, monkeypatch, settings, message
):
    monkeypatch.delattr(model.training.train, "open_base")
    with pytest.raises(ValueError, match=message):
        train(replace(recipe, **settings), NOTES, PAIRS, tmp_path)


def test_validation_without_pairs_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="without any, set validate_every=0"):
        train(replace(recipe, contrastive=False, validate_every=2), NOTES, (), tmp_path)


def test_an_unknown_format_is_refused(tmp_path):
    (tmp_path / "notellm.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99"):
        load_manifest(tmp_path)


def test_the_papers_recipe_has_the_papers_settings():
    """Section 5.1: LLaMA 2 7B, 64 pairs, title 20 and content 80 tokens, tau 3, alpha 0.01, r 40%, 128 dimensions."""
    recipe = paper()
    assert (recipe.pairs_per_batch, recipe.title_tokens, recipe.content_tokens) == (64, 20, 80)
    assert (recipe.tau, recipe.alpha, recipe.hashtag_share, recipe.dim) == (3.0, 0.01, 0.4, 128)
    assert recipe.template == "paper"
    assert mini().template == small().template == "shared"

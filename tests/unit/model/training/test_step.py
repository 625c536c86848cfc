"""The gradient of a step does not depend on how it was computed: chunks, recomputation, ranks."""

import copy
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from support.tiny import NOTES, tiny_base

from model.network.base_models import special_ids
from model.network.lora import add_adapters
from model.network.losses import contrastive_loss, generation_loss, total_loss
from model.network.notellm import NoteLLM, add_embedding_token
from model.recipes import Recipe, small
from model.text.prompt import SHARED, PromptBuilder
from model.training.distributed import Ranks, clip, gather_weights, spread, whole
from model.training.examples import Sampling, TrainingSet
from model.training.step import Losses, Step

PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6"), ("n3", "n6")]
RECIPE = replace(small(), pairs_per_batch=4, dim=8, compute_dtype="float32", alpha=0.7, chunk_notes=3)
SAMPLING = Sampling(4, 0.5, 3, 0)

Gradients = dict[str, torch.Tensor]


def parts(shape: str = "llama") -> tuple[NoteLLM, TrainingSet]:
    base = tiny_base(shape)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    torch.manual_seed(7)
    network = NoteLLM(base.backbone, 8, tau=1.0)
    return network, TrainingSet(NOTES, PAIRS, PromptBuilder(base.tokenizer, special, SHARED, 20, 80))


def gradient(network: NoteLLM, training_set: TrainingSet, recipe: Recipe, ranks: Ranks, run: object) -> Losses:
    sampling = replace(SAMPLING, chunk_notes=recipe.chunk_notes)
    batch = training_set.batch(5, sampling, ranks.rank, ranks.world)
    return Step(run, recipe, ranks).backward(batch, network.log_scale, 0.0)


def alone(recipe: Recipe, shape: str = "llama") -> tuple[Losses, Gradients]:
    network, training_set = parts(shape)
    ranks = Ranks(0, 1, torch.device("cpu"))
    losses = gradient(network, training_set, recipe, ranks, network)
    return losses, {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def oracle(shape: str) -> tuple[float, Gradients]:
    """Eq. (4) of the whole batch in one plain graph, token-wise mean and all."""
    network, training_set = parts(shape)
    [chunk] = training_set.batch(5, replace(SAMPLING, chunk_notes=99)).chunks
    batch = training_set.batch(5, SAMPLING)
    hidden = network.hidden(chunk.ids_CL)
    emb = network.embedding(hidden[torch.arange(8), chunk.before_emb_C])
    emb = emb[torch.tensor(chunk.rows).argsort()]
    contrastive = contrastive_loss(emb, network.log_scale, batch.related)
    logits = network.logits(hidden.flatten(0, 1)[chunk.predict_T])
    generation = generation_loss(logits, chunk.target_T) / len(chunk.target_T)
    total = total_loss(contrastive, generation, RECIPE.alpha)
    total.backward()
    return total.item(), {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk_notes", [1, 3, 8])
def test_chunks_give_the_gradient_of_the_whole_batch(chunk_notes, recompute):
    total, expected = oracle("llama")
    losses, found = alone(replace(RECIPE, chunk_notes=chunk_notes, recompute=recompute))
    assert losses.total == pytest.approx(total, rel=1e-5)
    assert_same(found, expected)


@pytest.mark.parametrize("shape", ["qwen2", "opt", "bert"])
def test_every_shape_of_network_has_it(shape):
    total, expected = oracle(shape)
    losses, found = alone(RECIPE, shape)
    assert losses.total == pytest.approx(total, rel=1e-5)
    assert_same(found, expected)


def test_gradient_checkpointing_changes_nothing():
    _, expected = alone(RECIPE)
    network, training_set = parts()
    network.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    network.train()
    gradient(network, training_set, RECIPE, Ranks(0, 1, torch.device("cpu")), network)
    assert_same({name: weight.grad for name, weight in network.named_parameters()}, expected)


def test_a_thousand_notes_fit_the_memory_of_one_chunk():
    """With recomputation the number of activations alive at once is that of a chunk, however large the batch is."""
    network, _ = parts()
    alive: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: alive.append(len(output[0])))
    many = [note.__class__(f"{note.id}-{copy_}", *list(vars_of(note))[1:]) for copy_ in range(90) for note in NOTES]
    pairs = [(many[place].id, many[place + 1].id) for place in range(0, 520, 2)]
    training_set = TrainingSet(many, pairs, parts()[1]._builder)
    recipe = replace(RECIPE, recompute=True, chunk_notes=32, pairs_per_batch=256)
    batch = training_set.batch(0, Sampling(256, 0.5, 32, 0))
    Step(network, recipe, Ranks(0, 1, torch.device("cpu"))).backward(batch, network.log_scale, 0.0)
    assert max(alive) == 32
    assert len(alive) == 2 * 512 / 32


def vars_of(note) -> list[object]:
    return [getattr(note, name) for name in note.__dataclass_fields__]


def test_clipping_scales_all_gradients_to_the_norm_that_torch_finds():
    network, training_set = parts()
    gradient(network, training_set, RECIPE, Ranks(0, 1, torch.device("cpu")), network)
    other = copy.deepcopy(network)
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    assert clip(network.parameters(), 0.1) == pytest.approx(float(norm), rel=1e-5)
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# Every way to spread a run: strategy, compute_dtype, recompute, adapters.
WAYS = [
    ("ddp", "float32", False, 0),
    ("ddp", "float32", True, 0),
    ("fsdp", "float32", False, 0),
    ("fsdp", "float32", True, 0),
    ("ddp", "bfloat16", True, 0),
    ("fsdp", "bfloat16", True, 0),
    ("ddp", "bfloat16", True, 2),
    ("fsdp", "bfloat16", True, 2),
]


SHARED_OUT = [("llama", 2), ("qwen2", 0)]  # shapes whose weights are gathered again, and their adapters


def adapted(network: NoteLLM, rank: int) -> NoteLLM:
    """With adapters on frozen bfloat16 weights, if any; both of their factors have a gradient."""
    if rank:
        torch.manual_seed(3)
        network.backbone.bfloat16()
        add_adapters(network.backbone, rank)
        for name, weight in network.backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    return network


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with Ranks.join() as ranks:
        for number, (strategy, dtype, recompute, adapters) in enumerate(WAYS):
            network, training_set = parts()
            run = spread(adapted(network, adapters), ranks, strategy, dtype)
            recipe = replace(RECIPE, recompute=recompute, chunk_notes=2, compute_dtype=dtype)
            losses = gradient(network, training_set, recipe, ranks, run)
            norm = clip(network.parameters(), 1e9)
            trained = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
            found = {name: whole(weight.grad) for name, weight in trained}
            if ranks.first:
                torch.save({"losses": losses.total, "norm": norm, "gradients": found}, Path(folder, str(number)))
        for shape, adapters in SHARED_OUT:
            network, _ = parts(shape)
            spread(adapted(network, adapters), ranks, "fsdp", "bfloat16")
            gather_weights(network.backbone, ranks, None if adapters else torch.bfloat16)
            gather_weights(network, ranks)
            torch.save(dict(network.named_parameters()), Path(folder, f"{shape}-{rank}"))
        ranks.wait()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """What two processes computed, by the place in `WAYS`."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(_rank, (port, str(folder)), nprocs=2, daemon=True)
    return folder


@pytest.mark.parametrize("number", range(len(WAYS)), ids=["-".join(map(str, way)) for way in WAYS])
def test_two_ranks_give_the_gradient_of_one_process_on_the_joined_batch(two_ranks, number):
    _, dtype, _, adapters = WAYS[number]
    network, training_set = parts()
    losses = gradient(adapted(network, adapters), training_set, RECIPE, Ranks(0, 1, torch.device("cpu")), network)
    expected = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    found = torch.load(two_ranks / str(number), weights_only=True)

    assert {value.dtype for value in found["gradients"].values()} == {torch.float32}
    norm = sum(float((value**2).sum()) for value in expected.values()) ** 0.5
    if dtype == "float32":
        assert_same(found["gradients"], expected)
        assert found["norm"] == pytest.approx(norm, rel=1e-4)
    else:
        assert found["gradients"].keys() == expected.keys()
        difference = sum(float(((found["gradients"][name] - value) ** 2).sum()) for name, value in expected.items())
        assert difference**0.5 < 0.05 * norm
    assert found["losses"] == pytest.approx(losses.total, rel=1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(("shape", "adapters"), SHARED_OUT)
def test_the_first_rank_gathers_every_weight_and_the_others_keep_none(two_ranks, shape, adapters):
    network, _ = parts(shape)
    adapted(network, adapters)
    first, other = (torch.load(two_ranks / f"{shape}-{rank}", weights_only=True) for rank in (0, 1))

    # A matrix that is input and output is named once, as long as it is one.
    assert first.keys() == dict(network.named_parameters()).keys()
    for name, weight in network.named_parameters():
        in_backbone = name.startswith("backbone.") and not adapters
        expected = weight.detach().to(torch.bfloat16) if in_backbone else weight.detach()
        torch.testing.assert_close(first[name].detach(), expected, rtol=0, atol=0)
    assert {name for name, weight in other.items() if weight.numel()} == {"log_scale"}

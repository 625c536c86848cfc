"""The training loop: generative-contrastive learning with collaborative supervised fine-tuning (sections 4.3, 4.4)."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from model.base import open_base
from model.checkpoint import Manifest, save, special_ids
from model.examples import Batch, TrainingSet
from model.losses import contrastive_loss, generation_loss, total_loss
from model.network import NoteLLM, add_embedding_token
from model.note import Note
from model.prompt import TEMPLATES, PromptBuilder
from model.recipes import Recipe

_LAST = 20  # steps averaged for the figures that go into the checkpoint


class TrainingError(ValueError):
    """Training cannot go on; nothing was written."""


@dataclass(frozen=True, slots=True)
class Losses:
    """One step's losses in nats, and tau."""

    total: float
    contrastive: float
    generation: float
    tau: float


def train(
    recipe: Recipe, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], out: Path
) -> tuple[Manifest, list[Losses]]:
    """Train from the recipe's base model on related pairs and write a checkpoint to ``out``.

    The same recipe, notes and pairs give the same losses on the same kind of machine and number of threads.

    Raises:
        TrainingError: if a loss is not finite; BaseModelError, ValueError: see `open_base` and `TrainingSet`.
    """
    torch.manual_seed(recipe.seed)
    base = open_base(recipe.base_model, notes, recipe.dtype)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    network = NoteLLM(base.backbone, recipe.dim, recipe.tau)
    builder = PromptBuilder(
        base.tokenizer, special, TEMPLATES[recipe.template], recipe.title_tokens, recipe.content_tokens
    )
    training_set = TrainingSet(notes, pairs, builder)
    if recipe.whitened_head:
        whiten_head(network, training_set, recipe.seed)
    history = fit(network, training_set, recipe)
    last = history[-_LAST:]
    trained_on = {
        "notes": len(notes),
        "pairs": len(pairs),
        "steps": len(history),
        "last_losses": {
            name: round(sum(asdict(losses)[name] for losses in last) / len(last), 4)
            for name in ("total", "contrastive", "generation", "tau")
        },
    }
    categories = tuple(sorted({note.category for note in notes if note.category}))
    return save(out, network, base.tokenizer, special, recipe, categories, trained_on), history


@torch.no_grad()
def whiten_head(network: NoteLLM, training_set: TrainingSet, seed: int, notes: int = 512) -> None:
    """Start the head as a PCA whitening of some notes' states, so that they differ by what tells them apart.

    States of a pre-trained network share most of their length; a random head keeps that, and every cosine starts
    near 1. Fewer directions than D leave the rest of the head as it is.
    """
    batches = training_set.batches(16, 0.0, random.Random(seed))
    rows: list[Tensor] = []
    while sum(len(row) for row in rows) < min(notes, 2 * len(training_set.pairs)):
        batch = next(batches)
        states_NLH = network.hidden(batch.ids_NL)
        rows.append(states_NLH[torch.arange(len(batch.ids_NL)), batch.before_emb_N].float())
    states_NH = torch.cat(rows)
    mean_H = states_NH.mean(dim=0)
    variances, directions_HH = torch.linalg.eigh(torch.cov((states_NH - mean_H).T))
    kept = min(network.dim, len(variances), len(states_NH) - 1)
    # The ridge keeps directions of next to no variance, which are noise, from being blown up to the size of the rest.
    scale = (variances + 0.1 * variances.mean()).rsqrt()
    head_DH = (directions_HH * scale).T.flip(0)[:kept]
    network.head.weight[:kept] = head_DH.to(network.head.weight.dtype)
    network.head.bias[:kept] = -(head_DH @ mean_H).to(network.head.bias.dtype)


def fit(network: NoteLLM, training_set: TrainingSet, recipe: Recipe) -> list[Losses]:
    """Run the recipe's steps; the losses of each, in order. A loss that is not finite raises TrainingError."""
    steps = recipe.steps or max(1, len(training_set.pairs) // recipe.pairs_per_batch)
    optimizer = AdamW(_parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
    schedule = LambdaLR(optimizer, lambda step: _rate(step, steps, recipe.warmup_share))
    batches = training_set.batches(recipe.pairs_per_batch, recipe.hashtag_share, random.Random(recipe.seed))
    history: list[Losses] = []
    device = next(network.parameters()).device
    network.train()
    with tqdm(total=steps, desc=f"train {recipe.name}", unit="step") as progress:
        for step in range(steps):
            with torch.autocast(device.type, getattr(torch, recipe.compute_dtype)):
                contrastive, generation = losses_of(network, next(batches).to(device))
            total = total_loss(contrastive, generation, recipe.alpha)
            if not torch.isfinite(total):
                raise TrainingError(f"the loss of step {step} is not finite; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            history.append(Losses(total.item(), contrastive.item(), generation.item(), network.log_scale.item()))
            progress.update()
            progress.set_postfix(loss=f"{history[-1].total:.3f}", cl=f"{history[-1].contrastive:.3f}")
    return history


def losses_of(network: NoteLLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Contrastive and generation loss of one batch, from one forward pass; logits for output tokens alone."""
    hidden_NLH = network.hidden(batch.ids_NL)
    emb_ND = network.embedding(hidden_NLH[torch.arange(len(batch.ids_NL)), batch.before_emb_N])
    contrastive = contrastive_loss(emb_ND, network.log_scale, batch.related_NN)
    logits_TV = network.logits(hidden_NLH.flatten(0, 1)[batch.predict_T])
    return contrastive, generation_loss(logits_TV, batch.target_T)


def _parameter_groups(network: NoteLLM, weight_decay: float) -> list[dict[str, object]]:
    """Tau, biases and norms stay out of weight decay: they have no scale to be pulled to zero from."""
    decayed = [weight for weight in network.parameters() if weight.dim() >= 2]
    free = [weight for weight in network.parameters() if weight.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _rate(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))

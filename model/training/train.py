"""The training loop: generative-contrastive learning with collaborative supervised fine-tuning (sections 4.3, 4.4)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

from model.inference import golden
from model.network.base_models import open_base
from model.network.checkpoint import HEAD, Manifest, load_head, load_manifest, save, special_ids
from model.network.lora import add_adapters, fold_adapters
from model.network.notellm import NoteLLM, add_embedding_token
from model.network.sentence_bert import SentenceBert, encoder_builder, open_encoder
from model.network.sentence_bert import special_ids as encoder_ids
from model.note import Note
from model.recipes import Recipe
from model.text.prompt import TEMPLATES, PromptBuilder, SpecialIds
from model.training.distributed import Ranks, Strategy, clip, gather_weights, spread
from model.training.examples import Sampling, TrainingSet
from model.training.head_init import follow_teacher, whiten_head
from model.training.state import TrainingState
from model.training.step import CachedNegatives, Losses, Step
from model.training.teacher import hard_negatives, principal_components, teacher_folder, teacher_vectors

_LAST = 20  # steps averaged for the figures that go into the checkpoint
SAVE_EVERY = 50
RUN = "run"  # beside the checkpoint: the TensorBoard log, and the state of a run that is not finished
Pairs = Sequence[tuple[str, str]]
Network = NoteLLM | SentenceBert


class TrainingError(ValueError):
    """Training cannot go on; no checkpoint was written."""


def train(
    recipe: Recipe,
    notes: Sequence[Note],
    pairs: Pairs,
    out: Path,
    *,
    categories: Sequence[str] | None = None,
    strategy: Strategy = "ddp",
    save_every: int = SAVE_EVERY,
) -> tuple[Manifest, list[Losses]]:
    """Train from the recipe's base model on related pairs and write a checkpoint to ``out``.

    A run that was killed goes on from its last saved state in ``out``. The same recipe, notes and pairs give the same
    losses on the same kind of machine and number of threads, interrupted or not.

    Args:
        pairs: none are needed for a recipe that is not contrastive.
        categories: the closed set; by default every category of the notes.
        strategy: how the processes of `torchrun`, if any, hold the weights.
        save_every: steps between saved states.

    Raises:
        TrainingError: if a loss is not finite, or ``out`` holds the state of another run.
        BaseModelError, ValueError: see `open_base` and `TrainingSet`.
    """
    if not recipe.contrastive and not pairs:
        # Pairs only say which notes share a batch then.
        pairs = [(first.id, second.id) for first, second in zip(notes[::2], notes[1::2], strict=False)]
    with Ranks.join() as ranks:
        torch.manual_seed(recipe.seed)
        start = _encoder(recipe, notes, pairs) if recipe.architecture == "encoder" else _decoder(recipe, notes, pairs)
        network = start.network
        step = Step(
            spread(network, ranks, strategy),
            start.training_set,
            recipe,
            ranks,
            start.teacher_ND,
            CachedNegatives(recipe.cached_negatives),
        )
        state = TrainingState(out / RUN, identity(recipe, notes, pairs), ranks)
        history = fit(network, step, state, out / RUN, save_every)
        gather_weights(network)
        fold_adapters(network.backbone)
        closed = categories or {note.category for note in notes if note.category}
        trained_on = {"notes": len(notes), "pairs": len(pairs), **_outcome(history)}
        if ranks.first:
            save(out, network, start.tokenizer, start.special, recipe, tuple(sorted(closed)), trained_on)
            if recipe.architecture == "decoder":
                golden.record(out)
            state.delete()
        ranks.wait()
        manifest = load_manifest(out)
    return manifest, history


def fit(network: Network, step: Step, state: TrainingState, logs: Path, save_every: int = SAVE_EVERY) -> list[Losses]:
    """Run the recipe's steps, those already done included; the losses of each, in order."""
    recipe, ranks, training_set = step.recipe, step.ranks, step.training_set
    steps = recipe.steps or training_set.batches_per_pass(recipe.pairs_per_batch)
    share = recipe.hashtag_share if recipe.alpha > 0 else None
    draw = Sampling(recipe.pairs_per_batch, share, recipe.chunk_notes, recipe.seed)
    optimizer = AdamW(_parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
    try:
        history = state.restore(network, optimizer, step.cached)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    network.train()
    with (
        tqdm(
            total=steps, initial=len(history), desc=f"train {recipe.name}", unit="step", disable=not ranks.first
        ) as progress,
        _written(logs, ranks.first) as write,
    ):
        for number in range(len(history), steps):
            rate = _rate(number, steps, recipe.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate
            optimizer.zero_grad(set_to_none=True)
            batch = training_set.batch(number, draw, ranks.rank, ranks.world)
            fading = 1 - number / steps if recipe.contrastive else 1.0
            losses = step.backward(batch, network.log_scale, recipe.teacher_weight * fading)
            norm = clip(network.parameters(), recipe.max_grad_norm) if np.isfinite(losses.total) else losses.total
            if not np.isfinite(norm):
                raise TrainingError(f"the loss or gradient of step {number} is not finite; lower the learning rate")
            optimizer.step()
            history.append(losses)
            write(number, losses, norm, recipe.learning_rate * rate)
            progress.set_postfix(loss=f"{losses.total:.3f}", cl=f"{losses.contrastive:.3f}", refresh=False)
            progress.update()
            if (number + 1) % save_every == 0 and number + 1 < steps:
                state.save(network, optimizer, history, step.cached)
    return history


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a run begins. ``teacher_ND`` has a unit vector for each note."""

    network: Network
    tokenizer: Tokenizer
    special: SpecialIds
    training_set: TrainingSet
    teacher_ND: Tensor | None = None


def _encoder(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> _Start:
    """SentenceBERT, with every weight as it was pre-trained."""
    folder = teacher_folder(recipe.base_model)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = encoder_ids(tokenizer)
    network = SentenceBert(open_encoder(folder), special.pad, recipe.tau)
    builder = encoder_builder(tokenizer, special, recipe.title_tokens, recipe.content_tokens)
    return _Start(network, tokenizer, special, TrainingSet(notes, pairs, builder))


def _decoder(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> _Start:
    """NoteLLM on a causal language model, with head and adapters as the recipe starts them."""
    base = open_base(recipe.base_model, notes, recipe.dtype)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    if recipe.gradient_checkpointing:
        base.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    network = NoteLLM(base.backbone, recipe.dim, recipe.tau)
    builder = PromptBuilder(
        base.tokenizer, special, TEMPLATES[recipe.template], recipe.title_tokens, recipe.content_tokens
    )
    training_set, teacher_ND = TrainingSet(notes, pairs, builder), None
    if recipe.teacher is not None:
        vectors_NH = teacher_vectors(recipe.teacher, notes, recipe)
        teacher_ND = torch.from_numpy(principal_components(vectors_NH, recipe.dim))
        if recipe.hard_negatives:
            anchors = sorted({first for first, _ in training_set.pairs})
            negatives = hard_negatives(vectors_NH, anchors, training_set.related, recipe.hard_negatives)
            training_set = TrainingSet(notes, pairs, builder, negatives)
        follow_teacher(network, training_set, teacher_ND)
    elif (Path(recipe.base_model) / HEAD).is_file():
        load_head(Path(recipe.base_model), network)
    elif recipe.whitened_head:
        whiten_head(network, training_set)
    if recipe.lora_rank:
        add_adapters(network.backbone, recipe.lora_rank)
    return _Start(network, base.tokenizer, special, training_set, teacher_ND)


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Tau, biases and norms stay out of weight decay: they have no scale to be pulled to zero from."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    decayed = [weight for weight in trained if weight.dim() >= 2]
    # Tau has a group of its own: it is never shared out over ranks, and an update of tensors of two kinds fails.
    free = [weight for weight in trained if weight.dim() == 1]
    scale = [weight for weight in trained if weight.dim() == 0]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
        {"params": scale, "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def identity(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> str:
    """What makes a run this one: 16 hex digits that differ when recipe, notes or pairs do."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for part in (*notes, *pairs):
        digest.update(repr(part).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


@contextmanager
def _written(folder: Path, first: bool) -> Iterator[Any]:
    """A function that logs a step for TensorBoard; on ranks but the first it does nothing."""
    if not first:
        yield lambda *_: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(step: int, losses: Losses, norm: float, rate: float) -> None:
            for name, value in (*asdict(losses).items(), ("gradient norm", norm), ("learning rate", rate)):
                writer.add_scalar(name, value, step)

        yield write


def _outcome(history: Sequence[Losses]) -> dict[str, Any]:
    last = [asdict(losses) for losses in history[-_LAST:]]
    means = {name: round(sum(losses[name] for losses in last) / len(last), 4) for name in last[0]}
    return {"steps": len(history), "last_losses": means}

"""The training loop: generative-contrastive learning with collaborative supervised fine-tuning (sections 4.3, 4.4)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.optim import AdamW
from tqdm import tqdm

from model.network.notellm import NoteLLM
from model.network.sentence_bert import SentenceBert
from model.training.distributed import clip
from model.training.examples import Batch, Examples, Sampling
from model.training.state import History, TrainingState
from model.training.step import Losses, Step
from model.training.validation import NAME, Validation

SAVE_EVERY = 50


class TrainingError(ValueError):
    """Training cannot go on; no checkpoint was written."""


def fit(
    network: NoteLLM | SentenceBert,
    examples: Examples,
    step: Step,
    state: TrainingState,
    save_every: int = SAVE_EVERY,
    validation: Validation | None = None,
) -> History:
    """Run the recipe's steps from the saved state on; the figures of every step, in order.

    With a validation the network ends with the weights that it liked best, the first of equals.

    Raises:
        TrainingError: if a loss is not finite, or the state is of another run.
    """
    recipe, ranks = step.recipe, step.ranks
    steps = recipe.steps or recipe.epochs * examples.batches_per_pass(recipe.pairs_per_batch)
    sampling = Sampling.of(recipe)
    # Fused: one kernel instead of several, and no copies of the moments.
    optimizer = AdamW(parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    try:
        history = state.restore(network, optimizer)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    network.train()
    with (
        tqdm(
            total=steps, initial=len(history.losses), desc=f"train {recipe.name}", unit="step", disable=not ranks.first
        ) as progress,
        _log(state.folder, ranks.first) as write,
    ):
        for number in range(len(history.losses), steps):
            batch = examples.batch(number, sampling, ranks.rank, ranks.world)
            losses, scalars = _learn(network, batch, step, optimizer, number, steps)
            history.losses.append(losses)
            write(number, scalars)
            progress.set_postfix(loss=f"{losses.total:.3f}", cl=f"{losses.contrastive:.3f}", refresh=False)
            progress.update()
            done, last = number + 1, number + 1 == steps
            if validation is not None and (done % recipe.validate_every == 0 or last):
                history.recalls[done] = validation.recall(step, examples)
                write(number, {NAME: history.recalls[done]})
                if history.best == done:
                    state.keep_best(network, done)
                if history.is_over(recipe.patience):
                    break
            if done % save_every == 0 and not last:
                state.save(network, optimizer, history)
    if history.recalls:
        state.restore_best(network, history.best)
    return history


def _learn(
    network: NoteLLM | SentenceBert, batch: Batch, step: Step, optimizer: AdamW, number: int, steps: int
) -> tuple[Losses, dict[str, float]]:
    """Take step ``number`` of ``steps``; its losses, and every figure of it."""
    recipe = step.recipe
    rate = recipe.learning_rate * _schedule(number, steps, recipe.warmup_share)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    fading = 1 - number / steps if recipe.contrastive else 1.0
    losses = step.backward(batch, network.log_scale, recipe.teacher_weight * fading)
    norm = clip(network.parameters(), recipe.max_grad_norm) if np.isfinite(losses.total) else losses.total
    if not np.isfinite(norm):
        raise TrainingError(f"the loss or gradient of step {number} is not finite; lower the learning rate")
    optimizer.step()
    return losses, {**asdict(losses), "gradient norm": norm, "learning rate": rate}


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and norms, and tau, without: they have no scale to be pulled to zero from."""
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


def _schedule(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


@contextmanager
def _log(folder: Path, first: bool) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function that logs the scalars of a step for TensorBoard; on ranks but the first it does nothing."""
    if not first:
        yield lambda *_: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(step: int, scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)

        yield write

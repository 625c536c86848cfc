"""The gradient of one step: losses over a whole batch, computed chunk by chunk and rank by rank.

Embeddings of every note of every rank meet in one matrix. Each rank computes the loss of the whole of it, takes the
gradient of its own rows, and sends that back through the network, as GradCache does (arXiv 2101.06983). The result is
the gradient of one process on the joined batch; gathering without a gradient would lose a factor of the number of
ranks in the contrastive term, and alpha with it. Shapes: N rows of pairs, M negatives behind them, D embedding size.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.network.losses import contrastive_loss, matryoshka_loss, teacher_loss, total_loss
from model.recipes import Recipe
from model.training.distributed import Ranks, synchronized
from model.training.examples import Batch, Examples


@dataclass(frozen=True, slots=True)
class Losses:
    """One step's losses in nats (the teacher's: one minus a cosine), and tau."""

    total: float
    contrastive: float
    generation: float
    teacher: float
    tau: float


@dataclass(slots=True)
class CachedNegatives:
    """Vectors of earlier batches, newest last, and the notes they are of (arXiv 1911.05722, but of one network)."""

    size: int
    vectors: deque[Tensor] = field(init=False)
    notes: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        self.vectors, self.notes = deque(maxlen=self.size), deque(maxlen=self.size)

    def add(self, notes: tuple[int, ...], emb_ND: Tensor) -> None:
        """Keep a batch's vectors; the oldest go."""
        self.notes.extend(notes)
        self.vectors.extend(emb_ND.detach().unbind())


@dataclass(frozen=True, slots=True)
class Step:
    """What every step of a run needs. ``teacher_ND`` has a vector for each note of the training set."""

    network: Any
    training_set: Examples
    recipe: Recipe
    ranks: Ranks
    teacher_ND: Tensor | None = None
    cached: CachedNegatives = field(default_factory=lambda: CachedNegatives(0))

    def backward(self, batch: Batch, log_scale: Tensor, teacher_weight: float) -> Losses:
        """Add the gradient of the batch's total loss, eq. (4), to the weights, and return the losses.

        With `Recipe.recompute` every chunk runs twice, first without activations: the memory is that of one chunk.
        """
        recipe, chunks = self.recipe, [chunk.to(self.ranks.device) for chunk in batch.chunks]
        groups = [[chunk] for chunk in chunks] if recipe.recompute else [chunks]
        kept: list[tuple[Tensor, Tensor]] = []
        with torch.set_grad_enabled(not recipe.recompute):
            kept = [self._forward(group) for group in groups]
        order = torch.tensor([row for chunk in chunks for row in chunk.rows]).argsort().to(self.ranks.device)
        local_ND = torch.cat([emb for emb, _ in kept])[order]
        joined_ND = self.ranks.gather(local_ND).requires_grad_()
        tau = log_scale.detach().clone().requires_grad_()
        contrastive, teacher = self._embedding_losses(joined_ND, tau, batch, teacher_weight)
        tokens = self.ranks.sum(torch.tensor(float(batch.num_output_tokens), device=self.ranks.device)).clamp(min=1)
        generation = self.ranks.sum(torch.stack([loss.detach() for _, loss in kept]).sum()) / tokens
        total = total_loss(contrastive, generation, recipe.alpha) + teacher_weight * teacher
        losses = Losses(*(value.item() for value in (total, contrastive, generation, teacher, log_scale)))
        if not torch.isfinite(total):
            return losses
        weighted = total_loss(contrastive, torch.zeros_like(contrastive), recipe.alpha) + teacher_weight * teacher
        d_joined_ND, d_tau = torch.autograd.grad(weighted, (joined_ND, tau), allow_unused=True, materialize_grads=True)
        share = len(local_ND)
        # Ranks average their gradients; the sum over ranks is wanted.
        d_local_ND = d_joined_ND[self.ranks.rank * share : (self.ranks.rank + 1) * share] * self.ranks.world
        d_rows_ND = d_local_ND[order.argsort()]
        per_token = recipe.alpha / (1 + recipe.alpha) * self.ranks.world / tokens
        for number, group in enumerate(groups):
            with synchronized(self.network, last=number == len(groups) - 1):
                emb_CD, generated = self._forward(group) if recipe.recompute else kept[number]
                gradient_CD, d_rows_ND = d_rows_ND[: len(emb_CD)], d_rows_ND[len(emb_CD) :]
                surrogate = (emb_CD * gradient_CD).sum() + per_token * generated
                # Every rank knows all of tau's gradient: their mean leaves it as it is. Once, and with the last group,
                # in which DDP waits for every weight.
                surrogate = surrogate + (log_scale * d_tau if number == len(groups) - 1 else 0.0)
                surrogate.backward()  # type: ignore[no-untyped-call]
        self.cached.add(batch.notes, joined_ND)
        return losses

    def _forward(self, chunks: list[Any]) -> tuple[Tensor, Tensor]:
        dtype = getattr(torch, self.recipe.compute_dtype)
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            emb_ND, generation = self.network(chunks)
        return emb_ND, generation

    def _embedding_losses(
        self, joined_ND: Tensor, tau: Tensor, batch: Batch, teacher_weight: float
    ) -> tuple[Tensor, Tensor]:
        num_paired, device = len(batch.related), joined_ND.device
        contrastive = teacher = (joined_ND * 0.0).sum()
        if self.recipe.contrastive:
            related_NX = batch.related
            cached = list(self.cached.vectors)
            if cached:
                known = self.training_set.relations(batch.notes[:num_paired], tuple(self.cached.notes))
                related_NX = torch.cat([related_NX, known], dim=1)
            related_NX = related_NX.to(device)

            def loss_of(emb_ND: Tensor) -> Tensor:
                others_MD = torch.cat([emb_ND[num_paired:], *(vector[None, : emb_ND.shape[1]] for vector in cached)])
                return contrastive_loss(
                    emb_ND[:num_paired], tau, related_NX[:, :num_paired], others_MD, related_NX[:, num_paired:]
                )

            contrastive = matryoshka_loss(joined_ND, self.recipe.matryoshka, loss_of)
        if self.teacher_ND is not None and teacher_weight > 0:
            teacher = teacher_loss(joined_ND, self.teacher_ND[list(batch.notes)].to(device))
        return contrastive, teacher

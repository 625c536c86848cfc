"""The gradient of one step: losses over a whole batch, computed chunk by chunk and rank by rank.

The embeddings of all ranks are gathered in one matrix. Each rank computes the loss of the whole matrix, takes the
gradient of its own rows, and sends that back through the network, as GradCache does (arXiv 2101.06983). The result is
the gradient of one process on the joined batch; gathering without a gradient would lose a factor of the number of
ranks in the contrastive term, and alpha with it. Shapes: N rows of a batch, D embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.network.chunk import Chunk
from model.network.losses import contrastive_loss, teacher_loss, total_loss
from model.recipes import Recipe
from model.training.distributed import Ranks, synchronized
from model.training.examples import Batch, Examples

Forward = tuple[Tensor, Tensor]  # embeddings of some chunks, and their summed generation loss


@dataclass(frozen=True, slots=True)
class Losses:
    """One step's losses in nats (the teacher's: one minus a cosine), and tau."""

    total: float
    contrastive: float
    generation: float
    teacher: float
    tau: float


@dataclass(frozen=True, slots=True)
class Step:
    """Computes the gradients of a run. ``teacher_ND`` has a vector for each note of the training set."""

    network: Any
    recipe: Recipe
    ranks: Ranks
    teacher_ND: Tensor | None = None

    def backward(self, batch: Batch, log_scale: Tensor, teacher_weight: float) -> Losses:
        """Add the gradient of the batch's total loss, eq. (4), to the weights, and return the losses.

        With `Recipe.recompute` every chunk runs twice, first without activations: the memory is that of one chunk.
        """
        recipe, ranks = self.recipe, self.ranks
        chunks = [chunk.to(ranks.device) for chunk in batch.chunks]
        groups = [[chunk] for chunk in chunks] if recipe.recompute else [chunks]
        with torch.set_grad_enabled(not recipe.recompute):
            first = [self._forward(group) for group in groups]
        order = torch.tensor([row for chunk in chunks for row in chunk.rows]).argsort().to(ranks.device)
        joined_ND = ranks.gather(torch.cat([emb for emb, _ in first])[order]).requires_grad_()
        tau = log_scale.detach().clone().requires_grad_()
        contrastive, teacher = self._embedding_losses(joined_ND, tau, batch, teacher_weight)
        tokens = ranks.sum(torch.tensor(float(batch.num_output_tokens), device=ranks.device)).clamp(min=1)
        generation = ranks.sum(torch.stack([loss.detach() for _, loss in first]).sum()) / tokens
        total = total_loss(contrastive, generation, recipe.alpha) + teacher_weight * teacher
        losses = Losses(*(value.item() for value in (total, contrastive, generation, teacher, log_scale)))
        if torch.isfinite(total):
            d_joined_ND, d_tau = torch.autograd.grad(total, (joined_ND, tau), allow_unused=True, materialize_grads=True)
            share = len(order)
            # Ranks average their gradients; the gradient is their sum.
            d_local_ND = d_joined_ND[ranks.rank * share : (ranks.rank + 1) * share] * ranks.world
            per_token = recipe.alpha / (1 + recipe.alpha) * ranks.world / tokens
            # Every rank has all of tau's gradient, so the mean over ranks leaves it as it is.
            self._send_back(groups, first, d_local_ND[order.argsort()], per_token, log_scale * d_tau)
        return losses

    @torch.no_grad()
    def embed(self, examples: Examples, notes: Sequence[int]) -> Tensor:
        """Embeddings of these notes' prompts, in order, shape (N, D), not normalized, the same on every rank."""
        ranks, share = self.ranks, -(-len(notes) // self.ranks.world)
        # Every rank runs as many chunks as the others, or FSDP2 would wait for it.
        filled = [*notes, *notes[: share * ranks.world - len(notes)]][ranks.rank * share : (ranks.rank + 1) * share]
        size = self.recipe.chunk_notes
        chunks = [examples.prompts(filled[start : start + size]) for start in range(0, share, size)]
        self.network.eval()
        rows_ND = torch.cat([self._forward([chunk.to(ranks.device)])[0] for chunk in chunks])
        self.network.train()
        return ranks.gather(rows_ND)[: len(notes)]

    def _send_back(
        self, groups: list[list[Chunk]], first: list[Forward], d_rows_ND: Tensor, per_token: Tensor, of_tau: Tensor
    ) -> None:
        """Send the gradient of the rows, in the chunks' order, and of the output tokens through the network."""
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            with synchronized(self.network, last=last):
                emb_CD, generation = self._forward(group) if self.recipe.recompute else first[number]
                gradient_CD, d_rows_ND = d_rows_ND[: len(emb_CD)], d_rows_ND[len(emb_CD) :]
                surrogate = (emb_CD * gradient_CD).sum() + per_token * generation
                # With the last group, in which DDP waits for every weight.
                surrogate = surrogate + (of_tau if last else 0.0)
                surrogate.backward()  # type: ignore[no-untyped-call]

    def _forward(self, chunks: list[Chunk]) -> Forward:
        half = self.recipe.compute_dtype == "bfloat16"
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=half):
            emb_ND, generation = self.network(chunks)
        return emb_ND, generation

    def _embedding_losses(
        self, joined_ND: Tensor, tau: Tensor, batch: Batch, teacher_weight: float
    ) -> tuple[Tensor, Tensor]:
        contrastive = teacher = (joined_ND * 0.0).sum()
        if self.recipe.contrastive:
            contrastive = contrastive_loss(joined_ND, tau, batch.related.to(joined_ND.device))
        if self.teacher_ND is not None and teacher_weight > 0:
            teacher = teacher_loss(joined_ND, self.teacher_ND[list(batch.notes)].to(joined_ND.device))
        return contrastive, teacher

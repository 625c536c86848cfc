"""The losses of section 4. Shapes: N = 2B notes of a batch, D = embedding size, T = output tokens, V = vocabulary."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_SCALE = math.log(100.0)


def contrastive_loss(emb_ND: Tensor, log_scale: Tensor, related_NN: Tensor | None = None) -> Tensor:
    """In-batch contrastive loss over related pairs, eq. (2).

    Rows ``2i`` and ``2i + 1`` are a co-occurring pair (eq. 1); every other row is a negative. The similarity is
    ``cos(n_i, n_j) * exp(tau)``: ``log_scale`` is the paper's learnable ``tau``, so a larger value sharpens the
    softmax. Read literally as ``cos * tau`` with tau = 3, a perfect positive would get p = 0.14 of 127.

    Args:
        emb_ND: note embeddings, any float dtype, not necessarily unit norm.
        log_scale: scalar ``tau``, in nats; values above ln 100 count as ln 100.
        related_NN: True where two rows must not be each other's negative (the same note twice, or a known pair).

    Returns:
        Mean loss over the N rows, scalar float32, in nats.

    Raises:
        ValueError: if the number of rows is odd or below 4 (one pair has no negatives).
    """
    num_notes = emb_ND.shape[0]
    if num_notes < 4 or num_notes % 2:
        raise ValueError(f"need an even number of notes, at least 4; got {num_notes}")
    unit_ND = F.normalize(emb_ND.float(), dim=-1)
    partner_N = torch.arange(num_notes, device=emb_ND.device) ^ 1
    ignored_NN = torch.eye(num_notes, dtype=torch.bool, device=emb_ND.device)
    if related_NN is not None:
        ignored_NN = ignored_NN | related_NN
        ignored_NN[torch.arange(num_notes, device=emb_ND.device), partner_N] = False
    logits_NN = unit_ND @ unit_ND.T * log_scale.clamp(max=MAX_LOG_SCALE).exp()
    return F.cross_entropy(logits_NN.masked_fill(ignored_NN, float("-inf")), partner_N)


def teacher_loss(emb_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """One minus the mean cosine between each embedding and its teacher's vector of the same size; scalar, 0..2."""
    return 1.0 - F.cosine_similarity(emb_ND.float(), teacher_ND.float(), dim=-1).mean()


def generation_loss(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    """Negative log-likelihood of the output tokens, eq. (3), scalar float32 in nats.

    Their sum, because the mean is over the tokens of a whole batch, and logits come chunk by chunk.
    """
    return F.cross_entropy(logits_TV.float(), target_T, reduction="sum")


def total_loss(contrastive: Tensor, generation: Tensor, alpha: float) -> Tensor:
    """``(L_cl + alpha * L_gen) / (1 + alpha)``, eq. (4)."""
    return (contrastive + alpha * generation) / (1.0 + alpha)

"""Chunks: notes of like length as token ids, for one forward pass. Shapes: C notes, L tokens, T output tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Notes of like length, right-padded.

    ``rows`` are their places in the batch. ``predict_T`` indexes the flattened (C * L) states that predict
    ``target_T``.
    """

    rows: tuple[int, ...]
    ids_CL: Tensor
    before_emb_C: Tensor
    predict_T: Tensor
    target_T: Tensor

    @classmethod
    def of_prompts(cls, prompts: Sequence[Sequence[int]], pad: int) -> "Chunk":
        """Prompts that end in [EMB], in order, without outputs."""
        none = torch.zeros(0, dtype=torch.long)
        before_emb_C = torch.tensor([len(ids) - 2 for ids in prompts])
        return cls(tuple(range(len(prompts))), pad_right(prompts, pad), before_emb_C, none, none)

    def to(self, device: torch.device) -> "Chunk":
        """The same chunk on a device."""
        tensors = (self.ids_CL, self.before_emb_C, self.predict_T, self.target_T)
        return Chunk(self.rows, *(tensor.to(device, non_blocking=True) for tensor in tensors))


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Rows of token ids at one length, shape (C, L)."""
    length = max(map(len, rows))
    return torch.tensor([[*ids, *[pad] * (length - len(ids))] for ids in rows])

"""Notes as a network takes them: a few of like length, as token ids. Shapes: C notes, L tokens, T output tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Notes of like length, right-padded; they run through the network together.

    ``rows`` are their places in the batch. ``predict_T`` indexes the flattened (C * L) states that predict
    ``target_T``.
    """

    rows: tuple[int, ...]
    ids_CL: Tensor
    before_emb_C: Tensor
    predict_T: Tensor
    target_T: Tensor

    def to(self, device: torch.device) -> "Chunk":
        """The same chunk on a device."""
        tensors = (self.ids_CL, self.before_emb_C, self.predict_T, self.target_T)
        return Chunk(self.rows, *(tensor.to(device, non_blocking=True) for tensor in tensors))

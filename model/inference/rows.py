"""Sequences that the network continues side by side, in one key-value cache from which rows come and go.

Shapes: R rows, C columns of the cache, T tokens fed at once, H hidden. Padding stands on the left: all rows end in the
same column, so that one token more is one column more for all of them.
"""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer

# There before they are needed, since moving the whole cache costs as much as a step: columns for longer sequences that
# join and for tokens to come, and rows.
_SPARE_LEFT, _SPARE_RIGHT, _SPARE_ROWS = 16, 64, 8

Lengths = NDArray[np.int64]


class Network(Protocol):
    """What generating asks of a network; see `model.network.notellm.NoteLLM`, and `model.inference.openvino`."""

    @property
    def dim(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def positions(self) -> int: ...
    def extend(self, ids_NT: Tensor, mask_NC: Tensor, positions_NT: Tensor, cache: Cache | None) -> Tensor: ...
    def embedding(self, hidden_NH: Tensor) -> Tensor: ...
    def logits(self, hidden_TH: Tensor) -> Tensor: ...


class Rows:
    """Begun sequences of different length; `feed` appends to all of them.

    Memory is that of the rows at the longest one's length, and a little more; it is given back when no row is left.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._lengths_R: Lengths = np.zeros(0, np.int64)
        self._end = 0  # the column behind the last tokens
        self._layers: list[_Layer] = []

    def __len__(self) -> int:
        return len(self._lengths_R)

    def join(self, cache: DynamicCache, lengths_R: Lengths) -> None:
        """Copy begun sequences, which end in the last column of their cache, behind the other rows."""
        if not self._layers:
            self._layers = [_Layer(layer) for layer in cache.layers]
        longest, rows = int(lengths_R.max()), slice(len(self), len(self) + len(lengths_R))
        self._reserve(rows.stop, longest, 0)
        for layer, other in zip(self._layers, cache.layers, strict=True):
            for kept, joining in ((layer.keys, other.keys), (layer.values, other.values)):
                kept[rows, :, : self._end - longest] = 0  # whatever is there: a mask does not hide NaN
                kept[rows, :, self._end - longest : self._end] = joining[:, :, joining.shape[2] - longest :]
        self._lengths_R = np.concatenate([self._lengths_R, lengths_R])

    def keep(self, going_R: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Let rows go but for these. Returns the old place of each row that is left, in the new order.

        The last rows take the places that become free, so that most of the cache stays where it is.
        """
        left = int(going_R.sum())
        holes = np.flatnonzero(~going_R[:left])
        order_R = np.arange(left)
        order_R[holes] = left + np.flatnonzero(going_R[left:])
        self._lengths_R = self._lengths_R[order_R]
        if not left:
            self._layers, self._end = [], 0
        elif holes.size:
            to, of = (torch.from_numpy(rows).to(self._device) for rows in (holes, order_R[holes]))
            for layer in self._layers:
                layer.keys[to], layer.values[to] = layer.keys[of], layer.values[of]
        return order_R

    def feed(self, ids_RT: Tensor) -> Tensor:
        """Append T tokens to each row; the states of the last one, shape (R, H)."""
        tokens = ids_RT.shape[1]
        self._reserve(len(self), 0, tokens)
        longest = int(self._lengths_R.max())
        for layer in self._layers:
            layer.rows, layer.start, layer.stop = len(self), self._end - longest, self._end
        lengths_R1 = torch.from_numpy(self._lengths_R).to(self._device)[:, None]
        states_RTH = self._network.extend(
            ids_RT,
            padded_left(lengths_R1 + tokens, longest + tokens),
            lengths_R1 + torch.arange(tokens, device=self._device),
            Cache(layers=self._layers),
        )
        self._end += tokens
        self._lengths_R = self._lengths_R + tokens
        return states_RTH[:, -1]

    @property
    def _device(self) -> torch.device:
        return self._network.device

    def _reserve(self, rows: int, longest: int, more: int) -> None:
        """Room for so many rows, for a longest one that ends where all end, and for more columns behind that end."""
        kept_rows, kept_columns = self._layers[0].shape
        if rows <= kept_rows and longest <= self._end and self._end + more <= kept_columns:
            return
        used = int(self._lengths_R.max(initial=0))
        end = max(used, longest) + _SPARE_LEFT
        for layer in self._layers:
            layer.rows, layer.start, layer.stop = len(self), self._end - used, self._end
            layer.move(rows + _SPARE_ROWS, end + more + _SPARE_RIGHT, end)
        self._end = end


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer of the network, with more rows and columns than are in use.

    In use are ``rows``, and the columns from ``start`` to ``stop``.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, like: DynamicLayer) -> None:
        super().__init__()
        self.keys, self.values = like.keys[:0, :, :0], like.values[:0, :, :0]
        self.is_initialized = True
        self.rows = self.start = self.stop = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that there is room for."""
        return self.keys.shape[0], self.keys.shape[2]

    def move(self, rows: int, columns: int, stop: int) -> None:
        """Make room for so many rows and columns, and let what is in use end at another column."""
        start = stop - (self.stop - self.start)
        moved = []
        for old in (self.keys, self.values):
            new = old.new_zeros((rows, old.shape[1], columns, old.shape[3]))
            new[: self.rows, :, start:stop] = old[: self.rows, :, self.start : self.stop]
            moved.append(new)
        self.keys, self.values = moved

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep what was fed behind the others, in place, and return all of it."""
        end = self.stop + key_states.shape[2]
        self.keys[: self.rows, :, self.stop : end] = key_states
        self.values[: self.rows, :, self.stop : end] = value_states
        return self.keys[: self.rows, :, self.start : end], self.values[: self.rows, :, self.start : end]

    def get_seq_length(self) -> int:
        """Columns in use, the padding of shorter rows included."""
        return self.stop - self.start


def padded_left(lengths_N1: Tensor, columns: int) -> Tensor:
    """The attention mask of sequences that end in the last column, shape (N, columns)."""
    return (torch.arange(columns, device=lengths_N1.device) >= columns - lengths_N1).long()

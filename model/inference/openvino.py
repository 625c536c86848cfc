"""NoteLLM's network compiled by OpenVINO, for a CPU.

It is traced by torch and compiled at each start; nothing is kept on a disk. What goes in and comes out is float32,
whatever precision it computes in.

Shapes: N sequences, T tokens fed at once, C columns of the cache with these, H hidden, V vocabulary.
"""

import sys
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from model.network.checkpoint import CheckpointError
from model.network.notellm import NoteLLM, output_layer, quiet_transformers

# Where this package is there, which it asks for, OpenVINO tells its makers of every import and conversion.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402  # by now nobody is told

ARCHITECTURES = frozenset({"llama", "mistral", "opt", "qwen2", "qwen3"})
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class CompiledNetwork:
    """A `model.inference.rows.Network` that does what another one does, of which it keeps nothing but the head.

    ``threads``: of the CPU; 0 for as many as it has cores.

    Raises:
        CheckpointError: if OpenVINO was not tried with this architecture, or does not compute in this precision.
    """

    device = torch.device("cpu")

    def __init__(self, network: NoteLLM, dtype: str, threads: int = 0) -> None:
        config = network.backbone.config
        if config.model_type not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise CheckpointError(f"OpenVINO was not tried with a {config.model_type}, but with {known}; use hf")
        if dtype not in PRECISIONS:
            raise CheckpointError(f"OpenVINO computes in {' or '.join(PRECISIONS)} on a CPU, not in {dtype}")
        self.dim = network.dim
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.positions = network.positions
        self._head = network.head
        self._layers: int = config.num_hidden_layers
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._nothing = torch.zeros(1, heads, 0, size)  # keys or values of no token
        # Each a tensor of its own: the tracer knows its inputs apart by that.
        tokens, positions = (torch.zeros(2, 2, dtype=torch.long) for _ in range(2))
        before = [torch.zeros(2, heads, 3, size) for _ in range(2 * self._layers)]
        example = (tokens, torch.zeros(2, 1, 2, 5), positions, *before)
        self._extend = _Compiled(_Extension(network.backbone), example, dtype, threads)
        self._logits = _Compiled(output_layer(network.backbone), (torch.zeros(2, config.hidden_size),), dtype, threads)

    def extend(self, ids_NT: Tensor, mask_NC: Tensor, positions_NT: Tensor, cache: Cache | None) -> Tensor:
        """As `NoteLLM.extend`."""
        nothing = self._nothing.expand(len(ids_NT), -1, -1, -1)
        before: list[Tensor] = []
        for layer in range(self._layers):
            before += (nothing, nothing) if cache is None else cache.update(nothing, nothing, layer)
        states_NTH, *new = self._extend(ids_NT, _visible(mask_NC, ids_NT.shape[1]), positions_NT, *before)
        if cache is not None:
            for layer in range(self._layers):
                cache.update(*new[2 * layer : 2 * layer + 2], layer)
        return states_NTH

    def embedding(self, hidden_NH: Tensor) -> Tensor:
        """As `NoteLLM.embedding`."""
        projected: Tensor = self._head(hidden_NH)
        return projected

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """As `NoteLLM.logits`."""
        [logits_TV] = self._logits(hidden_TH)
        return logits_TV


def _visible(mask_NC: Tensor, tokens: int) -> Tensor:
    """What each of the last T columns sees, to be added to its scores: shape (N, 1, T, C), 0 or minus infinity.

    Padding sees everything, since a softmax over nothing would be NaN, which no later mask hides.
    """
    columns = mask_NC.shape[1]
    causal_TC = torch.ones(tokens, columns, dtype=torch.bool).tril(columns - tokens)
    seen_NTC = causal_TC & mask_NC[:, None].bool()
    seen_NTC |= ~mask_NC[:, columns - tokens :, None].bool()
    return torch.where(seen_NTC, 0.0, -torch.inf)[:, None]


class _Extension(nn.Module):
    """`NoteLLM.extend` as a function of tensors alone: keys and values of earlier columns go in, new ones come out."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self._base = backbone.base_model

    def forward(
        self, ids_NT: Tensor, visible_N1TC: Tensor, positions_NT: Tensor, *before: Tensor
    ) -> tuple[Tensor, ...]:
        cache = _Recorder(before)
        output = self._base(
            input_ids=ids_NT, attention_mask=visible_N1TC, position_ids=positions_NT, past_key_values=cache
        )
        return (output.last_hidden_state, *cache.new)


class _Recorder(DynamicCache):  # type: ignore[misc]
    """The cache of one call: keys and values of each layer ``before`` it, and the ``new`` ones."""

    def __init__(self, before: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._before = before
        self.new: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The whole keys and values of a layer."""
        self.new += [keys, values]
        old_keys, old_values = self._before[2 * layer : 2 * layer + 2]
        return torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        return self._before[0].shape[2]


class _Compiled:
    """A module as a compiled function of tensors, of any sizes; ``example`` tells their number and types."""

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...], dtype: str, threads: int) -> None:
        with torch.inference_mode(), warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")  # of the tracer, of what transformers checks in Python
            traced = ov.convert_model(module, example_input=example)
        settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self._request = ov.Core().compile_model(traced, "CPU", settings).create_infer_request()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Its results, in memory of their own."""
        arrays: list[NDArray[Any]] = [one.numpy() for one in inputs]
        found = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(np.array(one)) for one in found.values()]

"""The grammars inside vLLM's sampler: a logits processor, which vLLM makes by its name in each of its processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from model.network.checkpoint import load_manifest, prompt_builder
from model.text.grammar import Grammar, Grammars, follow

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# In `SamplingParams.extra_args`: the grammar, and for hashtags how many.
GRAMMAR, COUNT = "notellm_grammar", "notellm_count"


class _Output:
    """One output being written: vLLM appends to ``written`` as it goes."""

    def __init__(self, grammar: Grammar, written: Sequence[int]) -> None:
        self.grammar = grammar
        self._written = written
        self._state = grammar.start
        self._followed = 0

    def state(self) -> Any:
        """After all that is written."""
        self._state = follow(self.grammar, self._state, self._written[self._followed :])
        self._followed = len(self._written)
        return self._state


class GrammarProcessor(LogitsProcessor):
    """Turns logits into log-probabilities among the allowed tokens, in the rows of requests that name a grammar.

    The other rows keep their logits, for the embedding. Reserved tokens are never allowed.
    """

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        folder = Path(vllm_config.model_config.model)
        manifest = load_manifest(folder)
        self._grammars = Grammars(prompt_builder(folder, manifest), manifest.categories)
        self._outputs: dict[int, _Output] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it changes the likeliest token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests that come, go and move between the rows."""
        process_dict_updates(self._outputs, batch_update, self._output)

    def apply(self, logits: Tensor) -> Tensor:
        """See the class."""
        rows_of: dict[Grammar, list[int]] = {}
        for row, output in self._outputs.items():
            rows_of.setdefault(output.grammar, []).append(row)
        for grammar, rows in rows_of.items():
            logits[rows] = self._next(grammar, logits[rows], [self._outputs[row].state() for row in rows])
        return logits

    def _output(self, params: SamplingParams, _prompt: list[int] | None, written: list[int]) -> _Output | None:
        asked = params.extra_args or {}
        match asked.get(GRAMMAR):
            case "category":
                return _Output(self._grammars.category, written)
            case "topics":
                return _Output(self._grammars.tags(asked[COUNT]), written)
            case "free":
                return _Output(self._grammars.free, written)
        return None

    @staticmethod
    def _next(grammar: Grammar, logits_NV: Tensor, states: Sequence[Any]) -> Tensor:
        allowed_NV = torch.full_like(logits_NV, float("-inf"))
        going = [row for row, state in enumerate(states) if grammar.goes_on(state)]
        # vLLM asks for one token more than a complete output has: the end token stops it.
        allowed_NV[:, grammar.end] = 0.0
        if going:
            scores = grammar.log_probabilities(logits_NV[going], [states[row] for row in going])
            allowed_NV[going, : scores.shape[1]] = scores.to(logits_NV.dtype)
        return allowed_NV

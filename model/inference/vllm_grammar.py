"""The grammars inside vLLM's sampler: a logits processor, which vLLM makes by its name in each of its processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from model.network.checkpoint import load_manifest, prompt_builder
from model.text.grammar import Grammar, Grammars
from model.text.outputs import Outputs

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# In `SamplingParams.extra_args`: the grammar, and for hashtags how many.
GRAMMAR, COUNT = "notellm_grammar", "notellm_count"


class GrammarProcessor(LogitsProcessor):
    """Turns logits into log-probabilities among the allowed tokens, in the rows of requests that name a grammar.

    The other rows keep their logits, for the embedding. Reserved tokens are never allowed.
    """

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        folder = Path(vllm_config.model_config.model)
        manifest = load_manifest(folder)
        self._begin(Grammars(prompt_builder(folder, manifest), manifest.categories))

    def _begin(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._outputs = Outputs()
        self._written: list[Sequence[int]] = []  # of each output: vLLM appends to it
        self._followed = np.zeros(0, np.int64)
        self._place_of_row: dict[int, int] = {}
        self._rows = torch.zeros(0, dtype=torch.long)

    def is_argmax_invariant(self) -> bool:
        """No: it changes the likeliest token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests that come, go and move between the rows."""
        process_dict_updates(self._place_of_row, batch_update, self._join)
        if batch_update is None:
            return
        places = np.array(list(self._place_of_row.values()), np.int64)
        self._outputs.keep(places)
        self._followed = self._followed[places]
        self._written = [self._written[place] for place in places]
        self._rows = torch.tensor(list(self._place_of_row), dtype=torch.long)
        self._place_of_row = {row: place for place, row in enumerate(self._place_of_row)}

    def apply(self, logits: Tensor) -> Tensor:
        """See the class."""
        if len(self._outputs):
            self._follow()
            rows = self._rows.to(logits.device)
            scores = self._outputs.log_probabilities(logits[rows])
            logits[rows] = float("-inf")
            logits[rows, : scores.shape[1]] = scores.to(logits.dtype)
        return logits

    def _join(self, params: SamplingParams, _prompt: list[int] | None, written: list[int]) -> int | None:
        """The place of a request among the outputs; None if it names no grammar."""
        grammar = self._grammar(params.extra_args or {})
        if grammar is None:
            return None
        self._outputs.join(grammar)
        self._written.append(written)
        self._followed = np.append(self._followed, 0)
        return len(self._written) - 1

    def _grammar(self, asked: dict[str, object]) -> Grammar | None:
        match asked.get(GRAMMAR):
            case "category":
                return self._grammars.category
            case "topics":
                return self._grammars.tags(int(str(asked[COUNT])))
            case "free":
                return self._grammars.free
        return None

    def _follow(self) -> None:
        """Up to all that is written: one token of each, and more of a request that vLLM had put aside."""
        lengths = np.array([len(written) for written in self._written])
        while (behind := self._followed < lengths).any():
            pairs = zip(self._written, self._followed.tolist(), behind.tolist(), strict=True)
            tokens = [written[place] if is_behind else 0 for written, place, is_behind in pairs]
            self._outputs.advance(np.array(tokens), behind)
            self._followed = self._followed + behind

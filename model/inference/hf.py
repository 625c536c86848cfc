"""The backend on plain transformers: one prefill, whose key-value cache serves category and hashtags.

Shapes: N prompts, L tokens, H hidden, V vocabulary, D embedding. Padding stands on the left, so that the last column
is the last token of every prompt and decoding appends to all of them at once.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from model.backend import Prediction, Prompt, Timings
from model.batching import batches
from model.network.checkpoint import load
from model.network.notellm import NoteLLM
from model.note import Note
from model.text.grammar import Grammar, Grammars
from model.text.prompt import PromptBuilder, Task

EMBED_BATCH_TOKENS = 8192

Written = tuple[list[int], list[float]]  # tokens, and the log-probability of each


class HfBackend:
    """`Backend` on transformers. Deterministic: greedy decoding, and the same prediction alone and in a batch."""

    def __init__(self, network: NoteLLM, builder: PromptBuilder, categories: tuple[str, ...], fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.dim = network.dim
        self.dtype = str(network.backbone.dtype).removeprefix("torch.")
        self.builder = builder
        self.timings: Timings | None = None
        self._network = network
        self._grammars = Grammars(builder, categories)

    @classmethod
    def open(cls, folder: Path, dtype: str = "float32") -> Self:
        """Open a checkpoint, on the GPU if there is one. Raises CheckpointError when it cannot be used."""
        network, builder, manifest = load(folder, dtype)
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network, builder, manifest.categories, manifest.fingerprint)

    def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
        """One prompt a note, in order."""
        ids = self.builder.prompts(notes, "category")
        return [Prompt(note, tuple(token_ids)) for note, token_ids in zip(notes, ids, strict=True)]

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Unit vectors, shape (N, D), in order; batched inside."""
        vectors_ND = np.zeros((len(prompts), self.dim), dtype=np.float32)
        for positions in batches([len(prompt.token_ids) for prompt in prompts], EMBED_BATCH_TOKENS):
            prefix = self._prefill([prompts[position].token_ids for position in positions], cached=False)
            vectors_ND[positions] = prefix.vectors_ND.cpu().numpy()
        return vectors_ND

    @torch.inference_mode()
    def predict(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Prediction]:
        """Vector, category and hashtags of one batch, in order."""
        if not prompts:
            return []
        started = time.perf_counter()
        prefix = self._prefill([prompt.token_ids for prompt in prompts])
        vectors_ND = prefix.vectors_ND.cpu().numpy()  # waits for a GPU
        prefilled = time.perf_counter()
        category, tags = self._grammars.category, self._grammars.tags(max_hashtags)
        categories = [category.parse(*written) for written in self._write(prefix, "category", category, last=False)]
        if not self.builder.template.shares_prefix:
            notes = [prompt.note for prompt in prompts]
            prefix_of_topics = self._prefill(self.builder.prompts(notes, "topics", max_hashtags))
        else:
            prefix_of_topics = prefix
        hashtags = [tags.parse(*written) for written in self._write(prefix_of_topics, "topics", tags, max_hashtags)]
        self.timings = Timings(prefilled - started, time.perf_counter() - prefilled)
        return [
            Prediction(vector, tuple(tags), category)
            for vector, tags, category in zip(vectors_ND, hashtags, categories, strict=True)
        ]

    @torch.inference_mode()
    def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """Freely written categories, which nothing holds to the closed set (section 5.5), in order.

        Greedy, up to the end token or a length that no name reaches; batched inside. For evaluations.
        """
        written = [""] * len(prompts)
        for positions in batches([len(prompt.token_ids) for prompt in prompts], EMBED_BATCH_TOKENS):
            prefix = self._prefill([prompts[position].token_ids for position in positions])
            for position, output in zip(positions, self._write(prefix, "category", self._grammars.free), strict=True):
                written[position] = self._grammars.free.parse(*output)
        return written

    def _prefill(self, prompts: Sequence[Sequence[int]], cached: bool = True) -> "_Prefix":
        length = max(len(ids) for ids in prompts)
        pad = self.builder.special.pad
        ids_NL = torch.tensor([[pad] * (length - len(ids)) + list(ids) for ids in prompts], device=self._device)
        mask_NL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts], device=self._device)
        # Column -1 is [EMB]: the state before it is the note's (section 4.3).
        if not bool((ids_NL[:, -1] == self.builder.special.emb).all()):
            raise ValueError("a prompt does not end in [EMB]")
        cache = DynamicCache(config=self._network.backbone.config) if cached else None
        output = self._network.backbone.base_model(
            input_ids=ids_NL,
            attention_mask=mask_NL,
            position_ids=(mask_NL.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=cached,
        )
        vectors_ND = F.normalize(self._network.embedding(output.last_hidden_state[:, -2]), dim=-1)
        return _Prefix(vectors_ND, mask_NL, cache)

    def _write(
        self, prefix: "_Prefix", task: Task, grammar: Grammar, count: int = 1, *, last: bool = True
    ) -> list[Written]:
        """Greedy decoding of one task after every prompt of a prefix; the ``last`` task may shrink its cache.

        As on vLLM, an output ends where the network has no more positions.
        """
        guidance = self.builder.guidance(task, count)
        room_N = self._positions - len(guidance) - prefix.mask_NL.sum(dim=1)
        outputs = [_Output(grammar, min(room, grammar.max_tokens)) for room in room_N.tolist()]
        if not any(output.goes_on for output in outputs):
            return [output.written for output in outputs]
        decoder = _Decoder(self._network, prefix)
        logits_NV = decoder.feed_all(guidance)
        batch = outputs  # those that are still computed
        while True:
            self._extend(batch, grammar, logits_NV)
            going = [output.goes_on for output in batch]
            if not any(going):
                return [output.written for output in outputs]
            next_N = torch.tensor([output.tokens[-1] for output in batch], device=self._device)
            if last:
                # Finished prompts leave the batch: most of the work comes after the first few hashtags.
                batch = [output for output in batch if output.goes_on]
                keep_N = torch.tensor(going, device=self._device)
                logits_NV = decoder.feed(next_N[keep_N][:, None], keep_N=keep_N)
            else:
                logits_NV = decoder.feed(next_N[:, None])

    @staticmethod
    def _extend(batch: Sequence["_Output"], grammar: Grammar, logits_NV: Tensor) -> None:
        """Append the likeliest next token to every output that goes on."""
        rows = [row for row, output in enumerate(batch) if output.goes_on]
        best = grammar.log_probabilities(logits_NV[rows], [batch[row].state for row in rows]).max(dim=-1)
        for row, token, score in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
            batch[row].append(token, score)

    @property
    def _positions(self) -> int:
        positions: int = self._network.backbone.config.max_position_embeddings
        return positions

    @property
    def _device(self) -> torch.device:
        return self._network.log_scale.device


class _Output:
    """One output being written, of at most ``room`` tokens."""

    def __init__(self, grammar: Grammar, room: int) -> None:
        self.state = grammar.start
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []
        self._grammar = grammar
        self._room = room

    @property
    def goes_on(self) -> bool:
        return len(self.tokens) < self._room and self._grammar.goes_on(self.state)

    @property
    def written(self) -> Written:
        return self.tokens, self.log_probabilities

    def append(self, token: int, log_probability: float) -> None:
        self.state = self._grammar.advance(self.state, token)
        self.tokens.append(token)
        self.log_probabilities.append(log_probability)


class _Prefix:
    """A prefilled batch: its vectors, its padding mask, and its cache, which every task continues from."""

    def __init__(self, vectors_ND: Tensor, mask_NL: Tensor, cache: DynamicCache | None) -> None:
        self.vectors_ND = vectors_ND
        self.mask_NL = mask_NL
        self.cache = cache


class _Decoder:
    """Appends tokens to a prefix. The prefix's cache is cropped back first, for one task after another."""

    def __init__(self, network: NoteLLM, prefix: _Prefix) -> None:
        assert prefix.cache is not None
        self._network = network
        self._cache = prefix.cache
        self._mask_NL = prefix.mask_NL
        appended = self._cache.get_seq_length() - prefix.mask_NL.shape[1]
        if appended:
            self._cache.crop(-appended)

    def feed_all(self, tokens: Sequence[int]) -> Tensor:
        """Append the same tokens to every prompt; logits after the last one, shape (N, V)."""
        ids_NT = torch.tensor([list(tokens)], device=self._mask_NL.device).expand(len(self._mask_NL), -1)
        return self.feed(ids_NT)

    def feed(self, ids_NT: Tensor, keep_N: Tensor | None = None) -> Tensor:
        """Append T tokens to each prompt, or to those of ``keep_N`` alone; logits after the last, shape (N, V)."""
        if keep_N is not None and not bool(keep_N.all()):
            self._cache.batch_select_indices(keep_N.nonzero()[:, 0])
            self._mask_NL = self._mask_NL[keep_N]
        before = self._mask_NL.sum(dim=1, keepdim=True)
        self._mask_NL = F.pad(self._mask_NL, (0, ids_NT.shape[1]), value=1)
        output = self._network.backbone.base_model(
            input_ids=ids_NT,
            attention_mask=self._mask_NL,
            position_ids=before + torch.arange(ids_NT.shape[1], device=ids_NT.device),
            past_key_values=self._cache,
            use_cache=True,
        )
        return self._network.logits(output.last_hidden_state[:, -1])

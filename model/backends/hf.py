"""The backend on plain transformers: one prefill, whose key-value cache serves category and hashtags.

Shapes: N prompts, L tokens, H hidden, V vocabulary, D embedding. Padding stands on the left, so that the last column
is the last token of every prompt and decoding appends to all of them at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from model.backends.base import Prompt, Reading, Scored
from model.batching import batches
from model.checkpoint import load
from model.network import NoteLLM
from model.note import Note
from model.prompt import PromptBuilder
from model.tagger import TOKENS_PER_HASHTAG, CategoryPath, TagGrammar, category_trie, parse_tags

EMBED_BATCH_TOKENS = 8192
# What is written freely for a category and has not ended by then, or by the length of the longest name, is none.
CATEGORY_TOKENS = 32


class HfBackend:
    """`Backend` on transformers. Deterministic: greedy decoding, and a note reads the same alone and in a batch."""

    def __init__(self, network: NoteLLM, builder: PromptBuilder, categories: tuple[str, ...], fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.dim = network.dim
        self.builder = builder
        self._network = network
        self._trie = category_trie(builder, categories)
        self._grammar = TagGrammar(builder)
        self._category_tokens = max([CATEGORY_TOKENS, *(len(builder.output(name)) for name in categories)])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a checkpoint. Raises CheckpointError when it cannot be used."""
        network, builder, manifest = load(folder)
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
            vectors_ND[positions] = prefix.vectors_ND.numpy()
        return vectors_ND

    @torch.inference_mode()
    def read(self, prompts: Sequence[Prompt], max_hashtags: int) -> list[Reading]:
        """Vector, category and hashtags of one batch, in order."""
        if not prompts:
            return []
        prefix = self._prefill([prompt.token_ids for prompt in prompts])
        categories = self._categories(prefix)
        if not self.builder.template.shares_prefix:
            notes = [prompt.note for prompt in prompts]
            topics_prefix = self._prefill(self.builder.prompts(notes, "topics", max_hashtags))
        else:
            topics_prefix = prefix
        hashtags = self._hashtags(topics_prefix, max_hashtags)
        return [
            Reading(vector, tuple(tags[:max_hashtags]), category)
            for vector, tags, category in zip(prefix.vectors_ND.numpy(), hashtags, categories, strict=True)
        ]

    @torch.inference_mode()
    def write_categories(self, prompts: Sequence[Prompt]) -> list[str]:
        """What the network writes for the category when nothing holds it to the closed set (section 5.5), in order.

        Greedy, up to the end token or a length that no name reaches; batched inside. Only evaluations ask for this.
        """
        written = [""] * len(prompts)
        for positions in batches([len(prompt.token_ids) for prompt in prompts], EMBED_BATCH_TOKENS):
            prefix = self._prefill([prompts[position].token_ids for position in positions])
            for position, tokens in zip(positions, self._freely(prefix), strict=True):
                written[position] = self.builder.decode(tokens).strip()
        return written

    def _prefill(self, prompts: Sequence[Sequence[int]], cached: bool = True) -> "_Prefix":
        length = max(len(ids) for ids in prompts)
        pad = self.builder.special.pad
        ids_NL = torch.tensor([[pad] * (length - len(ids)) + list(ids) for ids in prompts])
        mask_NL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
        # Column -1 is [EMB]: the state before it is the note's (section 4.3).
        found = ids_NL[:, -1] == self.builder.special.emb
        if not bool(found.all()):
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

    def _categories(self, prefix: "_Prefix") -> list[Scored | None]:
        paths = [CategoryPath(self._trie) for _ in range(len(prefix.mask_NL))]
        if not self._trie.names:
            return [None] * len(paths)
        decoder = _Decoder(self._network, prefix)
        logits_NV = decoder.feed_all(self.builder.guidance("category"))
        while not all(path.done for path in paths):
            pad = self.builder.special.pad
            tokens = [pad if path.done else path.step(row) for path, row in zip(paths, logits_NV, strict=True)]
            if not all(path.done for path in paths):
                logits_NV = decoder.feed(torch.tensor(tokens)[:, None])
        return [path.result() for path in paths]

    def _freely(self, prefix: "_Prefix") -> list[list[int]]:
        decoder = _Decoder(self._network, prefix)
        logits_NV = decoder.feed_all(self.builder.guidance("category"))
        tokens: list[list[int]] = [[] for _ in range(len(prefix.mask_NL))]
        open_N = torch.arange(len(tokens))  # which prompts still write
        for _ in range(self._category_tokens):
            best_N = logits_NV.argmax(dim=-1)
            going = best_N != self.builder.special.eos
            open_N, best_N = open_N[going], best_N[going]
            for row, token in zip(open_N.tolist(), best_N.tolist(), strict=True):
                tokens[row].append(token)
            if len(open_N) == 0:
                break
            logits_NV = decoder.feed(best_N[:, None], keep_N=going)
        return tokens

    def _hashtags(self, prefix: "_Prefix", count: int) -> list[list[Scored]]:
        decoder = _Decoder(self._network, prefix)
        logits_NV = decoder.feed_all(self.builder.guidance("topics", count))
        tokens: list[list[int]] = [[] for _ in range(len(prefix.mask_NL))]
        scores: list[list[float]] = [[] for _ in range(len(prefix.mask_NL))]
        open_N = torch.arange(len(tokens))  # which prompts still write
        for _ in range(count * (TOKENS_PER_HASHTAG + 1)):
            allowed_NV = self._grammar.mask(logits_NV, [tokens[row] for row in open_N.tolist()])
            best = torch.log_softmax(allowed_NV, dim=-1).max(dim=-1)
            for row, token, score in zip(open_N.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
                tokens[row].append(token)
                scores[row].append(score)
            going = torch.tensor([self._goes_on(tokens[row], count) for row in open_N.tolist()])
            open_N = open_N[going]
            if len(open_N) == 0:
                break
            # Finished prompts leave the batch: most of the work is behind the first few hashtags.
            logits_NV = decoder.feed(best.indices[going][:, None], keep_N=going)
        return [
            parse_tags(self.builder, written, log_probabilities)
            for written, log_probabilities in zip(tokens, scores, strict=True)
        ]

    def _goes_on(self, written: Sequence[int], count: int) -> bool:
        return written[-1] != self._grammar.end and written.count(self._grammar.comma) < count


class _Prefix:
    """A prefilled batch: its vectors, its padding mask, and its cache, which every task continues from."""

    def __init__(self, vectors_ND: Tensor, mask_NL: Tensor, cache: DynamicCache | None) -> None:
        self.vectors_ND = vectors_ND
        self.mask_NL = mask_NL
        self.cache = cache


class _Decoder:
    """Appends tokens to a prefix. The prefix's cache is cropped back first, so tasks can follow each other."""

    def __init__(self, network: NoteLLM, prefix: _Prefix) -> None:
        assert prefix.cache is not None
        self._network = network
        self._cache = prefix.cache
        self._mask_NL = prefix.mask_NL
        behind = self._cache.get_seq_length() - prefix.mask_NL.shape[1]
        if behind:
            self._cache.crop(-behind)

    def feed_all(self, tokens: Sequence[int]) -> Tensor:
        """Append the same tokens to every prompt; logits behind the last one, shape (N, V)."""
        return self.feed(torch.tensor([list(tokens)]).expand(len(self._mask_NL), -1))

    def feed(self, ids_NT: Tensor, keep_N: Tensor | None = None) -> Tensor:
        """Append T tokens to each prompt, of those in ``keep_N`` only; logits behind the last, shape (N, V)."""
        if keep_N is not None and not bool(keep_N.all()):
            self._cache.batch_select_indices(keep_N.nonzero()[:, 0])
            self._mask_NL = self._mask_NL[keep_N]
        before = self._mask_NL.sum(dim=1, keepdim=True)
        self._mask_NL = F.pad(self._mask_NL, (0, ids_NT.shape[1]), value=1)
        output = self._network.backbone.base_model(
            input_ids=ids_NT,
            attention_mask=self._mask_NL,
            position_ids=before + torch.arange(ids_NT.shape[1]),
            past_key_values=self._cache,
            use_cache=True,
        )
        return self._network.logits(output.last_hidden_state[:, -1])

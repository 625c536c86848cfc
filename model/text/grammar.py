"""The outputs that the network may write: a category of the closed set, and hashtags that are short and hold no markup.

A `Grammar` says which token may come next and when the output is complete; it is the same for every backend. Shapes: N
outputs being written, V tokens of the tokenizer (a network may have more logits: padding, which is never written).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

from model.backend import Scored
from model.text.hashtags import clean_tag, is_mark, is_tag_piece
from model.text.prompt import PromptBuilder

TOKENS_PER_HASHTAG = 8
# A freely written category is cut here, unless a name of the closed set is longer.
FREE_TOKENS = 32
_NEVER = float("-inf")


class Grammar(Protocol):
    """The outputs that are allowed, which end in the token ``end`` if they are not complete before."""

    end: int

    @property
    def max_tokens(self) -> int:
        """Length of the longest output, its end token included."""
        ...

    def log_probabilities(self, logits_NV: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """Of the next token after the ``written`` ones of each row, among the allowed tokens; -inf for others."""
        ...

    def goes_on(self, written: Sequence[int]) -> bool:
        """Whether there is anything to write after these tokens."""
        ...


@dataclass(slots=True)
class TrieNode:
    """A place in the token trie of the closed set; ``names`` are the categories that can still be reached."""

    names: list[str] = field(default_factory=list)
    children: dict[int, "TrieNode"] = field(default_factory=dict)


class CategoryGrammar:
    """The closed set as a token trie: its paths are the only outputs, so that Ill. = 0.

    An output is complete as soon as one category is left, whose other tokens then have probability 1.
    """

    def __init__(self, builder: PromptBuilder, categories: Sequence[str]) -> None:
        self.end = builder.special.eos
        self._tokens = len(builder.token_texts)
        self._root = TrieNode(names=list(categories))
        outputs = [builder.output(name) for name in categories]
        self._longest = max(map(len, outputs), default=0)
        for name, tokens in zip(categories, outputs, strict=True):
            node = self._root
            for token in tokens:
                node = node.children.setdefault(token, TrieNode())
                node.names.append(name)

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        return self._longest

    def log_probabilities(self, logits_NV: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """See `Grammar`."""
        masked_NV = logits_NV.new_full((len(written), self._tokens), _NEVER, dtype=torch.float32)
        for row, tokens in enumerate(written):
            allowed = list(self._node(tokens).children)
            masked_NV[row, allowed] = logits_NV[row, allowed].float()
        return torch.log_softmax(masked_NV, dim=-1)

    def goes_on(self, written: Sequence[int]) -> bool:
        """See `Grammar`."""
        node = self._node(written)
        return len(node.names) > 1 and bool(node.children)

    def parse(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> Scored | None:
        """The category that was written, with its probability within the closed set; None when the set is empty."""
        if not self._root.names:
            return None
        places = [place for place in range(len(tokens)) if self.goes_on(tokens[:place])]
        name = self._node(tokens[: len(places)]).names[0]
        return Scored(name, math.exp(sum(log_probabilities[place] for place in places)))

    def _node(self, tokens: Sequence[int]) -> TrieNode:
        node = self._root
        for token in tokens:
            node = node.children[token]
        return node


class TagGrammar:
    """Lists of at most ``count`` hashtags: ``citywalk, coffee``.

    A hashtag has 1 to 8 tokens of letters, digits and underscores and never one token twice in a row, as small models
    like to write; only the whole list may be empty. A token that begins with a mark, as the vowels of Hindi and Thai
    are, follows one that ends in a letter or mark.
    """

    def __init__(self, builder: PromptBuilder, count: int) -> None:
        self.comma, self.end = builder.output(",")
        self._builder = builder
        self._count = count
        pieces = builder.token_texts
        self._allowed_V = torch.tensor([is_tag_piece(text) for text in pieces])
        self._marks_V = torch.tensor([is_mark(text[:1] or " ") for text in pieces])
        self._takes_marks = [text[-1:].isalpha() or is_mark(text[-1:] or " ") for text in pieces]
        self._closing_V = torch.zeros_like(self._allowed_V)
        self._closing_V[[self.comma, self.end]] = True
        self._allowed_V |= self._closing_V

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        return self._count * (TOKENS_PER_HASHTAG + 1)

    def of(self, count: int) -> Self:
        """The grammar for another number of hashtags, with the masks of this one."""
        other = copy.copy(self)
        other._count = count
        return other

    def log_probabilities(self, logits_NV: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """See `Grammar`."""
        device = logits_NV.device
        allowed_V, closing_V, marks_V = (of_V.to(device) for of_V in (self._allowed_V, self._closing_V, self._marks_V))
        masked_NV = logits_NV[:, : len(allowed_V)].float().masked_fill(~allowed_V, _NEVER)
        for row, tokens in enumerate(written):
            length = next((n for n, token in enumerate(reversed(tokens)) if token == self.comma), len(tokens))
            if length >= TOKENS_PER_HASHTAG:
                masked_NV[row, ~closing_V] = _NEVER
            elif length > 0:
                masked_NV[row, tokens[-1]] = _NEVER
            else:
                masked_NV[row, self.comma] = _NEVER
                if tokens:
                    masked_NV[row, self.end] = _NEVER
            if length == 0 or not self._takes_marks[tokens[-1]]:
                masked_NV[row, marks_V] = _NEVER
        return torch.log_softmax(masked_NV, dim=-1)

    def goes_on(self, written: Sequence[int]) -> bool:
        """See `Grammar`."""
        return not written or (written[-1] != self.end and written.count(self.comma) < self._count)

    def parse(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> list[Scored]:
        """The hashtags that were written, most likely first; the score is exp(mean token log-probability).

        The comma and the end token close a hashtag and count toward none; a hashtag that is not closed is dropped.
        """
        best: dict[str, float] = {}
        start = 0
        for position, token in enumerate(tokens):
            if token not in (self.comma, self.end):
                continue
            tag = clean_tag(self._builder.decode(tokens[start:position]))
            if tag is not None:
                score = math.exp(sum(log_probabilities[start:position]) / (position - start))
                best[tag] = max(score, best.get(tag, 0.0))
            start = position + 1
            if token == self.end:
                break
        ordered = sorted((Scored(tag, score) for tag, score in best.items()), key=lambda scored: -scored.score)
        return ordered[: self._count]


class FreeGrammar:
    """Any tokens up to the end token: categories that nothing holds to the closed set (section 5.5)."""

    def __init__(self, builder: PromptBuilder, categories: Sequence[str]) -> None:
        self.end = builder.special.eos
        self._longest = max([FREE_TOKENS, *(len(builder.output(name)) for name in categories)])
        self._builder = builder
        self._tokens = len(builder.token_texts)

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        return self._longest

    def log_probabilities(self, logits_NV: Tensor, written: Sequence[Sequence[int]]) -> Tensor:  # noqa: ARG002
        """See `Grammar`."""
        return torch.log_softmax(logits_NV[:, : self._tokens].float(), dim=-1)

    def goes_on(self, written: Sequence[int]) -> bool:
        """See `Grammar`."""
        return not written or written[-1] != self.end

    def parse(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> str:  # noqa: ARG002
        """The text that was written."""
        return self._builder.decode([token for token in tokens if token != self.end]).strip()


class Grammars:
    """The grammars of one checkpoint."""

    def __init__(self, builder: PromptBuilder, categories: Sequence[str]) -> None:
        self.category = CategoryGrammar(builder, categories)
        self.free = FreeGrammar(builder, categories)
        self._tags = {1: TagGrammar(builder, 1)}

    def tags(self, count: int) -> TagGrammar:
        """The grammar of lists of at most ``count`` hashtags."""
        if count not in self._tags:
            self._tags[count] = self._tags[1].of(count)
        return self._tags[count]

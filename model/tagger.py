"""What the network may write: a category of the closed set, and hashtags that cannot run on or hold markup."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.backends.base import Scored
from model.prompt import PromptBuilder
from model.tags import clean_tag

TOKENS_PER_HASHTAG = 8
_TAG_PIECE = re.compile(r" ?[\w]+", re.UNICODE)


@dataclass(slots=True)
class TrieNode:
    """A place in the token trie of the closed set; ``names`` are the categories that can still be reached."""

    names: list[str] = field(default_factory=list)
    children: dict[int, "TrieNode"] = field(default_factory=dict)


def category_trie(builder: PromptBuilder, categories: Sequence[str]) -> TrieNode:
    """The token trie of the closed set: the only paths the category may take, so that Ill. = 0."""
    root = TrieNode(names=list(categories))
    for name in categories:
        node = root
        for token in builder.output(name):
            node = node.children.setdefault(token, TrieNode())
            node.names.append(name)
    return root


@dataclass(slots=True)
class CategoryPath:
    """Greedy walk of one note through the trie. ``score`` is the product of probabilities renormalised at each node."""

    node: TrieNode
    score: float = 1.0

    @property
    def done(self) -> bool:
        """One category is left: the rest of its tokens has probability 1 within the closed set."""
        return len(self.node.names) == 1

    def step(self, logits_V: Tensor) -> int:
        """Take the likeliest allowed token and return it."""
        tokens = list(self.node.children)
        probabilities = torch.softmax(logits_V[tokens].float(), dim=0)
        best = int(probabilities.argmax())
        self.score *= float(probabilities[best])
        self.node = self.node.children[tokens[best]]
        return tokens[best]

    def result(self) -> Scored:
        """The category that was reached."""
        return Scored(self.node.names[0], self.score)


class TagGrammar:
    """The lists of hashtags that may be written: ``citywalk, coffee`` and nothing that runs on.

    A hashtag has 1 to 8 tokens of letters, digits and underscores and never one token twice in a row, which is how
    small models lose themselves; only the whole list may be empty.
    """

    def __init__(self, builder: PromptBuilder) -> None:
        self.comma, self.end = builder.output(",")
        self._allowed_V = torch.tensor([_TAG_PIECE.fullmatch(text) is not None for text in builder.token_texts])
        self._closing_V = torch.zeros_like(self._allowed_V)
        self._closing_V[[self.comma, self.end]] = True
        self._allowed_V |= self._closing_V

    def mask(self, logits_NV: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """Logits with -inf for what may not follow the tokens ``written`` in each row."""
        masked_NV = logits_NV.float().masked_fill(~self._allowed_V, float("-inf"))
        for row, tokens in enumerate(written):
            length = next((n for n, token in enumerate(reversed(tokens)) if token == self.comma), len(tokens))
            if length >= TOKENS_PER_HASHTAG:
                masked_NV[row, ~self._closing_V] = float("-inf")
            elif length > 0:
                masked_NV[row, tokens[-1]] = float("-inf")
            else:
                masked_NV[row, self.comma] = float("-inf")
                if tokens:
                    masked_NV[row, self.end] = float("-inf")
        return masked_NV


def parse_tags(builder: PromptBuilder, tokens: Sequence[int], log_probabilities: Sequence[float]) -> list[Scored]:
    """Hashtags written as ``citywalk, coffee``, most likely first; the score is exp(mean token log-probability).

    The comma and the end token close a hashtag and count towards none; one that is not closed is dropped.
    """
    comma, end = builder.output(",")
    best: dict[str, float] = {}
    start = 0
    for position, token in enumerate(tokens):
        if token not in (comma, end):
            continue
        tag = clean_tag(builder.decode(tokens[start:position]))
        if tag is not None:
            score = math.exp(sum(log_probabilities[start:position]) / (position - start))
            best[tag] = max(score, best.get(tag, 0.0))
        start = position + 1
        if token == end:
            break
    return sorted((Scored(tag, score) for tag, score in best.items()), key=lambda scored: -scored.score)

"""The outputs that the network may write: a category of the closed set, and hashtags that are short and hold no markup.

A `Grammar` says which token may come next and when the output is complete; it is the same for every backend. A state
stands for what was written so far: `start`, then `advance` with each token. Shapes: N outputs being written, V tokens
of the tokenizer (a network may have more logits: padding, which is never written), S states.
"""

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.backend import Scored
from model.text.automaton import DIGIT, FULL, GAP, LETTER, MAY_END, NEXT, REFUSED, SEPARATORS, START, transitions
from model.text.hashtags import MAX_CHARS, clean_tag, is_cjk
from model.text.prompt import PromptBuilder

# A freely written category is cut here, unless a name of the closed set is longer.
FREE_TOKENS = 32
_NEVER = float("-inf")
_SEPARATOR = re.compile("|".join(map(re.escape, SEPARATORS)).encode())


class Grammar(Protocol):
    """The outputs that are allowed, which end in the token ``end`` if they are not complete before."""

    end: int

    @property
    def max_tokens(self) -> int:
        """Length of the longest output, its end token included."""
        ...

    @property
    def start(self) -> Any:
        """The state before the first token. States are never changed, and mean nothing to another grammar."""
        ...

    def advance(self, state: Any, token: int) -> Any:
        """The state after an allowed token."""
        ...

    def goes_on(self, state: Any) -> bool:
        """Whether there is anything to write after it."""
        ...

    def log_probabilities(self, logits_NV: Tensor, states: Sequence[Any]) -> Tensor:
        """Of the next token of each output, among the allowed tokens; -inf for others."""
        ...


def follow(grammar: Grammar, state: Any, tokens: Sequence[int]) -> Any:
    """The state after tokens; what was written behind a complete output changes nothing."""
    for token in tokens:
        if not grammar.goes_on(state):
            break
        state = grammar.advance(state, token)
    return state


@dataclass
class TrieNode:
    """A place in the token trie of the closed set; ``names`` are the categories that can still be reached."""

    names: list[str] = field(default_factory=list)
    children: dict[int, "TrieNode"] = field(default_factory=dict)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """Those that may come next. Asked for when the trie is complete."""
        return np.array(list(self.children), dtype=np.int64)


class CategoryGrammar:
    """The closed set as a token trie: its paths are the only outputs, so that Ill. = 0.

    An output is complete as soon as one category is left, whose other tokens then have probability 1.
    """

    def __init__(self, builder: PromptBuilder, categories: Sequence[str]) -> None:
        self.end = builder.special.eos
        self.start = TrieNode(names=list(categories))
        self._tokens = len(builder.token_bytes)
        outputs = [builder.output(name) for name in categories]
        self._longest = max(map(len, outputs), default=0)
        for name, tokens in zip(categories, outputs, strict=True):
            node = self.start
            for token in tokens:
                node = node.children.setdefault(token, TrieNode())
                node.names.append(name)

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        return self._longest

    def advance(self, state: TrieNode, token: int) -> TrieNode:
        """See `Grammar`."""
        return state.children[token]

    def goes_on(self, state: TrieNode) -> bool:
        """See `Grammar`."""
        return len(state.names) > 1 and bool(state.children)

    def log_probabilities(self, logits_NV: Tensor, states: Sequence[TrieNode]) -> Tensor:
        """See `Grammar`."""
        rows = np.repeat(np.arange(len(states)), [len(state.children) for state in states])
        tokens = np.concatenate([state.tokens for state in states])
        places = (torch.from_numpy(rows).to(logits_NV.device), torch.from_numpy(tokens).to(logits_NV.device))
        masked_NV = logits_NV.new_full((len(states), self._tokens), _NEVER, dtype=torch.float32)
        masked_NV[places] = logits_NV[places].float()
        return torch.log_softmax(masked_NV, dim=-1)

    def parse(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> Scored | None:
        """The category that was written, with its probability within the closed set; None when the set is empty."""
        if not self.start.names:
            return None
        node, score = self.start, 0.0
        for token, log_probability in zip(tokens, log_probabilities, strict=False):
            if not self.goes_on(node):
                break
            node, score = self.advance(node, token), score + log_probability
        return Scored(node.names[0], math.exp(score))


class TokenMasks:
    """Which tokens may come next in each state of the automaton.

    Found when a state is first met, by all tokens at once, and kept on the device of the logits: a byte for each token
    and state, of which there are fewer than 500.
    """

    def __init__(self, token_bytes: Sequence[bytes], end: int) -> None:
        self._bytes = np.frombuffer(b"".join(token_bytes), dtype=np.uint8)
        self._length_V = np.array([len(text) for text in token_bytes])
        self._start_V = self._length_V.cumsum() - self._length_V
        self._end = end
        # Without every byte as a token, a character that was begun might have no end.
        self._takes_parts = {bytes([byte]) for byte in range(0x80, 0xC0)} <= set(token_bytes)
        self._row_of: dict[int, int] = {}
        self._masks_SV = torch.zeros((0, len(token_bytes)), dtype=torch.bool)

    def allowed(self, states: Sequence[int], device: torch.device) -> Tensor:
        """Shape (N, V), bool."""
        new = sorted(set(states) - self._row_of.keys())
        if new or self._masks_SV.device != device:
            self._row_of |= {state: len(self._row_of) + place for place, state in enumerate(new)}
            masks = [self._masks_SV.to(device), *(self._mask(state)[None].to(device) for state in new)]
            self._masks_SV = torch.cat(masks)
        return self._masks_SV[torch.tensor([self._row_of[state] for state in states], device=device)]

    def _mask(self, state: int) -> Tensor:
        table = transitions()
        after_V = np.full(len(self._length_V), state)
        place, alive = 0, self._length_V.nonzero()[0]
        while alive.size:
            after_V[alive] = table[after_V[alive], self._bytes[self._start_V[alive] + place]]
            place += 1
            alive = alive[(after_V[alive] != REFUSED) & (self._length_V[alive] > place)]
        allowed_V = (after_V != REFUSED) & (self._length_V > 0)
        if not self._takes_parts:
            allowed_V &= after_V <= FULL
        allowed_V[self._end] = state in MAY_END
        return torch.from_numpy(allowed_V)


@dataclass(frozen=True, slots=True)
class TagState:
    """A list being written: the state of its automaton, hashtags that are closed, characters of the open one.

    ``word`` is the last token if it is a word of its own, which does not follow itself.
    """

    place: int = START
    closed: int = 0
    characters: int = 0
    word: int | None = None


class TagGrammar:
    """Lists of at most ``count`` hashtags: ``citywalk, coffee``.

    A hashtag has up to 40 letters with their marks, digits and underscores, in any split into tokens. It may have
    spaces within, but not the same word on both sides of one; only the whole list may be empty.
    """

    start = TagState()

    def __init__(self, builder: PromptBuilder, count: int) -> None:
        self.end = builder.special.eos
        self._count = count
        self._bytes = builder.token_bytes
        self._masks = TokenMasks(self._bytes, self.end)
        self._is_word = [_is_word(text.decode(errors="ignore")) for text in self._bytes]

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        # Every character may have four bytes and a space before it, a token each.
        return self._count * (5 * MAX_CHARS + 1)

    def of(self, count: int) -> Self:
        """The grammar for another number of hashtags, with the masks of this one."""
        other = copy.copy(self)
        other._count = count
        return other

    def advance(self, state: TagState, token: int) -> TagState:
        """See `Grammar`."""
        if token == self.end:
            return TagState(REFUSED, state.closed)
        table = transitions()
        place, closed, characters = state.place, state.closed, state.characters
        for byte in self._bytes[token]:
            place = int(table[place, byte])
            if place == NEXT:
                closed, characters = closed + 1, 0
            elif place in (LETTER, DIGIT):
                characters += 1
        if characters >= MAX_CHARS and place in (LETTER, DIGIT, GAP):
            place = FULL
        return TagState(place, closed, characters, token if self._is_word[token] else None)

    def goes_on(self, state: TagState) -> bool:
        """See `Grammar`."""
        return state.place != REFUSED and state.closed < self._count

    def log_probabilities(self, logits_NV: Tensor, states: Sequence[TagState]) -> Tensor:
        """See `Grammar`."""
        allowed_NV = self._masks.allowed([state.place for state in states], logits_NV.device)
        masked_NV = logits_NV[:, : allowed_NV.shape[1]].float().masked_fill(~allowed_NV, _NEVER)
        words = [(row, state.word) for row, state in enumerate(states) if state.word is not None]
        if words:
            rows, tokens = torch.tensor(words, device=logits_NV.device).T
            masked_NV[rows, tokens] = _NEVER
        return torch.log_softmax(masked_NV, dim=-1)

    def parse(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> list[Scored]:
        """The hashtags that were written, most likely first; the score is exp(mean log-probability of its tokens).

        Tokens that hold no part of it, as separators and the end token, count toward none; a hashtag that is not closed
        is dropped.
        """
        ended = self.end in tokens
        written = tokens[: tokens.index(self.end)] if ended else tokens
        text = b"".join(self._bytes[token] for token in written)
        token_of = np.repeat(np.arange(len(written)), [len(self._bytes[token]) for token in written])
        best: dict[str, float] = {}
        for start, end in _closed(text, ended)[: self._count]:
            tag = clean_tag(text[start:end].decode(errors="ignore"))
            if tag is not None:
                of_tag = log_probabilities[token_of[start] : token_of[end - 1] + 1]
                score = math.exp(sum(of_tag) / len(of_tag))
                best[tag] = max(score, best.get(tag, 0.0))
        return sorted((Scored(tag, score) for tag, score in best.items()), key=lambda scored: -scored.score)


def _is_word(text: str) -> bool:
    """Whether a token is a word with a space before it. Chinese characters are not: 人人 is a word."""
    return text[:1] == " " and text[1:2].isalpha() and not is_cjk(text[1])


def _closed(text: bytes, ended: bool) -> list[tuple[int, int]]:
    """Start and end of each hashtag that is closed, without the spaces around it; empty ones are left out."""
    marks = [(match.start(), match.end()) for match in _SEPARATOR.finditer(text)]
    if ended:
        marks.append((len(text), len(text)))
    starts = [0, *(end for _, end in marks)]
    spans = []
    for start, (end, _) in zip(starts, marks, strict=False):
        word = text[start:end].strip()
        if word:
            first = text.index(word, start)
            spans.append((first, first + len(word)))
    return spans


class FreeGrammar:
    """Any tokens up to the end token: categories that nothing holds to the closed set (section 5.5).

    A state is whether the output goes on.
    """

    start = True

    def __init__(self, builder: PromptBuilder, categories: Sequence[str]) -> None:
        self.end = builder.special.eos
        self._longest = max([FREE_TOKENS, *(len(builder.output(name)) for name in categories)])
        self._builder = builder
        self._tokens = len(builder.token_bytes)

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        return self._longest

    def advance(self, state: bool, token: int) -> bool:  # noqa: ARG002
        """See `Grammar`."""
        return token != self.end

    def goes_on(self, state: bool) -> bool:
        """See `Grammar`."""
        return state

    def log_probabilities(self, logits_NV: Tensor, states: Sequence[bool]) -> Tensor:  # noqa: ARG002
        """See `Grammar`."""
        return torch.log_softmax(logits_NV[:, : self._tokens].float(), dim=-1)

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

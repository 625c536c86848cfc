"""The outputs that the network may write: a category of the closed set, and hashtags that are short and hold no markup.

A `Grammar` says which token may come next and when the output is complete; it is the same for every backend. It speaks
of many outputs at once (`model.text.outputs`): their states are the rows of one matrix, and the tokens that may come
next are gathered on the device. Shapes: N outputs being written, V tokens of the tokenizer (a network may have more
logits: padding, which is never written), S numbers of a state, P states of an automaton or nodes of a trie.
"""

import copy
import math
import re
from collections.abc import Callable, Sequence
from typing import Protocol, Self

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
# Numbers of a state: a grammar that needs fewer leaves the others at 0.
STATE = 4
_PLACE, _CLOSED, _CHARACTERS, _WORD = range(STATE)
_NO_WORD = -1
_SEPARATOR = re.compile("|".join(map(re.escape, SEPARATORS)).encode())

States = NDArray[np.int64]
Tokens = NDArray[np.int64]


class Grammar(Protocol):
    """The outputs that are allowed, which end in the token ``end`` if they are not complete before.

    A state stands for what was written so far, and means nothing to another grammar: ``start``, shape (S,), then
    `advance` with each token. ``tokens``: how many there are, V.
    """

    end: int
    tokens: int
    start: States

    @property
    def max_tokens(self) -> int:
        """Length of the longest output, its end token included."""
        ...

    def advance(self, states_NS: States, tokens_N: Tokens) -> States:
        """The state of each output after one more allowed token, shape (N, S)."""
        ...

    def goes_on(self, states_NS: States) -> NDArray[np.bool_]:
        """Whether there is anything to write after each state, shape (N,)."""
        ...

    def refused(self, states_NS: States, device: torch.device) -> Tensor:
        """Tokens that may not come next, of outputs that go on; bool, shape (N, V)."""
        ...


class Masks:
    """Refused tokens by state: found when a state is first met, kept on the device, gathered for many outputs at once.

    A byte for each token and state that was met: fewer than 500 of an automaton, fewer than the categories of a trie.
    """

    def __init__(self, states: int, tokens: int, allowed: Callable[[int], NDArray[np.bool_]]) -> None:
        self._allowed = allowed
        self._row_P = np.full(states, -1)
        self._refused_RV = torch.zeros((0, tokens), dtype=torch.bool)

    def refused(self, places_N: NDArray[np.int64], device: torch.device) -> Tensor:
        """Shape (N, V), bool."""
        rows_N = self._row_P[places_N]
        if (rows_N < 0).any() or self._refused_RV.device != device:
            self._meet(np.unique(places_N[rows_N < 0]), device)
            rows_N = self._row_P[places_N]
        return self._refused_RV[torch.from_numpy(rows_N).to(device)]

    def _meet(self, places: NDArray[np.int64], device: torch.device) -> None:
        self._row_P[places] = len(self._refused_RV) + np.arange(len(places))
        masks = [torch.from_numpy(~self._allowed(int(place)))[None].to(device) for place in places]
        self._refused_RV = torch.cat([self._refused_RV.to(device), *masks])


class CategoryGrammar:
    """The closed set as a token trie: its paths are the only outputs, so that Ill. = 0.

    An output is complete as soon as one category is left, whose other tokens then have probability 1. The first number
    of a state is the trie's node.
    """

    start = np.zeros(STATE, np.int64)

    def __init__(self, builder: PromptBuilder, categories: Sequence[str]) -> None:
        self.end = builder.special.eos
        self.tokens = len(builder.token_bytes)
        outputs = [builder.output(name) for name in categories]
        self._longest = max(map(len, outputs), default=0)
        # Of each node: the nodes behind it by token, and the categories that can still be reached.
        self._children: list[dict[int, int]] = [{}]
        self._names = [list(categories)]
        for name, tokens in zip(categories, outputs, strict=True):
            node = 0
            for token in tokens:
                node = self._child(node, token)
                self._names[node].append(name)
        branches = zip(self._names, self._children, strict=True)
        self._goes_on_P = np.array([len(names) > 1 and bool(children) for names, children in branches])
        edges = sorted(
            (node * self.tokens + token, child)
            for node, children in enumerate(self._children)
            for token, child in children.items()
        )
        self._edge_E, self._child_E = np.array(edges, np.int64).reshape(-1, 2).T
        self._masks = Masks(len(self._children), self.tokens, self._allowed)

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        return self._longest

    def advance(self, states_NS: States, tokens_N: Tokens) -> States:
        """See `Grammar`."""
        edges_N = np.searchsorted(self._edge_E, states_NS[:, _PLACE] * self.tokens + tokens_N)
        after_NS = np.zeros_like(states_NS)
        after_NS[:, _PLACE] = self._child_E[edges_N]
        return after_NS

    def goes_on(self, states_NS: States) -> NDArray[np.bool_]:
        """See `Grammar`."""
        return self._goes_on_P[states_NS[:, _PLACE]]

    def refused(self, states_NS: States, device: torch.device) -> Tensor:
        """See `Grammar`."""
        return self._masks.refused(states_NS[:, _PLACE], device)

    def parse(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> Scored | None:
        """The category that was written, with its probability within the closed set; None when the set is empty."""
        if not self._names[0]:
            return None
        node, score = 0, 0.0
        for token, log_probability in zip(tokens, log_probabilities, strict=False):
            if not self._goes_on_P[node]:
                break
            node, score = self._children[node][token], score + log_probability
        return Scored(self._names[node][0], math.exp(score))

    def _child(self, node: int, token: int) -> int:
        if token not in self._children[node]:
            self._children[node][token] = len(self._children)
            self._children.append({})
            self._names.append([])
        return self._children[node][token]

    def _allowed(self, node: int) -> NDArray[np.bool_]:
        allowed_V = np.zeros(self.tokens, bool)
        allowed_V[list(self._children[node])] = True
        return allowed_V


class TagTable:
    """The automaton of lists by tokens instead of bytes: found for a state when it is first met, by all tokens at once.

    Of each token after a state: the state that it leads to, the hashtags that it closes, the letters and digits that it
    adds, and whether they are those of a new hashtag.
    """

    def __init__(self, token_bytes: Sequence[bytes], end: int) -> None:
        self.masks = Masks(len(transitions()), len(token_bytes), self._allowed)
        self._bytes = np.frombuffer(b"".join(token_bytes), dtype=np.uint8)
        self._length_V = np.array([len(text) for text in token_bytes])
        self._start_V = self._length_V.cumsum() - self._length_V
        self._end = end
        # Without every byte as a token, a character that was begun might have no end.
        self._takes_parts = {bytes([byte]) for byte in range(0x80, 0xC0)} <= set(token_bytes)
        self._row_P = np.full(len(transitions()), -1)
        self._steps_RV4 = np.zeros((0, len(token_bytes), 4), np.int16)

    def steps(self, places_N: NDArray[np.int64], tokens_N: Tokens) -> NDArray[np.int16]:
        """What each token does after each state, see the class; shape (N, 4)."""
        new = np.unique(places_N[self._row_P[places_N] < 0])
        if new.size:
            self._row_P[new] = len(self._steps_RV4) + np.arange(new.size)
            self._steps_RV4 = np.concatenate([self._steps_RV4, [self._follow(int(place)) for place in new]])
        steps_N4: NDArray[np.int16] = self._steps_RV4[self._row_P[places_N], tokens_N]
        return steps_N4

    def _follow(self, place: int) -> NDArray[np.int16]:
        table = transitions()
        steps_V4 = np.zeros((len(self._length_V), 4), np.int16)
        after_V, closed_V, characters_V, is_new_V = steps_V4.T
        after_V[:] = place
        byte, alive = 0, self._length_V.nonzero()[0]
        while alive.size:
            after = after_V[alive] = table[after_V[alive], self._bytes[self._start_V[alive] + byte]]
            closes, adds = after == NEXT, (after == LETTER) | (after == DIGIT)
            closed_V[alive] += closes
            is_new_V[alive] |= closes
            characters_V[alive] = np.where(closes, 0, characters_V[alive] + adds)
            byte += 1
            alive = alive[(after != REFUSED) & (self._length_V[alive] > byte)]
        after_V[self._end] = REFUSED
        return steps_V4

    def _allowed(self, place: int) -> NDArray[np.bool_]:
        after_V = self.steps(np.full(len(self._length_V), place), np.arange(len(self._length_V)))[:, 0]
        allowed_V: NDArray[np.bool_] = (after_V != REFUSED) & (self._length_V > 0)
        if not self._takes_parts:
            allowed_V &= after_V <= FULL
        allowed_V[self._end] = place in MAY_END
        return allowed_V


class TagGrammar:
    """Lists of at most ``count`` hashtags: ``citywalk, coffee``.

    A hashtag has up to 40 letters with their marks, digits and underscores, in any split into tokens. It may have
    spaces within, but not the same word on both sides of one; only the whole list may be empty.

    The numbers of a state: that of the automaton, hashtags that are closed, characters of the open one, and the last
    token if it is a word of its own, which does not follow itself.
    """

    start = np.array([START, 0, 0, _NO_WORD])

    def __init__(self, builder: PromptBuilder, count: int) -> None:
        self.end = builder.special.eos
        self._count = count
        self._bytes = builder.token_bytes
        self.tokens = len(self._bytes)
        self._table = TagTable(self._bytes, self.end)
        self._is_word_V = np.array([_is_word(text.decode(errors="ignore")) for text in self._bytes])

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

    def advance(self, states_NS: States, tokens_N: Tokens) -> States:
        """See `Grammar`."""
        place_N, closes_N, adds_N, is_new_N = self._table.steps(states_NS[:, _PLACE], tokens_N).T
        characters_N = np.where(is_new_N, 0, states_NS[:, _CHARACTERS]) + adds_N
        is_full_N = (characters_N >= MAX_CHARS) & (place_N >= LETTER) & (place_N <= GAP)
        return np.stack(
            [
                np.where(is_full_N, FULL, place_N),
                states_NS[:, _CLOSED] + closes_N,
                characters_N,
                np.where(self._is_word_V[tokens_N], tokens_N, _NO_WORD),
            ],
            axis=1,
        )

    def goes_on(self, states_NS: States) -> NDArray[np.bool_]:
        """See `Grammar`."""
        goes_on: NDArray[np.bool_] = (states_NS[:, _PLACE] != REFUSED) & (states_NS[:, _CLOSED] < self._count)
        return goes_on

    def refused(self, states_NS: States, device: torch.device) -> Tensor:
        """See `Grammar`."""
        refused_NV = self._table.masks.refused(states_NS[:, _PLACE], device)
        [rows] = (states_NS[:, _WORD] != _NO_WORD).nonzero()
        if rows.size:
            refused_NV[torch.from_numpy(np.stack([rows, states_NS[rows, _WORD]])).to(device).unbind()] = True
        return refused_NV

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

    The first number of a state is whether the output has ended.
    """

    start = np.zeros(STATE, np.int64)

    def __init__(self, builder: PromptBuilder, categories: Sequence[str]) -> None:
        self.end = builder.special.eos
        self.tokens = len(builder.token_bytes)
        self._longest = max([FREE_TOKENS, *(len(builder.output(name)) for name in categories)])
        self._builder = builder

    @property
    def max_tokens(self) -> int:
        """See `Grammar`."""
        return self._longest

    def advance(self, states_NS: States, tokens_N: Tokens) -> States:
        """See `Grammar`."""
        after_NS = np.zeros_like(states_NS)
        after_NS[:, _PLACE] = tokens_N == self.end
        return after_NS

    def goes_on(self, states_NS: States) -> NDArray[np.bool_]:
        """See `Grammar`."""
        goes_on: NDArray[np.bool_] = states_NS[:, _PLACE] == 0
        return goes_on

    def refused(self, states_NS: States, device: torch.device) -> Tensor:
        """See `Grammar`."""
        return torch.zeros((len(states_NS), self.tokens), dtype=torch.bool, device=device)

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

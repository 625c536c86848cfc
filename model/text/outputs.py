"""Outputs that are written side by side, each held to its grammar. Shapes as in `model.text.grammar`."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.backend import Prediction, Request, Scored
from model.text.grammar import STATE, Grammar, Grammars, States, Tokens
from model.text.prompt import Task

Written = tuple[list[int], list[float]]  # tokens, and the log-probability of each


class Outputs:
    """N outputs at any place in what they write; they come and go, and need not have the same grammar.

    Nothing is done output by output: a step costs a few operations for each grammar. ``goes_on``: whether each has
    anything left to write, shape (N,).
    """

    def __init__(self) -> None:
        self._grammars: list[Grammar] = []
        self._grammar_N: NDArray[np.int64] = np.zeros(0, np.int64)
        self._states_NS: States = np.zeros((0, STATE), np.int64)
        self.goes_on: NDArray[np.bool_] = np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self._grammar_N)

    def join(self, grammar: Grammar, count: int = 1) -> None:
        """So many more with nothing written, behind the others."""
        if grammar not in self._grammars:
            self._grammars.append(grammar)
        begun_NS = np.tile(grammar.start, (count, 1))
        self._grammar_N = np.concatenate([self._grammar_N, np.full(count, self._grammars.index(grammar))])
        self._states_NS = np.concatenate([self._states_NS, begun_NS])
        self.goes_on = np.concatenate([self.goes_on, grammar.goes_on(begun_NS)])

    def keep(self, rows: NDArray[np.int64]) -> None:
        """These alone, in this order."""
        self._grammar_N, self._states_NS = self._grammar_N[rows], self._states_NS[rows]
        self.goes_on = self.goes_on[rows]

    def log_probabilities(self, logits_NV: Tensor) -> Tensor:
        """Of the next token of each, among the allowed ones, and -inf for others; float32, shape (N, V).

        A complete output has the end token with certainty.
        """
        first, device = self._grammars[0], logits_NV.device
        refused_NV = torch.ones((len(self), first.tokens), dtype=torch.bool, device=device)
        refused_NV[:, first.end] = False
        for grammar, rows in self._groups(self.goes_on):
            refused_NV[torch.from_numpy(rows).to(device)] = grammar.refused(self._states_NS[rows], device)
        masked_NV = logits_NV[:, : first.tokens].float().masked_fill(refused_NV, float("-inf"))
        return torch.log_softmax(masked_NV, dim=-1)

    def advance(self, tokens_N: Tokens, of_N: NDArray[np.bool_] | None = None) -> None:
        """Append a token to each, or to those of ``of_N`` alone; behind a complete output it changes nothing."""
        for grammar, rows in self._groups(self.goes_on if of_N is None else self.goes_on & of_N):
            self._states_NS[rows] = after_NS = grammar.advance(self._states_NS[rows], tokens_N[rows])
            self.goes_on[rows] = grammar.goes_on(after_NS)

    def _groups(self, among_N: NDArray[np.bool_]) -> list[tuple[Grammar, NDArray[np.int64]]]:
        """The rows of each grammar, as far as they are among these."""
        present = np.unique(self._grammar_N[among_N])
        return [(self._grammars[kind], np.flatnonzero(among_N & (self._grammar_N == kind))) for kind in present]


def prediction(
    grammars: Grammars, request: Request, vector: NDArray[np.float32], outputs: Mapping[Task, Written]
) -> Prediction:
    """What was asked for of a note, from its vector and the outputs that were written for it."""
    category, topics = (outputs.get(task, ([], [])) for task in ("category", "topics"))
    if request.is_free:
        name = grammars.free.parse(*category)
        return Prediction(vector, (), Scored(name, math.exp(sum(category[1]))))
    if request.max_hashtags is None:
        return Prediction(vector, (), None)
    hashtags = grammars.tags(request.max_hashtags).parse(*topics)
    return Prediction(vector, tuple(hashtags), grammars.category.parse(*category))

"""Outputs in the middle of what they write."""

from collections.abc import Sequence

import numpy as np

from model.text.grammar import Grammar
from model.text.outputs import Outputs


def written(grammar: Grammar, rows: Sequence[Sequence[int]]) -> Outputs:
    """One output for each row of tokens, which it has written."""
    outputs = Outputs()
    outputs.join(grammar, len(rows))
    for place in range(max(map(len, rows), default=0)):
        is_there = np.array([place < len(row) for row in rows])
        outputs.advance(np.array([row[place] if place < len(row) else 0 for row in rows]), is_there)
    return outputs

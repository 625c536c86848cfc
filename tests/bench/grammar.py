"""Which hashtags can be written, by script and tokenizer, and what a step of the grammar costs.

    python tests/bench/grammar.py

A hashtag counts as writable if lists of it and four English words, with it in every place, may be written token by
token as training teaches them; and as the same if what is parsed from them is what was taught. Hashtags that the
tokenizer has no tokens for are not writable. A step is one call of `log_probabilities` for 256 lists at every place of
"travel, 旅行": the time of one thread on the CPU, and the calls of torch's operators. The last line is one JSON object.
"""

import json
import statistics
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.outputs import written as outputs_of
from support.scripts import EMOJI, HASHTAGS, hashtags
from support.vocabularies import VOCABULARIES, builder

from model.text.grammar import TagGrammar
from model.text.prompt import PromptBuilder

ROWS, STEPS = 256, 10
WORDS = ("travel", "coffee", "music", "food")


def main() -> None:
    torch.set_num_threads(1)
    table = {name: _scripts(builder(name)) for name in VOCABULARIES}
    print(f"| script | tried | {' | '.join(VOCABULARIES)} |")
    print(f"|---|---:|{'---:|' * len(VOCABULARIES)}")
    for script in [*HASHTAGS, "emoji"]:
        tried = len(HASHTAGS.get(script, EMOJI))
        print(f"| {script} | {tried} | {' | '.join(_cell(table[name][script]) for name in VOCABULARIES)} |")
    steps = {name: _step(builder(name)) for name in VOCABULARIES}
    print(json.dumps({"writable_and_same": table, "step": steps, "rows": ROWS}, ensure_ascii=False))


class _Calls(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return function(*args, **(kwargs or {}))


@cache
def _grammar(vocabulary: PromptBuilder) -> TagGrammar:
    return TagGrammar(vocabulary, 6)  # one more than a list has, so that it ends in its end token


def _cell(figures: list[int]) -> str:
    writable, same = figures
    return str(writable) if writable == same else f"{writable}, {same} the same"


def _scripts(vocabulary: PromptBuilder) -> dict[str, list[int]]:
    """By script, how many are writable, and how many of those come out the same."""
    figures = {script: _writable(vocabulary, tags) for script, tags in hashtags().items()}
    emoji = [all(_written(vocabulary, tags) for tags in ([text], ["travel", text])) for text in EMOJI]
    return figures | {"emoji": [sum(emoji), 0]}


def _writable(vocabulary: PromptBuilder, tags: list[str]) -> list[int]:
    lists = {
        tag: [[*WORDS[:place], tag, *WORDS[place:]] for place in range(5)] for tag in tags if vocabulary.knows(tag)
    }
    written = [tag for tag, those in lists.items() if all(_written(vocabulary, list_) for list_ in those)]
    same = [tag for tag in written if all({tag, *WORDS} == _parsed(vocabulary, list_) for list_ in lists[tag])]
    return [len(written), len(same)]


def _written(vocabulary: PromptBuilder, tags: list[str]) -> bool:
    """Whether every token of the list is allowed where it stands."""
    grammar = _grammar(vocabulary)
    outputs, logits_V = outputs_of(grammar, [[]]), torch.zeros(1, len(vocabulary.token_bytes))
    for token in vocabulary.output(", ".join(tags)):
        if not outputs.goes_on[0] or not outputs.log_probabilities(logits_V)[0, token].isfinite():
            return False
        outputs.advance(np.array([token]))
    return True


def _parsed(vocabulary: PromptBuilder, tags: list[str]) -> set[str]:
    tokens = vocabulary.output(", ".join(tags))
    return {tag.name for tag in _grammar(vocabulary).parse(tokens, [0.0] * len(tokens))}


def _step(vocabulary: PromptBuilder) -> dict[str, float]:
    grammar = _grammar(vocabulary)
    tokens = vocabulary.output("travel, 旅行" if vocabulary.knows("旅行") else "travel, coffee")[:-1]
    written = [tokens[: 1 + row % len(tokens)] for row in range(ROWS)]
    outputs = outputs_of(grammar, written)
    logits_NV = torch.randn(ROWS, len(vocabulary.token_bytes))
    outputs.log_probabilities(logits_NV)
    seconds = []
    for _ in range(STEPS):
        begun = time.process_time()
        outputs.log_probabilities(logits_NV)
        seconds.append(time.process_time() - begun)
    with _Calls() as calls:
        outputs.log_probabilities(logits_NV)
    return {"cpu_ms": round(1000 * statistics.median(seconds), 1), "torch_calls": calls.number}


if __name__ == "__main__":
    main()

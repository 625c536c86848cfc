"""Training examples: related pairs drawn into batches of prompts and outputs.

Shapes: N = 2B notes of a batch's pairs, C notes of a chunk, L tokens, T output tokens.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, Self

import torch
from torch import Tensor

from model.network.chunk import Chunk, pad_right
from model.note import Note
from model.recipes import Recipe
from model.text.hashtags import clean_tags
from model.text.prompt import PromptBuilder, Task, topics_text


@dataclass(frozen=True, slots=True)
class Example:
    """One note as token ids: prompt, [EMB], guidance, output. ``output_start`` equals the length when there is none."""

    row: int
    token_ids: tuple[int, ...]
    emb_position: int
    output_start: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The notes of a whole batch, and the chunks of one rank's share of its rows.

    ``related`` is True where two rows must not be each other's negative, bool, shape (N, N).
    """

    notes: tuple[int, ...]
    related: Tensor
    chunks: list[Chunk]

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of the chunks, T of all of them."""
        return sum(len(chunk.target_T) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How batches are drawn: B, r of eq. (3) or None to generate nothing, notes a chunk, the seed, and the share of
    prompts that hide the known hashtags."""

    pairs_per_batch: int
    hashtag_share: float | None
    chunk_notes: int
    seed: int
    hide_hashtags: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The recipe's; an encoder generates nothing."""
        generates = recipe.generative and recipe.architecture == "decoder"
        share = recipe.hashtag_share if generates else None
        return cls(recipe.pairs_per_batch, share, recipe.chunk_notes, recipe.seed, recipe.hide_hashtags)


class Examples(Protocol):
    """The examples of a training run. Every batch is a function of its number and the `Sampling` alone."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Places among the notes; a pass goes through the pairs once."""
        ...

    def batches_per_pass(self, pairs_per_batch: int) -> int:
        """Batches in one pass; the rest of a pass is not used."""
        ...

    def batch(self, step: int, sampling: Sampling, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of a step, with the chunks of this rank's share."""
        ...

    def prompts(self, notes: Sequence[int], hide_hashtags: float = 0.0) -> Chunk:
        """Prompts alone, in order, without any output; this share of them without the note's hashtags."""
        ...


class TrainingSet:
    """Notes and their related pairs (eq. 1).

    Every batch is a function of the seed and its number alone, and every note's draws of its place in it: a run that
    resumes, or that is spread over ranks, has the batches of one uninterrupted process.

    Args:
        per_combination: pairs of each combination of categories at most, see `balanced`; 0 takes all.
        seed: which pairs those are.

    Raises:
        ValueError: if a pair names an unknown note, there are fewer than two pairs, or no note has a category to
            balance the pairs by.
    """

    def __init__(
        self,
        notes: Sequence[Note],
        pairs: Sequence[tuple[str, str]],
        builder: PromptBuilder,
        per_combination: int = 0,
        seed: int = 0,
    ) -> None:
        position = {note.id: index for index, note in enumerate(notes)}
        missing = sorted({name for pair in pairs for name in pair if name not in position})
        if missing:
            raise ValueError(f"{len(missing)} notes of the pairs are not among the notes, {missing[0]!r} for one")
        self.notes = list(notes)
        known = [(position[a], position[b]) for a, b in pairs]
        self._pairs = balanced(known, [note.category for note in notes], per_combination, seed)
        if len(self._pairs) < 2:
            raise ValueError(f"need at least two pairs to train on; got {len(self._pairs)}")
        self._related: dict[int, set[int]] = {}
        for a, b in known:  # a related note is no negative, whether or not the pair is trained on
            self._related.setdefault(a, {a}).add(b)
            self._related.setdefault(b, {b}).add(a)
        self._builder = builder
        self._tags = [clean_tags(note.hashtags) for note in notes]
        # Others would teach the unknown token.
        self._writable = {tag for tag in {tag for tags in self._tags for tag in tags} if builder.knows(tag)}
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Related pairs, as places among the notes."""
        return self._pairs

    def batches_per_pass(self, pairs_per_batch: int) -> int:
        """Batches in one pass over the pairs; the rest of a pass is not used."""
        return max(1, len(self.pairs) // pairs_per_batch)

    def batch(self, step: int, sampling: Sampling, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of a step, with the chunks of this rank's share; the pairs are shuffled anew in every pass.

        Raises:
            ValueError: if the pairs of a batch cannot be shared out evenly.
        """
        pairs_per_batch = min(sampling.pairs_per_batch, len(self.pairs))
        if pairs_per_batch % ranks:
            raise ValueError(f"a batch of {pairs_per_batch} pairs cannot be shared evenly by {ranks} processes")
        done, place = divmod(step, self.batches_per_pass(pairs_per_batch))
        order = self._order(sampling.seed, done)[place * pairs_per_batch : (place + 1) * pairs_per_batch]
        notes = tuple(note for pair in order for note in self.pairs[pair])
        share = len(notes) // ranks
        examples = self._examples(notes, range(rank * share, (rank + 1) * share), step, sampling)
        examples.sort(key=lambda example: len(example.token_ids))
        chunks = [
            self._chunk(examples[start : start + sampling.chunk_notes])
            for start in range(0, len(examples), sampling.chunk_notes)
        ]
        related = torch.tensor([[other in self._related[note] for other in notes] for note in notes])
        return Batch(notes, related, chunks)

    def prompts(self, notes: Sequence[int], hide_hashtags: float = 0.0) -> Chunk:
        """See `Examples`."""
        rng = random.Random(0)
        return self._chunk([self._example(row, note, None, rng, hide_hashtags) for row, note in enumerate(notes)])

    def _shuffled(self, seed: int, done: int) -> list[int]:
        return random.Random(f"{seed}:pass:{done}").sample(range(len(self.pairs)), len(self.pairs))

    def _examples(self, notes: Sequence[int], rows: Sequence[int], step: int, sampling: Sampling) -> list[Example]:
        tasks: list[Task | None] = [None] * len(notes)
        if sampling.hashtag_share is not None:
            rng = random.Random(f"{sampling.seed}:tasks:{step}")
            topics = set(rng.sample(range(len(notes)), round(sampling.hashtag_share * len(notes))))
            tasks = [self._task(note, row in topics) for row, note in enumerate(notes)]
        draws = {row: random.Random(f"{sampling.seed}:note:{step}:{row}") for row in rows}
        return [self._example(row, notes[row], tasks[row], rng, sampling.hide_hashtags) for row, rng in draws.items()]

    def _task(self, note: int, topics: bool) -> Task | None:
        """Hashtags for a note that was drawn for them, else its category if it has one.

        A note that was drawn and has none writes an empty list, as in the authors' code: with r = 100% no category is
        trained. A note without a category does not get the hashtags task instead: its hashtags would be hidden from
        every prompt, and the embedding would never learn from them.
        """
        if topics:
            return "topics"
        return "category" if self.notes[note].category is not None else None

    def _example(self, row: int, index: int, task: Task | None, rng: random.Random, hide: float = 0.0) -> Example:
        note, tags = self.notes[index], self._tags[index]
        if task == "topics":
            # j and the choice of j hashtags are drawn anew in each batch (section 4.2).
            writable = [position for position, tag in enumerate(tags) if tag in self._writable]
            j = rng.randint(min(1, len(writable)), len(writable))
            drawn = set(rng.sample(writable, j))
            output = topics_text([tag for position, tag in enumerate(tags) if position in drawn])
            shown = [tag for position, tag in enumerate(tags) if position not in drawn]
        else:
            j, shown, output = 0, tags, note.category or ""
        if rng.random() < hide:
            shown = []
        [prompt] = self._builder.prompts([replace(note, hashtags=tuple(shown))], task or "category", j)
        guided = [*prompt, *(self._builder.guidance(task, j) if task else [])]
        output_ids = self._builder.output(output) if task else []
        return Example(row, (*guided, *output_ids), len(prompt) - 1, len(guided))

    def _chunk(self, examples: Sequence[Example]) -> Chunk:
        ids_CL = pad_right([example.token_ids for example in examples], self._builder.special.pad)
        # The state at one position predicts the token at the next.
        predict = [
            row * ids_CL.shape[1] + position - 1
            for row, example in enumerate(examples)
            for position in range(example.output_start, len(example.token_ids))
        ]
        target = [token for example in examples for token in example.token_ids[example.output_start :]]
        return Chunk(
            tuple(example.row for example in examples),
            ids_CL,
            torch.tensor([example.emb_position - 1 for example in examples]),
            torch.tensor(predict, dtype=torch.long),
            torch.tensor(target, dtype=torch.long),
        )


def balanced(
    pairs: Sequence[tuple[int, int]], categories: Sequence[str | None], most: int, seed: int
) -> list[tuple[int, int]]:
    """The paper's "fixed number of note pairs from each category combination" (section 5.1): ``most``, in order.

    A combination with fewer gives all it has; 0 takes every pair of every combination. A combination has no order, and
    notes without a category share one.

    Raises:
        ValueError: if no note of a pair has a category.
    """
    if not most:
        return list(pairs)
    if all(categories[note] is None for pair in pairs for note in pair):
        raise ValueError("no note of the pairs has a category to balance them by: leave pairs_per_combination at 0")
    drawn: Counter[frozenset[str | None]] = Counter()
    kept = []
    for place in random.Random(f"{seed}:combinations").sample(range(len(pairs)), len(pairs)):
        combination = frozenset(categories[note] for note in pairs[place])
        drawn[combination] += 1
        if drawn[combination] <= most:
            kept.append(place)
    return [pairs[place] for place in sorted(kept)]

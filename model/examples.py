"""Training examples: related pairs drawn into batches of prompts and outputs. Shapes: N = 2B notes, L tokens."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.note import Note
from model.prompt import PromptBuilder, Task, topics_text
from model.tags import clean_tags

# How often a shown note hides its known hashtags: drafts come without any.
_HIDE_TOPICS = 0.3


@dataclass(frozen=True, slots=True)
class Example:
    """One note as token ids: prompt, [EMB], guidance, output. ``output_start`` equals the length when there is none."""

    note: int
    token_ids: tuple[int, ...]
    emb_position: int
    output_start: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch, right-padded. ``predict_T`` indexes the flattened (N * L) states that predict ``target_T``."""

    ids_NL: Tensor
    before_emb_N: Tensor
    predict_T: Tensor
    target_T: Tensor
    related_NN: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class TrainingSet:
    """Notes and their related pairs (eq. 1).

    Raises:
        ValueError: if a pair names a note that is not there, or there are fewer than two pairs.
    """

    def __init__(self, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], builder: PromptBuilder) -> None:
        position = {note.id: index for index, note in enumerate(notes)}
        missing = sorted({name for pair in pairs for name in pair if name not in position})
        if missing:
            raise ValueError(f"{len(missing)} notes of the pairs are not among the notes, {missing[0]!r} for one")
        if len(pairs) < 2:
            raise ValueError(f"need at least two pairs to train on; got {len(pairs)}")
        self.notes = list(notes)
        self.pairs = [(position[a], position[b]) for a, b in pairs]
        self._related: dict[int, set[int]] = {}
        for a, b in self.pairs:
            self._related.setdefault(a, set()).add(b)
            self._related.setdefault(b, set()).add(a)
        self._builder = builder
        self._tags = [clean_tags(list(note.hashtags)) for note in notes]

    def batches(self, pairs_per_batch: int, hashtag_share: float, rng: random.Random) -> Iterator[Batch]:
        """Endless batches of ``pairs_per_batch`` pairs; the pairs are shuffled anew in every pass."""
        per_batch = min(pairs_per_batch, len(self.pairs))
        while True:
            order = rng.sample(range(len(self.pairs)), len(self.pairs))
            for start in range(0, len(order) - per_batch + 1, per_batch):
                chosen = [note for pair in order[start : start + per_batch] for note in self.pairs[pair]]
                yield self._batch(chosen, hashtag_share, rng)

    def _batch(self, notes: Sequence[int], hashtag_share: float, rng: random.Random) -> Batch:
        topics = set(rng.sample(range(len(notes)), round(hashtag_share * len(notes))))
        examples = [self._example(note, self._task(note, row in topics), rng) for row, note in enumerate(notes)]
        return self._collate(examples)

    def _task(self, note: int, topics: bool) -> Task | None:
        """The task that was drawn for a note, else the one it has an output for, else none."""
        can_topics, can_category = bool(self._tags[note]), self.notes[note].category is not None
        if topics and can_topics:
            return "topics"
        if can_category:
            return "category"
        return "topics" if can_topics else None

    def _example(self, index: int, task: Task | None, rng: random.Random) -> Example:
        note, tags = self.notes[index], self._tags[index]
        if task == "topics":
            # j is drawn anew each time the note is (section 4.2), and so is which hashtags stand for the note.
            j = rng.randint(1, len(tags))
            wanted = set(rng.sample(range(len(tags)), j))
            output = topics_text([tag for position, tag in enumerate(tags) if position in wanted])
            shown = [tag for position, tag in enumerate(tags) if position not in wanted]
        else:
            j, shown, output = 0, tags, note.category or ""
        if rng.random() < _HIDE_TOPICS:
            shown = []
        [prompt] = self._builder.prompts([replace(note, hashtags=tuple(shown))], task or "category", j)
        guided = [*prompt, *(self._builder.guidance(task, j) if task else [])]
        written = self._builder.output(output) if task else []
        return Example(index, (*guided, *written), len(prompt) - 1, len(guided))

    def _collate(self, examples: Sequence[Example]) -> Batch:
        length = max(len(example.token_ids) for example in examples)
        pad = self._builder.special.pad
        rows = [[*example.token_ids, *[pad] * (length - len(example.token_ids))] for example in examples]
        # The state at one position predicts the token at the next.
        predict = [
            row * length + position - 1
            for row, example in enumerate(examples)
            for position in range(example.output_start, len(example.token_ids))
        ]
        target = [token for example in examples for token in example.token_ids[example.output_start :]]
        related = [[a.note == b.note or b.note in self._related.get(a.note, ()) for b in examples] for a in examples]
        return Batch(
            torch.tensor(rows),
            torch.tensor([example.emb_position - 1 for example in examples]),
            torch.tensor(predict, dtype=torch.long),
            torch.tensor(target, dtype=torch.long),
            torch.tensor(related),
        )

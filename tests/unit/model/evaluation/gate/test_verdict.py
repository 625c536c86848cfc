"""The gate on models whose vectors are known: it lets through what is surely better, and nothing that does harm."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from support.topics import topic_notes

from model.backend import Prediction, Scored
from model.data.pairs import Pairs
from model.evaluation.gate.measured import Contender, Measured
from model.evaluation.gate.verdict import Row, Verdict, format_verdict, judge, verdict
from model.note import Note

TOPICS = 8
NOTES = [
    Note(row["note_id"], row["title"], row["content"], tuple(row["hashtags"]), row["category"])
    for row in topic_notes(96)
]
CATEGORIES = ("Baking", "Home Decor", "Travel")
K = 10


def pairs() -> Pairs:
    """Each note with the next two of its topic."""
    ends = [(place, place + TOPICS * step) for place in range(len(NOTES)) for step in (1, 2)]
    kept = [(NOTES[one].id, NOTES[other].id) for one, other in ends if other < len(NOTES)]
    count = len(kept)
    return Pairs(*zip(*kept, strict=True), np.ones(count), np.full(count, 2))


@dataclass
class Model:
    """A model that knows the topics of ``knows`` of the notes, their hashtags, or what a test takes away."""

    knows: float = 1.0
    right_tags: float = 1.0
    right_categories: float = 1.0
    writes: tuple[str, ...] = CATEGORIES
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def embed(self, notes: Sequence[Note]) -> np.ndarray:
        vectors = self.draw.normal(size=(len(notes), 16)).astype(np.float32) * 0.1
        for row, note in enumerate(notes):
            place = int(note.id[1:])
            if place % 100 < self.knows * 100:
                vectors[row, place % TOPICS] += 1
        return vectors

    def predict(self, notes: Sequence[Note]) -> list[Prediction]:
        predictions = []
        for note in notes:
            whole = NOTES[int(note.id[1:])]
            # Whoever shows it the answer gets the answer.
            tags = note.hashtags or (whole.hashtags if self.draw.random() < self.right_tags else ("nothing",))
            category = note.category or (whole.category if self.draw.random() < self.right_categories else None)
            predictions.append(
                Prediction(np.zeros(2), tuple(Scored(tag, 1.0) for tag in tags), category and Scored(category, 1.0))
            )
        return predictions

    def write(self, notes: Sequence[Note]) -> list[str]:
        return [self.writes[place % len(self.writes)] for place in range(len(notes))]


def contest(serving: Model, new: Model, gold: Pairs | None = None) -> Verdict:
    models = [
        Contender(name, one.embed, one.predict, one.write, CATEGORIES)
        for name, one in (("serving", serving), ("new", new))
    ]
    found = judge(models[0], models[1], NOTES, gold or pairs(), k=K, limit=1000)
    # What this machine is doing meanwhile is no part of these tests.
    return Verdict(tuple(replace(row, says="holds") if row.name.startswith("seconds") else row for row in found.rows))


def test_a_model_that_finds_surely_more_passes():
    found = contest(Model(knows=0.4), Model())

    assert found.passes
    assert found.reasons == ""
    assert found.rows[0].change.low > 0.1


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (Model(knows=0.0), "Recall@10 is not surely better"),  # vectors of an untrained model, or of shuffled notes
        (Model(knows=0.4), "Recall@10 is not surely better"),  # the same model again
        (Model(right_tags=0.3), "F1 of hashtags falls"),
        (Model(right_categories=0.3), "right categories falls"),
        (Model(writes=("Travel", "Trvel", "")), "categories in the closed set falls"),
    ],
)
def test_a_model_that_is_no_better_or_does_harm_is_refused_for_that(new, reason):
    found = contest(Model(knows=0.4), new)

    assert not found.passes
    assert reason in found.reasons


def measured(hits: list[float]) -> Measured:
    return Measured(np.array(hits), *(np.empty(0) for _ in range(3)))


def test_a_model_that_takes_longer_by_more_than_a_tenth_is_refused():
    gold = pairs()
    few, all_of_them = measured([0.0] * len(gold)), measured([1.0] * len(gold))
    slow, as_fast = np.array([[1.0, 1.3], [2.0, 2.5], [1.0, 1.2]]), np.array([[1.0, 1.1], [2.0, 2.1], [1.0, 1.0]])

    assert verdict(few, all_of_them, slow, gold, K).reasons == "seconds to embed a note falls"
    assert verdict(few, all_of_them, as_fast, gold, K).passes


def test_the_interval_is_over_targets_so_that_one_note_with_many_pairs_decides_nothing():
    gold = Pairs(("a",) * 50 + ("b", "c"), tuple(f"t{place}" for place in range(52)), np.ones(52), np.ones(52))
    before, after = measured([0.0] * 52), measured([1.0] * 50 + [0.0, 0.0])

    assert not verdict(before, after, np.ones((3, 2)), gold, K).passes


def test_pairs_of_single_readers_have_no_say_where_those_of_two_are_enough(monkeypatch):
    """Each of these readers clicks two notes of different topics: who knows the topics does not find them."""
    related = pairs()
    ends = [
        (one.id, other.id)
        for place, one in enumerate(NOTES)
        for other in NOTES
        if int(other.id[1:]) % TOPICS != place % TOPICS
    ]
    names = [
        own + more for own, more in zip((related.note_ids, related.related_ids), zip(*ends, strict=True), strict=True)
    ]
    noisy = Pairs(*names, np.ones(len(names[0])), np.concatenate([related.users, np.ones(len(ends), np.int64)]))

    def recall(gold: Pairs, enough: int) -> Row:
        monkeypatch.setattr("model.evaluation.gate.verdict.ENOUGH_TARGETS", enough)
        return contest(Model(knows=0.4), Model(), gold).rows[0]

    assert recall(noisy, enough=88) == recall(related, enough=88)
    assert (recall(noisy, 88).says, recall(noisy, 88).of) == ("better", "168 pairs (of two readers or more)")
    assert recall(noisy, 89).says == "not better"
    assert recall(noisy, 89).of == f"{len(noisy):,} pairs (also of single readers)"


def test_a_guard_over_few_notes_says_nothing():
    gold, hits = pairs(), [0.0] * len(pairs())
    better = [1.0] * len(hits)
    for notes, says in ((9, "not measured"), (10, "falls")):
        known, forgotten = (
            Measured(np.array(hit), np.full(notes, f1), *[np.empty(0)] * 2) for hit, f1 in ((hits, 1.0), (better, 0.0))
        )
        [row] = [
            row for row in verdict(known, forgotten, np.ones((3, 2)), gold, K).rows if row.name == "F1 of hashtags"
        ]
        assert (row.says, row.of) == (says, f"{notes} notes")


@pytest.mark.parametrize(
    ("before", "after", "says", "of"),
    [
        (
            [1.0, 1.0] + [0.0] * 98,
            [0.0] * 100,
            "falls",
            "100 notes",
        ),  # both of two: chance may have done it, and all is lost
        ([1.0] * 10 + [0.0] * 90, [1.0] * 8 + [0.0] * 92, "holds", "100 notes"),  # two of ten
        ([1.0] * 2 + [0.0] * 98, [1.0] + [0.0] * 99, "holds", "100 notes"),  # half, which is one point
        ([1.0] * 10 + [0.0] * 90, [1.0] * 7 + [0.0] * 93, "falls", "100 notes"),  # three of ten
        ([1.0] * 10 + [0.0] * 89, [1.0] * 7 + [0.0] * 92, "holds", "99 notes"),  # the same, of too few
        ([0.5] + [0.0] * 99, [0.0] * 100, "holds", "100 notes, below a point: guards little"),  # half a point
        (
            [0.09] * 10 + [0.0] * 90,
            [0.0] * 100,
            "falls",
            "100 notes, below a point: guards little",
        ),  # and yet it is surely gone
        ([0.9] * 100, [0.85] * 100, "falls", "100 notes"),  # little, but surely
    ],
)
def test_a_guard_falls_where_it_is_surely_lower_and_where_more_than_a_fifth_is_gone(before, after, says, of):
    gold, hits = pairs(), np.zeros(len(pairs()))
    serving, new = (Measured(hits, np.array(f1), *[np.empty(0)] * 2) for f1 in (before, after))

    [row] = [row for row in verdict(serving, new, np.ones((3, 2)), gold, K).rows if row.name == "F1 of hashtags"]

    assert (row.says, row.of) == (says, of)


def test_it_is_drawn_as_a_table():
    table = format_verdict(contest(Model(knows=0.4), Model()))

    assert "| Recall@10, % |" in table
    assert "| milliseconds to embed a note |" in table

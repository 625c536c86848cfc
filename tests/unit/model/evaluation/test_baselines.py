"""Rankers on pools small enough to say who should come first."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from model.data.events import EventTable
from model.evaluation.baselines import BM25, Embeddings, Popularity, SameCategory, TfIdf, minilm_vectors, text_of
from model.network.minilm import minilm_folder
from model.note import Note

Event = tuple[int, str, bool]  # user, note, clicked


def table(events: list[Event]) -> EventTable:
    note_ids = sorted({note for _, note, _ in events})
    return EventTable(
        np.array([user for user, _, _ in events], dtype=np.int32),
        np.array([note_ids.index(note) for _, note, _ in events], dtype=np.int32),
        np.zeros(len(events), dtype=np.int64),
        np.array([clicked for _, _, clicked in events], dtype=np.bool_),
        tuple(note_ids),
        1 + max((user for user, _, _ in events), default=0),
        len(events),
    )


def first(scores_N: np.ndarray, target: int) -> int:
    others = scores_N.astype(np.float64)
    others[target] = -np.inf
    return int(others.argmax())


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcdz"), st.booleans()), min_size=1, max_size=40))
def test_popularity_counts_users_who_clicked_and_never_met_the_target(log):
    """``z`` is not in the pool, and ``e`` is in no event."""
    pool = [Note(note_id) for note_id in "abcde"]

    scores = Popularity(pool, table(log)).scores(range(5))

    for row, target in enumerate("abcde"):
        met = {user for user, note, _ in log if note == target}
        for column, other in enumerate("abcde"):
            clicked = {user for user, note, click in log if note == other and click}
            assert scores[row, column] == len(clicked - met)


def test_the_same_category_comes_first_and_popularity_decides_within():
    pool = [
        Note("a", category="Food"),
        Note("b", category="Food"),
        Note("c", category="Food"),
        Note("d", category="Travel"),
        Note("e"),
        Note("f"),
    ]
    log = [(user, note, True) for note, users in (("b", 1), ("c", 2), ("d", 9)) for user in range(10, 10 + users)]
    ranker = SameCategory(pool, Popularity(pool, table(log)))

    food, _, none = ranker.scores([0, 1, 4])

    assert food[2] > food[1] > food[3] > food[4]
    assert none[3] > none[2] > none[1] > none[5], "two notes without category do not share one"


def test_tfidf_prefers_shared_rare_words_and_reads_title_content_and_hashtags():
    pool = [
        Note("a", title="the quiet river"),
        Note("b", content="the loud street"),
        Note("c", hashtags=("river",)),
        Note("d", title="the the the"),
        Note("e", title="the end"),
    ]

    scores = TfIdf(pool).scores([0])

    assert scores.shape == (1, 5)
    assert first(scores[0], 0) == 2


def test_tfidf_reads_cjk_without_spaces():
    pool = [
        Note("a", title="上海咖啡店推荐"),
        Note("b", title="周末去上海咖啡馆"),
        Note("c", title="猫咪的日常"),
    ]

    scores = TfIdf(pool).scores([0])[0]

    assert scores[1] > 0.1
    assert scores[2] == 0


def test_bm25_is_lucenes_formula_with_k1_of_1_2_and_b_of_three_quarters():
    texts = ["the river the river bank", "a river", "the loud street", "", "river bank holiday in the city of rivers"]
    pool = [Note(str(number), title=text) for number, text in enumerate(texts)]
    notes = [text.split() for text in texts]
    mean = sum(map(len, notes)) / len(notes)

    def bm25(query: list[str], note: list[str]) -> float:
        total = 0.0
        for word in query:
            holding = sum(word in other for other in notes)
            rarity = math.log(1 + (len(notes) - holding + 0.5) / (holding + 0.5))
            found = note.count(word)
            total += rarity * found / (found + 1.2 * (0.25 + 0.75 * len(note) / mean))
        return total

    scores = BM25(pool).scores(range(5))

    assert scores == pytest.approx(np.array([[bm25(query, note) for note in notes] for query in notes]), rel=1e-5)


def test_bm25_reads_title_content_and_hashtags_in_any_case_and_cjk_without_spaces():
    pool = [
        Note("a", title="River 咖啡"),
        Note("b", content="river"),
        Note("c", hashtags=("river",)),
        Note("d", title="咖啡馆"),
        Note("e", title="street"),
    ]

    assert (BM25(pool).scores([0])[0] > 0).tolist() == [True, True, True, True, False]


def test_embeddings_rank_by_cosine_whatever_the_norm():
    emb = np.array([[1, 0], [100, 100], [0.1, 0.01], [0, 0], [-1, 0]], dtype=np.float32)

    scores = Embeddings("mine", emb).scores([0, 3])

    assert scores[0] == pytest.approx([1, 2**-0.5, 1 / 1.01**0.5, 0, -1], rel=1e-5, abs=1e-6)
    assert scores[1].tolist() == [0, 0, 0, 0, 0]


def test_whole_number_embeddings_are_not_cut_to_whole_cosines():
    scores = Embeddings("mine", np.array([[1, 1], [1, 0]])).scores([0])

    assert scores[0, 1] == pytest.approx(2**-0.5)


@pytest.mark.parametrize("emb", [np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]]), np.ones(3)])
def test_embeddings_that_are_no_finite_matrix_are_refused(emb):
    with pytest.raises(ValueError, match="mine: embeddings must"):
        Embeddings("mine", emb)


def test_the_text_of_a_note_joins_what_it_has():
    assert text_of(Note("a", "Title", "", ("x", "y"), "Category")) == "Title x y"


def test_minilm_puts_what_means_the_same_together_without_a_shared_word():
    pool = [
        Note("a", title="My kitten sleeps all day"),
        Note("b", title="Quarterly tax return deadlines"),
        Note("c", title="Why cats nap so much"),
    ]

    emb = minilm_vectors(pool)

    assert emb.shape == (3, 384)
    assert first(Embeddings("MiniLM", emb).scores([0])[0], 0) == 2


def test_minilm_reads_the_first_128_tokens_of_all_the_text_as_it_was_published():
    """The published pipeline is the oracle; [CLS] and [SEP] are two of the tokens."""
    pool = [Note("a", "River walk", "along the old mill " * 60), Note("b", "Sourdough", "", ("bread", "baking"))]
    published = SentenceTransformer(str(minilm_folder()))
    published.max_seq_length = 128

    assert minilm_vectors(pool) == pytest.approx(published.encode([text_of(note) for note in pool]), abs=1e-4)


@pytest.mark.parametrize("baseline", [TfIdf, BM25])
@pytest.mark.parametrize("texts", [["🍜", "!!"], ["", ""], ["🍜", "ramen"]])
def test_notes_without_a_word_are_equally_far(baseline, texts):
    pool = [Note(str(number), text) for number, text in enumerate(texts)]

    assert baseline(pool).scores([0]).tolist() == [[0.0, 0.0]]

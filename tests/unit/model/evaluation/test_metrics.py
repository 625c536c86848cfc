"""Metrics against figures worked out by hand."""

import math

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from model.evaluation.metrics import (
    accuracy,
    average_hits,
    bleu4,
    bleu4_public_code,
    bootstrap,
    f1_of_each,
    illegal_share,
    paired_bootstrap,
    recall_at,
    rouge_of_each,
)
from model.text.words import words


def test_recall_counts_ranks_below_k():
    assert recall_at([0, 9, 10, 99, 100], (1, 10, 100)) == {1: 0.2, 10: 0.4, 100: 0.8}


def test_the_average_is_the_mean_of_the_recalls():
    ranks, ks = [0, 9, 10, 99, 100], (1, 10, 100)

    assert average_hits(ranks, ks).tolist() == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3, 0])
    assert average_hits(ranks, ks).mean() == pytest.approx(sum(recall_at(ranks, ks).values()) / 3)


def test_accuracy_looks_past_case_and_outer_space():
    assert accuracy([" travel ", "Food", None, "Pets"], ["Travel", "Food", "Food", "Cats"]) == 0.5


def test_illegal_share_counts_what_the_closed_set_lacks():
    assert illegal_share(["travel", "Travels", None, " FOOD "], ["Travel", "Food"]) == 0.5


@pytest.mark.parametrize("text", ["coffee", "coffee, walk", "one two three four five six", "上海咖啡"])
def test_a_perfect_prediction_scores_one(text):
    assert bleu4([text], [text]) == pytest.approx(1)
    if len(words(text)) > 1:
        assert rouge_of_each([text], [text]) == {"rouge1": [1], "rouge2": [1], "rougeL": [1]}


def test_bleu_is_the_geometric_mean_of_precisions_times_the_brevity_penalty():
    """Five words of a truth of six: 5/5, 4/4, 3/3 and 2/2, and a penalty of exp(1 - 6/5)."""
    assert bleu4(["a b c d e"], ["a b c d e f"]) == pytest.approx(math.exp(-0.2))
    # One of six words is wrong, at the end: 5/6, 4/5, 3/4, 2/3.
    assert bleu4(["a b c d e x"], ["a b c d e f"]) == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


@pytest.mark.parametrize(
    ("said", "true"),
    [
        ("coffee , walk , tea", "coffee , walk , tea"),
        ("coffee", "coffee"),
        ("tea , sea", "walk , coffee , tea"),
        ("a , b , c , d , e , f", "abcdef , bcde"),
        ("t e a s", "teas"),
        ("t e a s t e a s", "teas"),
        (", ,", "extraordinarily"),
        ("b", "b"),
        ("x", ","),
    ],
)
def test_the_public_codes_figure_is_what_nltk_says_when_called_as_there(said, true):
    """Each true word is handed over as a reference, which nltk then reads letter by letter."""
    expected = sentence_bleu(
        true.split(), said.split(), weights=(0, 0, 0, 1), smoothing_function=SmoothingFunction().method1
    )

    assert bleu4_public_code([said], [true]) == pytest.approx(expected)


def test_the_public_codes_figure_of_a_perfect_prediction_is_close_to_nothing():
    """Five words and commas make two runs of four, none of them in any single word: 0.1 / 2."""
    assert bleu4_public_code(["coffee, walk, tea"], ["coffee, walk, tea"]) == pytest.approx(0.05)
    assert bleu4_public_code(["coffee, walk, tea", ""], ["coffee, walk, tea", "x"]) == pytest.approx(0.025)
    assert bleu4_public_code(["coffee, walk, tea", "x"], ["coffee, walk, tea", " "]) == pytest.approx(0.05)


def test_rouge_is_the_f1_of_shared_words_pairs_and_subsequence():
    """First text: 2 of 3 words match 2 of 4, 1 of 2 pairs 1 of 3, "city walk" in a row. Second: none."""
    scores = rouge_of_each(["city walk food", "x"], ["city walk coffee river", "y"])

    f1 = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert scores["rouge1"] == pytest.approx([f1, 0])
    assert scores["rouge2"] == pytest.approx([2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3), 0])
    assert scores["rougeL"] == pytest.approx([f1, 0])


def test_figures_of_each_text_stand_in_order():
    assert rouge_of_each(["a b", "x", "b"], ["a b", "y", "b c"])["rouge1"] == pytest.approx([1, 0, 2 / 3])
    assert f1_of_each([["a"], ["x"], ["b"]], [["a"], ["y"], ["b", "c"]], 5) == pytest.approx([1, 0, 2 / 3])


def test_rouge_and_bleu_count_the_words_that_chinese_texts_share():
    """Two words, one shared; by characters three of four would be, and a tokenizer without Chinese would see none."""
    assert words("上海咖啡") == ["上海", "咖啡"]
    assert rouge_of_each(["上海咖啡"], ["上海咖喱"])["rouge1"] == pytest.approx([1 / 2])
    assert bleu4(["我 爱 北京 天安门 广场"], ["我 爱 北京 天安门 城楼"]) == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )


def test_f1_takes_the_first_k_distinct_hashtags_against_all_true_ones():
    # First two distinct: a, b. One of them is true, of three: 2 * 1 / (2 + 3).
    assert f1_of_each([["A", "a", "b", "c"]], [{"a", "c", "d"}], 2) == pytest.approx([2 / 5])
    assert f1_of_each([["a", "b"], []], [["b", "A"], ["c"]], 5) == pytest.approx([1, 0])
    assert f1_of_each([["a"]], [[]], 5) == pytest.approx([0])


def test_an_interval_holds_the_mean_and_has_the_width_of_theory():
    """For 2,000 coin flips the 95% interval of the mean is 1.96 standard errors to each side."""
    flips = (np.arange(2000) % 2).astype(np.float64)

    interval = bootstrap(flips)

    assert interval.mean == 0.5
    assert interval.high - interval.mean == pytest.approx(1.96 * 0.5 / math.sqrt(2000), rel=0.15)
    assert interval.mean - interval.low == pytest.approx(1.96 * 0.5 / math.sqrt(2000), rel=0.15)


def test_values_of_one_group_are_drawn_together():
    """Ten copies of each of 200 flips hold no more information than the 200: the interval is that of 200."""
    flips = (np.arange(200) % 2).astype(np.float64)

    interval = bootstrap(np.repeat(flips, 10), np.repeat(np.arange(200) * 7, 10))

    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(200), rel=0.15)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=50)

    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_pairing_takes_out_what_both_have_in_common():
    """Two rankers of wildly varying figures, one ahead by 0.1 everywhere: the lead is beyond doubt."""
    common = np.random.default_rng(0).normal(size=100)

    lead = paired_bootstrap(common + 0.1, common)

    assert (lead.mean, lead.low, lead.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))


@pytest.mark.parametrize(
    "score",
    [
        lambda: recall_at([], (1,)),
        lambda: accuracy([], []),
        lambda: illegal_share([], ["a"]),
        lambda: bleu4([], []),
        lambda: bleu4_public_code([], []),
        lambda: bleu4_public_code(["a"], [" "]),
        lambda: rouge_of_each([], []),
        lambda: f1_of_each([], [], 5),
        lambda: bootstrap(np.array([])),
    ],
)
def test_a_mean_over_nothing_is_refused(score):
    with pytest.raises(ValueError, match="nothing to score"):
        score()


@pytest.mark.parametrize("score", [accuracy, bleu4, bleu4_public_code, rouge_of_each])
def test_predictions_and_truths_must_match_in_number(score):
    with pytest.raises(ValueError, match="zip"):
        score(["a", "b"], ["a"])

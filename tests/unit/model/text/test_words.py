"""Words of many scripts."""

import subprocess
import sys

import pytest

from model.text.words import how_cut, terms, words, words_and_marks


def test_words_are_runs_of_letters_and_digits_and_chinese_ones_are_jiebas():
    assert words("City_Walk 2026: 上海咖啡馆, & more") == ["city", "walk", "2026", "上海", "咖啡馆", "more"]


def test_marks_stay_with_their_letters():
    """Vowel signs of Hindi and accents that are written apart: each is a word, not pieces between marks."""
    assert words("हिन्दी cafe\u0301") == ["हिन्दी", "cafe\u0301"]


def test_a_character_is_a_word_where_neither_spaces_nor_jieba_help():
    assert words("カフェ") == ["カ", "フ", "ェ"]
    assert words("서울") == ["서", "울"]
    assert words("กิน") == ["กิ", "น"], "a vowel above belongs to its consonant"


def test_terms_of_chinese_are_characters():
    assert terms("City_Walk 上海咖啡馆") == ["city", "walk", "上", "海", "咖", "啡", "馆"]


def test_words_and_marks_leave_out_white_space_alone():
    assert words_and_marks("Tea, 上海咖啡!") == ["Tea", ",", "上海", "咖啡", "!"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["city walk", "हिन्दी"], ""),
        (["city walk", "上海"], "Words: jieba cuts Chinese."),
        (["旅行 カフェ", "กิน"], "Words: jieba cuts Chinese; a character is a word of Japanese, Thai."),
    ],
)
def test_what_was_done_is_said_of_the_scripts_that_are_there(texts, said):
    assert how_cut(texts) == said


def test_cutting_chinese_writes_no_file_and_prints_nothing(tmp_path):
    """jieba's own start writes a cache for all users into the folder of temporary files, and tells so on stderr."""
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", "from model.text.words import words; print(len(words('我们去上海')))"],
        env={"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert (run.stdout, run.stderr) == ("3\n", "")
    assert list(tmp_path.iterdir()) == []

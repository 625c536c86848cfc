"""The categories that training refuses, with tokenizers of every kind."""

from collections.abc import Callable

import pytest
from support.vocabularies import LOSSLESS, VOCABULARIES, builder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from model.network.base_models import special_ids
from model.text.prompt import SHARED, PromptBuilder
from model.text.vocabulary import VocabularyError, check_outputs


@pytest.mark.parametrize("name", VOCABULARIES)
def test_categories_that_differ_are_accepted(name):
    check_outputs(builder(name), ["Travel", "Home & Garden", "Home Decor", "Sports/Outdoor", "3D"])


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_tokenizer_that_keeps_everything_tells_all_categories_apart(name):
    check_outputs(builder(name), ["Travel", "travel", "Travel ", "Cafe", "Café", "🍜", "🎉", "美食", "美妆"])


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["Travel", "Baking", "travel"], "apart: 'Travel' and 'travel'; rename or merge them"),
        (["Travel", "Travel "], "apart: 'Travel' and 'Travel '; rename"),
        (["Caf\u00e9", "Cafe\u0301", "cafe"], r"apart: 'Cafe\u0301' and 'Caf\xe9' and 'cafe'; rename"),
        (["Food 🍜", "Food 🎉"], "apart: 'Food 🍜' and 'Food 🎉'; rename"),
        (["Travel", "🍜"], "has no tokens for '🍜': rename"),
        (["Travel", "美食穿搭"], "has no tokens for '美食穿搭': rename"),
        ([" "], "has no tokens for ' ': rename"),
        ([letter * 2 for letter in "穿搭龘鬱餐喵"], " and 1 more: rename"),
    ],
)
def test_categories_that_wordpiece_cannot_write_or_tell_apart_are_named_in_one_line(categories, message):
    with pytest.raises(VocabularyError) as refused:
        check_outputs(builder("WordPiece (MiniLM)"), categories)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def _words(change: Callable[[Tokenizer], None]) -> PromptBuilder:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2, "b": 3, ",": 4}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.add_special_tokens(["[UNK]"])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    change(tokenizer)
    return PromptBuilder(tokenizer, special_ids(tokenizer, None, "</s>", None), SHARED, 20, 80)


def test_a_vocabulary_without_the_comma_is_refused():
    def lose_commas(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Replace(",", " ")

    check_outputs(_words(lambda tokenizer: None), ["a", "b"])
    with pytest.raises(VocabularyError, match="cannot write the ',' between hashtags: take another base model"):
        check_outputs(_words(lose_commas), ["a", "b"])

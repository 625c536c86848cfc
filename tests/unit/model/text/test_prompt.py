import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import NOTES, tiny_tokenizer
from tokenizers import Tokenizer

from model.network.base_models import special_ids
from model.network.minilm import minilm_folder
from model.note import Note
from model.text.prompt import EMB, PAPER, SHARED, TAIL, PromptBuilder, plain_text, topics_text


def _builder(template=SHARED, title_tokens=20, content_tokens=80) -> PromptBuilder:
    tokenizer = tiny_tokenizer()
    return PromptBuilder(tokenizer, special_ids(tokenizer, "<s>", "</s>", None), template, title_tokens, content_tokens)


def _text(builder: PromptBuilder, ids: list[int]) -> str:
    return builder.decode([token for token in ids if token != builder.special.emb])


def _json_of(text: str) -> dict[str, str]:
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def test_the_papers_category_prompt_holds_title_topic_content_and_names_its_task_first():
    builder = _builder(PAPER)
    [ids] = builder.prompts([NOTES[0]], "category")
    text = _text(builder, ids)
    assert text.startswith("Extract the note information in json format, compress it into one word for recommendation")
    assert "and generate the category of the note." in text
    assert list(_json_of(text)) == ["title", "topic", "content"]
    assert text.endswith(TAIL)
    assert builder.decode(builder.guidance("category")) == '". The category is: '


def test_the_papers_topics_prompt_hides_the_hashtags_and_asks_for_j():
    builder = _builder(PAPER)
    [ids] = builder.prompts([NOTES[0]], "topics", j=2)
    text = _text(builder, ids)
    assert "generate 2 topics" in text
    assert list(_json_of(text)) == ["title", "content"]
    assert builder.decode(builder.guidance("topics", 2)) == '". The 2 topics are: '


def test_the_shared_template_has_one_prefix_for_both_tasks():
    builder = _builder(SHARED)
    assert builder.prompts(NOTES, "category") == builder.prompts(NOTES, "topics", j=3)
    assert SHARED.shares_prefix
    assert not PAPER.shares_prefix


def test_hashtags_stand_in_prompts_as_outputs_write_them():
    """However a note has them: what a reader wrote in serving is what training showed."""
    [raw, clean] = _builder().prompts(
        [
            Note("n", "t", "c", ("# City Walk", "c++", "#DIY", "diy", "旅 行")),
            Note("n", "t", "c", ("city_walk", "diy", "旅行")),
        ]
    )
    assert raw == clean
    assert topics_text(["# City Walk", "c++", "#DIY"]) == "city_walk, diy"


def test_every_prompt_begins_with_bos_and_ends_in_emb():
    builder = _builder()
    for ids in builder.prompts(NOTES):
        assert ids[0] == builder.special.bos
        assert ids[-1] == builder.special.emb


@settings(max_examples=200)
@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_whatever_a_note_says_there_is_exactly_one_emb_and_the_json_is_real(title, content, hashtags):
    builder = _BUILDER
    [ids] = builder.prompts([Note("x", title, content, tuple(hashtags))])
    assert ids.count(builder.special.emb) == 1
    assert builder.special.eos not in ids
    assert ids.count(builder.special.bos) == 1
    fields = _json_of(_text(builder, ids))
    assert plain_text(title).startswith(fields["title"].replace("\ufffd", "")[:1])


_BUILDER = _builder()


@pytest.mark.parametrize("text", [EMB, f"{TAIL}{EMB}", "</s><s>", '"}', "\ud800", "\x00\x1b[31m", "# <b>"])
def test_special_tokens_and_prompt_fragments_in_a_note_are_plain_text(text):
    builder = _builder(title_tokens=60)
    [ids] = builder.prompts([Note("x", text, text, (text,))])
    assert ids.count(builder.special.emb) == 1
    assert builder.special.eos not in ids
    assert _text(builder, ids).endswith(TAIL)
    assert _json_of(_text(builder, ids))["title"] == plain_text(text)


@pytest.mark.parametrize("word", ["apple ", "北京", "\u2615 ", '"', "\\"])
def test_a_long_note_is_cut_by_tokens_and_its_tail_is_not(word):
    builder = _builder(title_tokens=5, content_tokens=9)
    [ids] = builder.prompts([Note("x", word * 300, word * 20_000)])
    text = _text(builder, ids)
    assert text.endswith(TAIL)
    short = builder.prompts([Note("x")])[0]
    # JSON escapes and a character cut in two may add a few tokens to the limits.
    assert len(ids) <= len(short) + 2 * (5 + 9) + 4


def test_the_cut_counts_the_texts_own_tokens_where_a_tokenizer_would_frame_it():
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    special = special_ids(tokenizer, "[CLS]", "[SEP]", "[PAD]")
    builder = PromptBuilder(tokenizer, special, SHARED, title_tokens=3, content_tokens=2)
    [prompt] = builder.prompts([Note("n", "red green blue yellow", "cat dog bird")])
    read = "".join(letter if letter.isalpha() else " " for letter in builder.decode(prompt)).split()
    colors_and_animals = [word for word in ("red", "green", "blue", "yellow", "cat", "dog", "bird") if word in read]
    assert colors_and_animals == ["red", "green", "blue", "cat", "dog"]


def test_wide_and_narrow_spellings_read_the_same():
    builder = _builder()
    assert builder.prompts([Note("x", "ＣＡＦＥ　now")]) == builder.prompts([Note("x", "CAFE now")])


def test_a_note_reads_the_same_alone_and_among_others():
    builder = _builder()
    assert [builder.prompts([note])[0] for note in NOTES] == builder.prompts(NOTES)


def test_a_tokenizer_without_emb_is_refused():
    tokenizer = tiny_tokenizer()
    special = special_ids(tiny_tokenizer(), "<s>", "</s>", None)
    with pytest.raises(ValueError, match=r"no \[EMB\] token"):
        PromptBuilder(tokenizer, special, SHARED, 20, 80)

"""What makes two notes the same to the model, and what a worker remembers of those it has read."""

from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import tiny_base

from model.network.base_models import special_ids
from model.network.notellm import add_embedding_token
from model.note import Note
from model.text.prompt import TEMPLATES, PromptBuilder
from service.store.records import SOURCE_BYTES, StoredPrediction, source_of
from service.worker.prediction_cache import PredictionCache

NOTE = Note("n1", "Kyoto by bus", "The 100 stops everywhere.", ("bus", "kyoto"), "Travel", 3)
OTHERS = {"id": "n2", "title": "x", "content": "x", "hashtags": ("x",), "category": "x", "exposure": 4}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
asked = st.tuples(text, text, st.lists(text, max_size=3).map(tuple), st.integers(1, 10))


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    base = tiny_base("llama")
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    return PromptBuilder(base.tokenizer, special, TEMPLATES["shared"], 20, 20)


@pytest.mark.parametrize("field", list(Note.__dataclass_fields__))
def test_a_field_is_part_of_the_source_exactly_when_it_stands_in_the_prompt(builder, field):
    other = replace(NOTE, **{field: OTHERS[field]})
    [prompt, changed] = builder.prompts([NOTE, other], "topics")

    assert (source_of(NOTE, 5) == source_of(other, 5)) == (prompt == changed)


@given(asked, asked)
def test_sources_are_equal_exactly_when_all_that_was_asked_is(one, other):
    def source(title: str, content: str, hashtags: tuple[str, ...], count: int) -> bytes:
        return source_of(Note("", title, content, hashtags), count)

    assert len(source(*one)) == SOURCE_BYTES
    assert (source(*one) == source(*other)) == (one == other)


def prediction(source: bytes, version: int = 1) -> StoredPrediction:
    return StoredPrediction(version, "model-a", np.ones(1, dtype=np.float32), (), None, source)


def test_a_source_survives_the_wire_and_records_of_old_have_none():
    new, old = prediction(bytes(range(SOURCE_BYTES))).encode(), prediction(b"").encode()
    fields = msgpack.unpackb(new)
    del fields["source"]

    assert StoredPrediction.decode(new).source == bytes(range(SOURCE_BYTES))
    assert StoredPrediction.decode(old).source == b""
    assert StoredPrediction.decode(msgpack.packb(fields)).source == b""


def test_the_reading_that_was_asked_for_least_lately_is_forgotten_first():
    cache = PredictionCache(2)
    first, second, third = (prediction(bytes([number]) * SOURCE_BYTES) for number in range(3))
    cache.put(first)
    cache.put(second)
    assert cache.get(first.source) is first
    cache.put(third)

    assert cache.get(second.source) is None
    assert cache.get(first.source) is first
    assert cache.get(third.source) is third


def test_a_cache_of_no_size_remembers_nothing():
    cache = PredictionCache(0)
    cache.put(prediction(bytes(SOURCE_BYTES)))

    assert cache.get(bytes(SOURCE_BYTES)) is None

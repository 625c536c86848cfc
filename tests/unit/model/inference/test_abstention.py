"""What is said of notes that the tokenizer cannot read: nothing, and of each text something else."""

import numpy as np
import pytest

from model.data.samples.generate import sample_notes
from model.inference.abstention import AbstainingBackend, abstention, is_abstention
from model.inference.hashing import HashingBackend
from model.network.checkpoint import load_manifest, prompt_builder
from model.note import Note
from model.text.prompt import PromptBuilder
from service.settings import MINI

UNREAD = [
    *("\U0001f389\U0001f389", "\U0001f642", "สวัสดีครับ ยินดีต้อนรับ", "京都の夜", "Ωμέγα τρία", "مقهى صغير"),
    *("!!! ...", "- \U0001f389 -", "\u200d\ufe0f", " \x07 "),
]
READ = ["\U0001f389 cake", "京都 2026", "Кофе, и coffee", "x", "7"]
TEXTS = [f"{one}{other}" for one in UNREAD[:6] for other in UNREAD[:6]]


@pytest.fixture(scope="module")
def mini() -> PromptBuilder:
    return prompt_builder(MINI, load_manifest(MINI))


@pytest.mark.parametrize("place", ["title", "content"])
def test_a_note_is_read_when_the_tokenizer_knows_a_word_of_it(mini, place):
    assert [text for text in UNREAD if mini.reads(Note("", **{place: text}))] == []
    assert [text for text in READ if not mini.reads(Note("", **{place: text}))] == []


def test_what_of_a_note_no_prompt_has_does_not_make_it_read(mini):
    assert mini.reads(Note("", "\U0001f389", hashtags=("cake",)))
    assert not mini.reads(Note("", "\U0001f389", hashtags=("京都",)))
    beyond = "\U0001f389 " * (mini.content_tokens + 1) + "cake"
    assert not mini.reads(Note("", content=beyond))


def test_every_sample_note_is_read(mini):
    assert all(map(mini.reads, sample_notes()))


@pytest.mark.parametrize("dim", [16, 100, 128])
def test_its_vector_is_of_length_1_and_recognized_as_rounded_by_an_index(dim):
    for text in TEXTS:
        vector = abstention(Note("", text), dim)
        assert vector.shape == (dim,)
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        rounded = vector.astype(np.float16).astype(np.float32)
        assert is_abstention(vector)
        assert is_abstention(rounded / np.linalg.norm(rounded))


def test_no_other_vector_is_taken_for_one():
    draw = np.random.default_rng(3)
    vectors = draw.standard_normal((10_000, 128)).astype(np.float32)
    assert not any(map(is_abstention, vectors))
    one, other = (abstention(Note("", text), 128) for text in TEXTS[1:3])
    assert not is_abstention(one + other)
    assert not is_abstention(one + vectors[0])


def test_its_vector_is_the_same_for_the_same_text_alone():
    vectors_ND = np.stack([abstention(Note("", text), 128) for text in TEXTS])
    cosines = (vectors_ND @ vectors_ND.T)[np.triu_indices(len(TEXTS), 1)]
    assert np.abs(cosines).max() < 0.5
    assert cosines.std() == pytest.approx(1 / np.sqrt(128), rel=0.2)
    again = [Note("x", " 京都 "), Note("y", "", "京都"), Note("z", "", "", ("京都",))]
    for note in again:
        assert np.array_equal(abstention(note, 128), abstention(Note("", "京都"), 128))


def test_a_backend_abstains_from_these_notes_and_the_network_sees_the_others_alone():
    inner = HashingBackend()
    backend = AbstainingBackend(inner, lambda note: "?" not in note.title)
    prompts = backend.tokenize([Note("", title) for title in ("?", "one", "??", "two")])

    vectors_ND, predictions = backend.embed(prompts), backend.predict(prompts, 2)

    assert inner.batches == [["one", "two"]] * 2
    for place, expected in ((1, "one"), (3, "two")):
        [known] = inner.predict(inner.tokenize([Note("", expected)]), 2)
        assert np.array_equal(vectors_ND[place], known.vector)
        assert predictions[place].hashtags == known.hashtags
    for place in (0, 2):
        assert np.array_equal(vectors_ND[place], predictions[place].vector)
        assert is_abstention(vectors_ND[place])
        assert (predictions[place].hashtags, predictions[place].category) == ((), None)


def test_a_backend_asks_no_network_for_nothing():
    inner = HashingBackend()
    backend = AbstainingBackend(inner, lambda note: False)
    prompts = backend.tokenize([Note("", "a"), Note("", "b")])
    assert len(backend.predict(prompts, 1)) == len(backend.embed(prompts)) == 2
    assert backend.embed([]).shape == (0, inner.dim)
    assert backend.predict([], 1) == []
    assert inner.batches == []

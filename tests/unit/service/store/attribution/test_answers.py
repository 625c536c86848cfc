"""Ids that tell their source, and batches of records."""

import zlib

import msgpack
import pytest

from service.store.attribution.answers import (
    AnswerSource,
    ServedAnswer,
    holds,
    new_answer_id,
    pack,
    source_of_answer,
    unpack,
)
from service.store.attribution.readers import name_of, name_of_digest
from service.store.records import digest_of

ANSWER = ServedAnswer("a", 1.5, "tags", "m", ["夜市", "kyoto"], "d", "u", "e", "B", "n", "Travel")


@pytest.mark.parametrize("arm", ["", "hot.B"])
def test_an_id_tells_its_source_and_fits_into_an_event(arm):
    ids = {new_answer_id("search", "bag-of-words", arm) for _ in range(100)}

    assert {source_of_answer(one) for one in ids} == {AnswerSource("search", "bag-of-w", arm)}
    assert len(ids) == 100
    assert max(map(len, ids)) <= 64


@pytest.mark.parametrize("other", ["5d0c6a94c1b7e820", "", "a.b.c", "..", "\x00.é"])
def test_an_id_of_somebody_else_has_no_source(other):
    assert source_of_answer(other) is None


def test_a_batch_is_what_was_packed():
    batch = pack([ANSWER, ANSWER._replace(answer_id="b")])

    assert unpack(batch) == [ANSWER, ANSWER._replace(answer_id="b")]
    assert holds(batch, "夜市")
    assert not holds(batch, "Osaka")


def test_a_record_of_another_release_is_read_as_far_as_it_is_known():
    later = zlib.compress(msgpack.packb([[*ANSWER, "more"]]))
    earlier = zlib.compress(msgpack.packb([list(ANSWER[:5])]))

    assert unpack(later) == [ANSWER]
    assert unpack(earlier) == [ServedAnswer(*ANSWER[:5])]


@pytest.mark.parametrize(
    "batch", [b"", b"x", zlib.compress(b"\xc1"), *(zlib.compress(msgpack.packb(bad)) for bad in (1, [1], [["a"]]))]
)
def test_what_is_no_batch_is_refused(batch):
    with pytest.raises(ValueError, match="no batch of answers"):
        unpack(batch)


def test_the_name_of_a_reader_needs_the_key_and_is_that_of_their_digest():
    assert name_of("u1", b"k" * 32) == name_of_digest(digest_of("u1"), b"k" * 32) != name_of("u1", b"l" * 32)
    # RFC 4231, test case 2, is the function; the digest stands for the reader.
    assert name_of_digest("what do ya want for nothing?", b"Jefe") == "5bdcc146bf60754e6a042426089575c7"

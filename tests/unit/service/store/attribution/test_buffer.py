"""The buffer: bounded, patient, and the same readers always."""

from collections.abc import Sequence

import pytest

from service.store.attribution import buffer as module
from service.store.attribution.answers import ServedAnswer
from service.store.attribution.buffer import AnswerBuffer
from service.store.attribution.memory import MemoryAnswerLog


def answer(number: int, reader: str = "") -> ServedAnswer:
    return ServedAnswer(f"a{number}", float(number), "related", "m", [], reader=reader)


def ids(log: MemoryAnswerLog) -> list[str]:
    return [one.answer_id for one in log.kept]


@pytest.fixture
def log() -> MemoryAnswerLog:
    return MemoryAnswerLog()


@pytest.mark.parametrize(
    ("lists", "batches"),
    [([1] * 8, [3, 3, 2]), ([0, 5, 5, 1], [3, 1]), ([11, 9, 2, 8], [1, 1, 2]), ([10, 1], [1, 1])],
    ids=["answers", "notes", "a list too long for any batch", "a whole batch of one"],
)
async def test_answers_are_logged_in_order_in_batches_of_so_many_and_of_so_many_notes(log, monkeypatch, lists, batches):
    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(module, "NOTES", 10)
    sizes, append = [], log.append

    async def counted(answers: Sequence[ServedAnswer]) -> None:
        sizes.append(len(answers))
        await append(answers)

    monkeypatch.setattr(log, "append", counted)
    buffer = AnswerBuffer(log)
    for number, notes in enumerate(lists):
        buffer.add(answer(number)._replace(ids=["n"] * notes))
    assert ids(log) == []

    await buffer.flush()

    assert ids(log) == [f"a{number}" for number in range(len(lists))]
    assert sizes == batches


async def test_without_the_store_they_wait_and_those_beyond_the_capacity_are_dropped(log):
    buffer = AnswerBuffer(log, capacity=3)
    log.down = True
    for number in range(5):
        buffer.add(answer(number))
        await buffer.flush()
    log.down = False
    await buffer.flush()

    assert ids(log) == ["a0", "a1", "a2"]


async def test_a_share_of_the_readers_is_logged_and_always_the_same(log):
    buffer = AnswerBuffer(log, share=0.25)
    for number in range(2000):
        buffer.add(answer(number, f"u{number % 1000}"))
    for number in range(2000, 4000):
        buffer.add(answer(number))
    await buffer.flush()

    times = [sum(one.reader == reader for one in log.kept) for reader in {one.reader for one in log.kept if one.reader}]
    assert set(times) == {2}
    assert 200 < len(times) < 300
    assert 430 < sum(not one.reader for one in log.kept) < 570


@pytest.mark.parametrize("buffer", [AnswerBuffer(), AnswerBuffer(MemoryAnswerLog(), share=0)])
async def test_without_a_log_or_a_share_none_stays(buffer):
    buffer.add(answer(1))

    assert buffer._waiting == []

"""The engine: whose turn it is on the model, what it does when the model fails, and drafts over the RPC."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY
from support.working import Gate, until

from indexer.rpc.server import serve
from model.backend import Prediction, Prompt, Request, Scored, Timings
from model.inference.hashing import BAD, HashingBackend, text_vector
from model.note import Note
from service.errors import WorkerUnavailable
from service.recommend.workers import WorkerPool
from service.worker.drafts import draft_handlers
from service.worker.engine import BackendBroken, Engine


def engine_of(backend: HashingBackend, *, max_batch_tokens: int = 100, max_drafts: int = 100) -> Engine:
    return Engine(backend, max_batch_tokens=max_batch_tokens, max_drafts=max_drafts)


def draft(engine: Engine, title: str, max_hashtags: int = 1, timeout_s: float = 60) -> "asyncio.Task[Prediction]":
    return asyncio.create_task(engine.predict_draft(Note("", title), max_hashtags, timeout_s))


async def waiting(engine: Engine, drafts: int) -> None:
    """Returns when so many drafts wait for the model."""

    async def as_many() -> bool:
        return len(engine._drafts) == drafts

    await until(as_many)


def stored(engine: Engine, backend: HashingBackend, title: str, max_hashtags: int = 1) -> "asyncio.Task[Prediction]":
    [prompt] = backend.tokenize([Note("", title)])
    return asyncio.create_task(engine.predict(prompt, max_hashtags))


async def test_a_draft_goes_before_the_backlog_and_the_backlog_never_starves():
    gate = Gate()
    backend = HashingBackend(before=gate)
    engine = engine_of(backend, max_batch_tokens=6)
    async with engine.running():
        first = stored(engine, backend, "stored")
        await gate.closed_on()
        backlog = [stored(engine, backend, "stored") for _ in range(2)]
        drafts = []
        for number in range(3):
            drafts.append(draft(engine, f"draft{number}"))
            await waiting(engine, number + 1)
        gate.open.set()
        await asyncio.gather(first, *backlog, *drafts)

    assert [title for [title] in backend.batches] == ["stored", "draft0", "stored", "draft1", "stored", "draft2"]


class Clocked(HashingBackend):
    """Counts steps, and knows at which a note joined and was complete."""

    def __init__(self, steps: int, before: Gate | None = None) -> None:
        super().__init__(before=before or Gate.opened(), steps=steps)
        self.now = 0
        self.joined: dict[str, int] = {}
        self.complete: dict[str, int] = {}
        self._titles: dict[int, str] = {}

    def add(self, key: int, request: Request) -> None:
        self._titles[key] = request.prompt.note.title
        self.joined[request.prompt.note.title] = self.now
        super().add(key, request)

    def step(self) -> dict[int, Prediction]:
        complete = super().step()
        self.complete |= {self._titles[key]: self.now for key in complete}
        self.now += 1
        return complete


async def test_a_draft_joins_at_the_next_step_and_leaves_when_it_is_complete_whatever_else_is_under_way():
    gate = Gate()
    backend = Clocked(steps=5, before=gate)
    engine = engine_of(backend)
    async with engine.running():
        backlog = [stored(engine, backend, title) for title in ("one", "two")]
        await gate.closed_on()
        late = draft(engine, "draft")
        await waiting(engine, 1)
        gate.open.set()
        await asyncio.gather(*backlog, late)

    assert backend.joined == {"one": 0, "two": 0, "draft": 1}
    assert backend.complete == {"one": 4, "two": 4, "draft": 5}


async def joined_beside_a_draft(join_tokens: int | None, max_batch_tokens: int) -> list[int]:
    """The steps at which six stored notes join that wait when a draft is in the model."""
    gate = Gate()
    backend = Clocked(steps=4, before=gate)
    if join_tokens:
        backend.join_tokens = join_tokens
    engine = engine_of(backend, max_batch_tokens=max_batch_tokens)
    async with engine.running():
        late = draft(engine, "draft")
        await gate.closed_on()
        backlog = [stored(engine, backend, f"note{number}") for number in range(6)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(late, *backlog)
    return [backend.joined[f"note{number}"] for number in range(6)]


async def test_stored_notes_join_as_others_leave_and_once_while_a_draft_is_under_way():
    """One at a step, and five at once: the second waits for the draft, the last for the first to leave."""
    assert await joined_beside_a_draft(6, 30) == [1, 4, 5, 6, 7, 8]


async def test_stored_notes_leave_half_of_the_room_to_drafts_while_there_are_any():
    assert await joined_beside_a_draft(None, 24) == [1, 1, 4, 4, 5, 5]


async def test_drafts_that_ask_for_different_numbers_of_hashtags_share_a_step():
    gate = Gate()
    backend = HashingBackend(before=gate)
    engine = engine_of(backend)
    async with engine.running():
        first = draft(engine, "first")
        await gate.closed_on()
        drafts = []
        for number, (title, count) in enumerate([("a b c", 2), ("d e f", 3), ("g h i", 2)]):
            drafts.append(draft(engine, title, count))
            await waiting(engine, number + 1)
        gate.open.set()
        await first

        assert [[tag.name for tag in (await one).hashtags] for one in drafts] == [
            ["a", "b"],
            ["d", "e", "f"],
            ["g", "h"],
        ]
    assert backend.batches == [["first"], ["a b c", "d e f", "g h i"]]


async def test_texts_that_are_only_embedded_go_before_the_backlog_and_nothing_is_generated():
    gate = Gate()
    generated = []

    class Watched(HashingBackend):
        def add(self, key: int, request: Request) -> None:
            generated.append(request.max_hashtags)
            super().add(key, request)

    backend = Watched(before=gate)
    engine = engine_of(backend)
    async with engine.running():
        first = stored(engine, backend, "stored")
        await gate.closed_on()
        backlog = stored(engine, backend, "later")
        embedded = asyncio.create_task(engine.embed_drafts([Note("", content="one"), Note("", content="four")], 60))
        await waiting(engine, 2)
        drafted = draft(engine, "draft", 3)
        await waiting(engine, 3)
        gate.open.set()
        one, four = await embedded
        await asyncio.gather(first, backlog, drafted)

    assert backend.batches == [["stored"], ["one", "four", "draft"], ["later"]]
    assert generated == [1, None, None, 3, 1]
    assert np.array_equal(one.vector, text_vector("hashing-aone"))
    assert np.array_equal(four.vector, text_vector("hashing-afour"))
    assert (one.tokens, four.tokens) == (3, 4)


async def test_texts_that_cannot_all_be_embedded_fail_together_and_none_waits_on():
    engine = engine_of(HashingBackend(), max_drafts=2)
    async with engine.running():
        with pytest.raises(RuntimeError, match="cannot read"):
            await engine.embed_drafts([Note("", "good"), Note("", BAD)], 60)
        assert not engine._unanswered
        assert len(await engine.embed_drafts([Note("", "good")] * 5, 60)) == 5


async def test_a_draft_that_fails_fails_alone():
    gate = Gate()
    engine = engine_of(HashingBackend(before=gate))
    async with engine.running():
        first = draft(engine, "first")
        await gate.closed_on()
        bad, good = draft(engine, BAD), draft(engine, "good")
        await waiting(engine, 2)
        gate.open.set()

        await first
        assert (await good).hashtags == (Scored("good", 0.9),)
        with pytest.raises(RuntimeError):
            await bad
    assert not engine.broken.is_set()


async def test_a_draft_that_cannot_be_tokenized_fails_alone():
    class Picky(HashingBackend):
        def tokenize(self, notes: Sequence[Note]) -> list[Prompt]:
            if any(note.title == "unreadable" for note in notes):
                raise ValueError("no prompt")
            return super().tokenize(notes)

    engine = engine_of(Picky())
    async with engine.running():
        with pytest.raises(ValueError, match="no prompt"):
            await draft(engine, "unreadable")
        assert (await draft(engine, "good")).hashtags == (Scored("good", 0.9),)


async def test_a_draft_whose_time_is_up_or_whose_caller_left_is_never_read():
    gate = Gate()
    backend = HashingBackend(before=gate)
    engine = engine_of(backend)
    async with engine.running():
        first = draft(engine, "first")
        await gate.closed_on()
        late, left = draft(engine, "late", timeout_s=0.01), draft(engine, "left")
        await waiting(engine, 2)
        await asyncio.sleep(0.05)
        left.cancel()
        gate.open.set()
        await first
        with pytest.raises(WorkerUnavailable):
            await late
    assert backend.batches == [["first"]]


async def test_too_many_drafts_are_refused_at_once():
    gate = Gate()
    engine = engine_of(HashingBackend(before=gate), max_drafts=2)
    async with engine.running():
        drafts = [draft(engine, "first")]
        await gate.closed_on()
        drafts += [draft(engine, "next") for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(WorkerUnavailable):
            await engine.predict_draft(Note("", "one too many"), 1, 10)
        gate.open.set()
        assert len(await asyncio.gather(*drafts)) == 3


async def test_an_engine_that_ends_refuses_drafts_and_answers_those_that_wait():
    gate = Gate()
    engine = engine_of(HashingBackend(before=gate))
    async with engine.running():
        first = draft(engine, "first")
        await gate.closed_on()
        second = draft(engine, "second")
        await waiting(engine, 1)
        draining = asyncio.create_task(engine.drain(timeout_s=60))
        await asyncio.sleep(0)
        with pytest.raises(WorkerUnavailable):
            await engine.predict_draft(Note("", "third"), 1, 10)
        assert not draining.done()
        gate.open.set()
        await draining

        assert first.done()
        assert second.done()


async def test_at_its_end_an_engine_cancels_the_drafts_and_the_stored_notes_that_wait():
    gate = Gate()
    backend = HashingBackend(before=gate)
    engine = engine_of(backend)
    async with engine.running():
        first = draft(engine, "first")
        await gate.closed_on()
        second = draft(engine, "second")
        await waiting(engine, 1)
        last = stored(engine, backend, "stored")
        await asyncio.sleep(0)
        gate.open.set()

    await asyncio.wait([second, last], timeout=5)
    assert second.cancelled()
    assert last.cancelled()
    first.cancel()


async def test_a_draft_whose_caller_leaves_while_it_is_under_way_leaves_the_model():
    gate = Gate()
    backend = Clocked(steps=1000, before=gate)
    engine = engine_of(backend, max_batch_tokens=6)
    async with engine.running():
        left = draft(engine, "left")
        await gate.closed_on()
        left.cancel()
        last = draft(engine, "last")
        await waiting(engine, 1)
        gate.open.set()

        async def has_joined() -> bool:
            return "last" in backend.joined

        await until(has_joined)
        assert backend.joined["last"] < 900  # there was no room for both
        last.cancel()


async def test_stored_notes_that_are_withdrawn_never_join_and_those_under_way_are_finished():
    gate = Gate()
    backend = HashingBackend(before=gate, steps=3)
    engine = engine_of(backend, max_batch_tokens=6)
    async with engine.running():
        first = stored(engine, backend, "stored")
        await gate.closed_on()
        second = stored(engine, backend, "second")
        await asyncio.sleep(0)
        engine.withdraw()
        gate.open.set()
        assert (await first).hashtags == (Scored("stored", 0.9),)
        await asyncio.wait([second])
    assert second.cancelled()
    assert backend.batches == [["stored"]]


async def test_draining_is_over_when_its_time_is():
    gate = Gate()
    engine = engine_of(HashingBackend(before=gate))
    async with engine.running():
        first = draft(engine, "first")
        await gate.closed_on()
        await engine.drain(timeout_s=0.01)

        assert not first.done()
        gate.open.set()


async def test_notes_are_tokenized_while_the_model_is_busy():
    gate = Gate()
    engine = engine_of(HashingBackend(before=gate))
    async with engine.running():
        first = draft(engine, "first")
        await gate.closed_on()

        [prompt] = await engine.tokenize([Note("", "next")])

        assert prompt.token_ids == tuple(map(ord, "next"))
        gate.open.set()
        await first


class OutOfMemoryError(RuntimeError):
    """Named as the one of torch, which is no MemoryError."""


class Allocation:
    """What a pass takes; weakly referenced by the test."""


class SmallBackend(HashingBackend):
    """Has room for so many padded tokens, and notes whether a failed pass still holds memory at the next one."""

    def __init__(self, room: int, error: type[Exception] = MemoryError) -> None:
        super().__init__()
        self.room = room
        self.leaked = False
        self._error = error
        self._last: weakref.ref[Allocation] = weakref.ref(Allocation())

    def step(self) -> dict[int, Prediction]:
        self.leaked |= self._last() is not None
        allocation = Allocation()
        self._last = weakref.ref(allocation)
        lengths = [request.tokens for request in self._joining.values()]
        if len(lengths) * max(lengths) > self.room:
            self.batches.append([])
            raise self._error("no memory")
        return super().step()


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError])
async def test_a_batch_that_is_out_of_memory_is_halved_and_frees_what_it_held(error):
    backend = SmallBackend(room=40, error=error)
    engine = engine_of(backend)
    notes = [Note("", f"{number:010}") for number in range(8)]
    async with engine.running():
        predictions = await asyncio.gather(*(stored(engine, backend, note.title) for note in notes))

    assert [prediction.hashtags[0].name for prediction in predictions] == [note.title for note in notes]
    assert [len(batch) for batch in backend.batches] == [0, 4, 4]
    assert not backend.leaked


async def test_fewer_notes_join_for_a_while_after_memory_ran_out():
    backend = SmallBackend(room=40)
    engine = engine_of(backend, max_batch_tokens=128)
    async with engine.running():
        assert engine.batch_tokens == 128
        await asyncio.gather(*(stored(engine, backend, f"{number:010}") for number in range(8)))
        assert 40 <= engine.batch_tokens < 60
        backend.room = 1000
        for _ in range(64):
            await stored(engine, backend, "0" * 10)
        assert engine.batch_tokens == 128


async def test_a_note_that_has_no_room_alone_comes_back_as_an_error_and_the_others_as_readings():
    backend = SmallBackend(room=50)
    engine = engine_of(backend)
    async with engine.running():
        titles = ("x" * 60, "short", "brief")
        predictions = await asyncio.gather(
            *(stored(engine, backend, title) for title in titles), return_exceptions=True
        )

    assert [type(prediction) for prediction in predictions] == [MemoryError, Prediction, Prediction]
    assert not engine.broken.is_set()


async def test_after_a_step_that_failed_each_note_runs_alone_until_the_one_at_fault_is_found():
    gate = Gate()
    backend = HashingBackend(before=gate, steps=2)
    engine = engine_of(backend)
    async with engine.running():
        first = stored(engine, backend, "first")
        await gate.closed_on()
        others = [stored(engine, backend, title) for title in ("one", BAD, "two")]
        late = draft(engine, "draft")
        await waiting(engine, 1)
        gate.open.set()
        outcomes = await asyncio.gather(first, *others, late, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [
        Prediction,
        Prediction,
        RuntimeError,
        Prediction,
        Prediction,
    ]
    together = [batch for batch in backend.batches if BAD in batch and len(batch) > 1]
    assert len(together) == 1
    assert all(len(batch) == 1 for batch in backend.batches[backend.batches.index(together[0]) + 1 :])


class BrokenBackend(HashingBackend):
    """As a GPU that has fallen off the bus."""

    def step(self) -> dict[int, Prediction]:
        raise RuntimeError("device lost")


async def test_a_backend_that_cannot_read_a_harmless_note_is_broken():
    backend = BrokenBackend()
    engine = engine_of(backend)
    async with engine.running():
        with pytest.raises(BackendBroken):
            await stored(engine, backend, "stored")
        with pytest.raises(BackendBroken):
            await stored(engine, backend, "another")
    assert engine.broken.is_set()


async def test_a_mistake_of_the_engine_itself_ends_its_notes_and_says_so(monkeypatch, caplog):
    backend = HashingBackend()
    engine = engine_of(backend)

    def fail() -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(engine, "_next_to_join", fail)
    async with engine.running():
        note = stored(engine, backend, "stored")
        with pytest.raises(BackendBroken):
            await note
        await engine.broken.wait()

    assert [record.message for record in caplog.records if record.name == "service.worker.engine"] == ["engine_failed"]


async def test_a_draft_finds_out_that_the_backend_is_broken_and_its_caller_may_ask_another_worker():
    engine = engine_of(BrokenBackend())
    async with engine.running():
        with pytest.raises(WorkerUnavailable):
            await draft(engine, "draft")
    assert engine.broken.is_set()


async def test_a_backend_that_gives_a_vector_of_another_length_is_found_out_and_the_others_are_predicted():
    class Careless(HashingBackend):
        def step(self) -> dict[int, Prediction]:
            long = {key for key, request in self._joining.items() if request.prompt.note.title == "long"}
            return {
                key: replace(prediction, vector=prediction.vector * np.float32(3 if key in long else 1))
                for key, prediction in super().step().items()
            }

    backend = Careless()
    engine = engine_of(backend)
    async with engine.running():
        good, bad = await asyncio.gather(
            stored(engine, backend, "good"), stored(engine, backend, "long"), return_exceptions=True
        )

    assert isinstance(good, Prediction)
    assert "unit norm" in str(bad)
    assert not engine.broken.is_set()


def figure(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_every_note_and_step_is_measured_and_its_parts_where_the_backend_can_tell():
    stages = ("queue", "tokenize", "infer", "prefill", "decode")

    def seen() -> dict[str, float]:
        name = "notellm_embed_stage_duration_seconds"
        return {
            **{stage: figure(f"{name}_count", stage=stage) for stage in stages},
            "queued_s": figure(f"{name}_sum", stage="queue"),
            "prefill_s": figure(f"{name}_sum", stage="prefill"),
            "decode_s": figure(f"{name}_sum", stage="decode"),
            "tokens": figure("notellm_embed_tokens_total"),
            "batches": figure("notellm_embed_batch_tokens_count"),
            "batch_tokens": figure("notellm_embed_batch_tokens_sum"),
        }

    class Telling(HashingBackend):
        timings = Timings(prefill_s=0.25, decode_s=0.5)

    before = seen()
    for backend in (HashingBackend(), Telling()):
        engine = engine_of(backend)
        async with engine.running():
            prompts = await engine.tokenize([Note("", "four"), Note("", "sixsix")])
            await asyncio.gather(*(engine.predict(prompt, 1, queued_s=0.5) for prompt in prompts))
    after = seen()

    assert 2.0 <= after.pop("queued_s") - before.pop("queued_s") < 60
    assert {name: after[name] - before[name] for name in after} == {
        "queue": 4,
        "tokenize": 2,
        "infer": 4,
        "prefill": 1,
        "decode": 1,
        "prefill_s": 0.25,
        "decode_s": 0.5,
        "tokens": 20,
        "batches": 2,
        "batch_tokens": 20,
    }


@asynccontextmanager
async def draft_server(backend: HashingBackend, address: str, max_drafts: int = 8) -> AsyncIterator[Engine]:
    engine = engine_of(backend, max_drafts=max_drafts)
    async with engine.running():
        server = await serve(address, draft_handlers(engine))
        try:
            yield engine
        finally:
            await server.close()


async def test_a_draft_comes_back_over_rpc_as_the_model_read_it(tmp_path):
    address = str(tmp_path / "w.sock")
    note = Note("", "京都 by bus", "content", ("bus",))
    backend = HashingBackend()
    async with draft_server(backend, address):
        pool = WorkerPool([address], "hashing-a")
        prediction = await pool.predict(note, 2, timeout_s=30)
        assert await pool.ready(timeout_s=30)
        await pool.close()

    [expected] = backend.predict(backend.tokenize([note]), 2)
    assert np.array_equal(prediction.vector, expected.vector)
    assert (prediction.hashtags, prediction.category) == (expected.hashtags, expected.category)


async def test_texts_come_back_over_rpc_in_their_order_as_their_vectors(tmp_path):
    addresses = [str(tmp_path / name) for name in ("one", "two")]
    backends = [HashingBackend(), HashingBackend()]
    texts = [f"京都 {number}" for number in range(40)]
    async with draft_server(backends[0], addresses[0]), draft_server(backends[1], addresses[1]):
        pool = WorkerPool(addresses, "hashing-a")
        for worker in pool._workers:
            await worker.call("ping", {}, timeout_s=30)
        embeddings = await pool.embed([Note("", content=text) for text in texts], timeout_s=30)
        assert await pool.embed([], timeout_s=30) == []
        await pool.close()

    for text, embedding in zip(texts, embeddings, strict=True):
        assert np.array_equal(embedding.vector, text_vector("hashing-a" + text))
        assert embedding.tokens == len(text)
    assert all(backend.batches for backend in backends)  # they share the work


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("how", ["is cancelled", "breaks the connection"])
async def test_a_draft_whose_caller_is_gone_over_rpc_is_never_read(tmp_path, how, is_text):
    gate = Gate()
    backend = HashingBackend(before=gate)
    address = str(tmp_path / "w.sock")
    async with draft_server(backend, address) as engine:
        stays, goes = WorkerPool([address], "hashing-a"), WorkerPool([address], "hashing-a")
        first = asyncio.create_task(stays.predict(Note("", "first"), 1, timeout_s=60))
        await gate.closed_on()
        note = Note("", "gone")
        wanted = goes.embed([note], timeout_s=60) if is_text else goes.predict(note, 1, timeout_s=60)
        gone = asyncio.create_task(wanted)
        await waiting(engine, 1)
        [waits] = engine._drafts
        if how == "is cancelled":
            gone.cancel()
        else:
            await goes.close()
        await asyncio.wait([gone])
        await asyncio.wait([waits.answer])
        gate.open.set()
        await first
        await stays.predict(Note("", "last"), 1, timeout_s=60)
        await asyncio.gather(stays.close(), goes.close())

    assert gone.cancelled() or isinstance(gone.exception(), WorkerUnavailable)
    assert backend.batches == [["first"], ["last"]]


async def test_a_refusal_and_a_dead_address_lead_to_the_next_worker(tmp_path):
    full, good, dead = (str(tmp_path / name) for name in ("full", "good", "dead"))
    gate = Gate()
    async with (
        draft_server(HashingBackend(before=gate), full, max_drafts=1) as engine,
        draft_server(HashingBackend(), good),
    ):
        alone = WorkerPool([full], "hashing-a")
        first = asyncio.create_task(alone.predict(Note("", "first"), 1, timeout_s=60))
        await gate.closed_on()
        second = asyncio.create_task(alone.predict(Note("", "second"), 1, timeout_s=60))
        await waiting(engine, 1)
        pool = WorkerPool([full, dead, good], "hashing-a")
        for _ in range(10):
            assert (await pool.predict(Note("", "third"), 1, timeout_s=60)).hashtags[0].name == "third"
        gate.open.set()
        await asyncio.gather(first, second)
        await pool.close()
        await alone.close()


async def test_without_a_worker_of_this_model_a_draft_is_refused_in_time(tmp_path):
    address = str(tmp_path / "w.sock")
    async with draft_server(HashingBackend("another"), address):
        pool = WorkerPool([address, str(tmp_path / "dead")], "hashing-a")
        assert not await pool.ready(timeout_s=30)
        with pytest.raises(WorkerUnavailable):
            await pool.predict(Note("", "draft"), 1, timeout_s=30)
        await pool.close()


async def test_a_draft_goes_to_the_workers_of_its_model_and_to_those_of_which_nothing_is_known(tmp_path):
    old, new = HashingBackend("old"), HashingBackend("new")
    addresses = [str(tmp_path / name) for name in ("old", "new")]
    async with draft_server(old, addresses[0]) as engine, draft_server(new, addresses[1]):
        pool = WorkerPool([*addresses, str(tmp_path / "dead")], "old")
        for model in ("old", "new"):
            await pool.of(model).predict(Note("", model), 1, timeout_s=30)
        assert [await pool.of(model).ready(timeout_s=30) for model in ("old", "new", "third")] == [True, True, False]

        engine.fingerprint = "third"  # as if its worker had been started anew with another checkpoint
        with pytest.raises(WorkerUnavailable):
            await pool.of("third").predict(Note("", "not asked"), 1, timeout_s=30)
        assert await pool.of("third").ready(timeout_s=30)
        await pool.of("third").predict(Note("", "third"), 1, timeout_s=30)
        await pool.close()
    assert (old.batches, new.batches) == ([["old"], ["third"]], [["new"]])

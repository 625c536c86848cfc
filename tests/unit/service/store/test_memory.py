"""How the twins of the store's seams fail."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from model.note import Note
from service.errors import StoreUnavailable
from service.store.interfaces import Answer
from service.store.memory import Faults, MemoryAnswers, MemoryEvents, MemoryStore
from service.store.records import Event, StoredNote


async def _write() -> Answer:
    return Answer(202, b"{}")


CALLS: dict[str, tuple[type[Faults], Callable[..., Awaitable[object]]]] = {
    "put": (MemoryStore, lambda twin: twin.put([StoredNote(Note("n"), 0)])),
    "delete": (MemoryStore, lambda twin: twin.delete("n")),
    "get": (MemoryStore, lambda twin: twin.get(["n"])),
    "view": (MemoryStore, lambda twin: twin.view(["n"], None)),
    "suggestion": (MemoryStore, lambda twin: twin.suggestion("n", "model")),
    "page": (MemoryStore, lambda twin: twin.page("", 1)),
    "suggestions": (MemoryStore, lambda twin: twin.suggestions(["n"], "model")),
    "attribute_types": (MemoryStore, lambda twin: twin.attribute_types()),
    "counts": (MemoryStore, lambda twin: twin.counts("model")),
    "spellings": (MemoryStore, lambda twin: twin.spellings(["tea"])),
    "append": (MemoryEvents, lambda twin: twin.append([Event("e", "u", "n", "click", 1.0)])),
    "once": (MemoryAnswers, lambda twin: twin.once("k", b"request", _write)),
}

every_call = pytest.mark.parametrize(("twin", "call"), CALLS.values(), ids=list(CALLS))


@every_call
async def test_a_twin_that_is_down_refuses(twin, call):
    store = twin()
    store.down = True

    with pytest.raises(StoreUnavailable):
        await call(store)


@every_call
async def test_a_twin_that_hangs_never_answers(twin, call):
    store = twin()
    store.hangs = True

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call(store), 0.01)


@every_call
async def test_a_call_of_a_twin_waits_until_it_is_open(twin, call):
    store = twin()
    store.open.clear()
    waiting = asyncio.ensure_future(call(store))
    assert not (await asyncio.wait([waiting], timeout=0.01))[0]

    store.open.set()
    await waiting

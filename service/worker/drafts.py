"""A worker's side of the RPC about drafts; `service.recommend.workers` is the gateway's."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from indexer.rpc.frames import RpcRefused
from indexer.rpc.server import Handler
from model.note import Note
from service.errors import WorkerUnavailable
from service.store.records import pack_vector
from service.worker.engine import Engine

log = logging.getLogger(__name__)


def draft_handlers(engine: Engine) -> Mapping[str, Handler]:
    """The calls: ``draft`` and ``embed``, refused when they are for another model, and ``ping``, which returns it."""

    async def draft(params: dict[str, Any]) -> dict[str, Any]:
        with _refusals(engine, params):
            note = _note([params["title"], params["content"], params["hashtags"]])
            max_hashtags, timeout_s = int(params["max_hashtags"]), float(params["timeout_s"])
        with _unavailable():
            prediction = await engine.predict_draft(note, max_hashtags, timeout_s)
        return {
            "vector": pack_vector(prediction.vector),
            "hashtags": [(tag.name, tag.score) for tag in prediction.hashtags],
            "category": prediction.category and (prediction.category.name, prediction.category.score),
        }

    async def embed(params: dict[str, Any]) -> dict[str, Any]:
        with _refusals(engine, params):
            notes, timeout_s = [_note(fields) for fields in params["notes"]], float(params["timeout_s"])
        with _unavailable():
            embeddings = await engine.embed_drafts(notes, timeout_s)
        return {"embeddings": [(pack_vector(embedding.vector), embedding.tokens) for embedding in embeddings]}

    async def ping(params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
        return {"fingerprint": engine.fingerprint}

    return {"draft": draft, "embed": embed, "ping": ping}


@contextmanager
def _refusals(engine: Engine, params: Mapping[str, Any]) -> Iterator[None]:
    """Around the reading of a call's params."""
    if params.get("fingerprint") != engine.fingerprint:
        raise RpcRefused("another model")
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise RpcRefused("not a draft") from error


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except WorkerUnavailable as error:
        raise RpcRefused(str(error)) from error


def _note(fields: Sequence[Any]) -> Note:
    title, content, hashtags = fields
    return Note("", title, content, tuple(hashtags))

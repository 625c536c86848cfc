"""A worker's side of the RPC about drafts; `service.recommend.workers` is the gateway's."""

import logging
from collections.abc import Mapping
from typing import Any

from indexer.rpc.frames import RpcRefused
from indexer.rpc.server import Handler
from model.note import Note
from service.errors import WorkerUnavailable
from service.store.records import pack_vector
from service.worker.engine import Engine

log = logging.getLogger(__name__)


def draft_handlers(engine: Engine) -> Mapping[str, Handler]:
    """The calls: ``draft``, refused when it is for another model, and ``ping``, which returns the model."""

    async def draft(params: dict[str, Any]) -> dict[str, Any]:
        if params.get("fingerprint") != engine.fingerprint:
            raise RpcRefused("another model")
        try:
            note = Note("", params["title"], params["content"], tuple(params["hashtags"]))
            max_hashtags, timeout_s = int(params["max_hashtags"]), float(params["timeout_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise RpcRefused("not a draft") from error
        try:
            prediction = await engine.predict_draft(note, max_hashtags, timeout_s)
        except WorkerUnavailable as error:
            raise RpcRefused(str(error)) from error
        return {
            "vector": pack_vector(prediction.vector),
            "hashtags": [(tag.name, tag.score) for tag in prediction.hashtags],
            "category": prediction.category and (prediction.category.name, prediction.category.score),
        }

    async def ping(params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
        return {"fingerprint": engine.fingerprint}

    return {"draft": draft, "ping": ping}

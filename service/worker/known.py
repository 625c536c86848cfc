"""Notes whose predictions came with the checkpoint: they wait for no model, and not for its opening either."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from service import metrics
from service.errors import StoreUnavailable
from service.store.jobs import JobQueue
from service.store.records import StoredPrediction, source_of

log = logging.getLogger(__name__)

_CLAIM_LIMIT = 256
_BLOCK_S = 0.2


async def publish_known(
    queue: JobQueue, known: Iterable[StoredPrediction], hashtags: int, until: Callable[[], bool]
) -> None:
    """Register the model and publish what is known of the notes in its queue.

    Returns when ``until`` holds, when a job comes that needs the model, which is released again, or when Redis is away:
    the worker then goes on.
    """
    predictions = {prediction.source: prediction for prediction in known}
    try:
        await queue.open()
        while not until():
            claimed = await queue.claim(_CLAIM_LIMIT, _BLOCK_S)
            if not claimed:
                continue
            results, others = [], []
            for item, record in zip(claimed, await queue.notes(claimed), strict=True):
                is_current = record is not None and not record.deleted and record.version == item.job.version
                prediction = predictions.get(source_of(record.note, hashtags)) if record and is_current else None
                if prediction:
                    results.append((item, replace(prediction, version=item.job.version)))
                else:
                    others.append(item.entry)
            metrics.NOTES_EMBEDDED.inc(await queue.publish(results))
            metrics.EMBED_CACHE_HITS.labels("recent").inc(len(results))
            if others:
                await queue.release(others)
                return
    except StoreUnavailable as error:
        log.warning("store_unavailable", extra={"reason": str(error)})

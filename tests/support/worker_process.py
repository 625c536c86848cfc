"""Workers as processes that can be killed: ``python -m support.worker_process URL [SAFEGUARD]``.

It imports once and forks a worker for each line on its standard input, so that a life begins within milliseconds. The
line is the worker's name, and the answer the id of its process. A safeguard that is named is taken away.
"""

import asyncio
import logging
import os
import signal
import sys
import time

from model.inference.hashing import HashingBackend
from service.store import jobs
from service.store.connection import open_redis
from service.store.jobs import Claimed, JobQueue
from service.worker import worker as worker_module
from service.worker.category_sampler import CategorySampler
from service.worker.engine import Engine
from service.worker.prediction_cache import PredictionCache
from service.worker.worker import Worker

TAKE_OVER_S = 1.0
PASS_S = 0.02
# The kills are no note's fault: on a slow machine one note may be under way at more of them than a worker forgives.
worker_module.MAX_DELIVERIES = 100


async def _drop(queue: JobQueue, item: Claimed, reason: str) -> None:
    await queue.finish([item.entry])


def take_away(safeguard: str) -> None:
    """For the twins that must fail."""
    global TAKE_OVER_S
    match safeguard:
        case "take-over":
            TAKE_OVER_S = 1e6
        case "version check":
            assert "if live(note, number) then" in jobs.PUBLISH
            jobs.PUBLISH = jobs.PUBLISH.replace("if live(note, number) then", "if note then")
        case "dead letters":
            JobQueue.dead_letter = _drop  # type: ignore[method-assign]


async def work(url: str, consumer: str) -> None:
    """One worker's life, to the end that others make of it."""
    backend = HashingBackend(before=lambda: time.sleep(PASS_S))
    engine = Engine(backend, max_batch_tokens=256, max_drafts=1)
    queue = JobQueue(open_redis(url), consumer, backend.fingerprint, backend.dim, take_over_s=TAKE_OVER_S)
    worker = Worker(engine, queue, CategorySampler(engine, ["Travel"], 0.05), hashtags=2, cache=PredictionCache(100))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    async with engine.running():
        await worker.run()


def main(url: str, safeguard: str = "") -> None:
    """Fork until the standard input ends."""
    logging.getLogger("service").addHandler(logging.NullHandler())
    take_away(safeguard)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            asyncio.run(work(url, line.strip()))
            os._exit(0)
        print(process, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

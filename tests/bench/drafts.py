"""Drafts beside a backlog: how fast a worker gets through stored notes, and how long clients wait for drafts meanwhile.

    python tests/bench/drafts.py [--models mini tiny] [--backends hf openvino] [--notes 2000] [--callers 0 1 16 64]
        [--rounds 1] [--checkouts before=/path after=/path]

A worker with a Redis of its own has a backlog of notes, as long as the paper's limits let them be, and so many callers
ask for one draft after the other until the backlog is done. ``tiny`` is a Llama with random weights, whose lists of
hashtags are cut after 16 tokens. Checkouts of the project, and backends, take turns in processes of their own, so that
all see the same machine. For each number of callers:

    notes_per_s, cpu_s_per_note    of the backlog; the processor's time is that of drafts, too
    drafts_per_s, p50, p99         of the drafts, in seconds
    cpu_p50, cpu_p99               the same in the worker's own processor time, for a machine that others keep busy

``alone`` is a draft without a backlog; ``grammar_share`` the part of decoding in which grammars are asked (transformers
alone). The last line is one JSON object.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
CHECKOUT = Path(os.environ.get("BENCH_CHECKOUT", Path(__file__).parents[2]))
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

LIST_TOKENS, ALONE = 16, 20
MOST_KEYS = 100_000
BATCH_TOKENS, HASHTAGS = 4096, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mini"], choices=["mini", "tiny", "100m"])
    parser.add_argument("--backends", nargs="+", default=["hf"], choices=["hf", "openvino", "vllm"])
    parser.add_argument("--notes", type=int, default=2000)
    parser.add_argument("--callers", type=int, nargs="+", default=[0, 1, 16, 64])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--checkouts", nargs="+", default=[f"after={CHECKOUT}"], help="name=folder")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "BACKEND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asyncio.run(measure(*arguments.one, arguments))))
        return
    report: dict[str, dict[str, list[object]]] = {}
    for model, _ in itertools.product(arguments.models, range(arguments.rounds)):
        checkouts = [checkout.split("=") for checkout in arguments.checkouts]
        for (name, folder), backend in itertools.product(checkouts, arguments.backends):
            figures = in_own_process(model, backend, folder, arguments)
            report.setdefault(model, {}).setdefault(f"{name} {backend}", []).append(figures)
            print(model, name, backend, json.dumps(figures), flush=True)
    print(json.dumps(report))


def in_own_process(model: str, backend: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", model, backend]
    command += ["--notes", str(arguments.notes), "--callers", *map(str, arguments.callers)]
    environment = {**os.environ, "BENCH_CHECKOUT": folder, "PYTHONPATH": folder}
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    figures: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return figures


async def measure(model: str, backend: str, arguments: argparse.Namespace) -> dict[str, object]:
    from support.llamas import long_notes, random_checkpoint
    from support.redis import RedisServer

    from model.inference.open import Runtime, open_backend
    from model.text.grammar import TagGrammar
    from service.settings import MINI

    server = RedisServer()
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = MINI
        if model != "mini":
            checkpoint = random_checkpoint(Path(folder) / model, model)
            TagGrammar.max_tokens = LIST_TOKENS  # type: ignore[method-assign, assignment]
        runtime = Runtime("float32", serving_dir=Path(folder) / "serving")
        bench = Bench(open_backend(backend, checkpoint, runtime), server.url)
        try:
            notes = long_notes(arguments.notes * len(arguments.callers) + 1000)
            drafts, stored = itertools.cycle(notes[:1000]), notes[1000:]
            figures: dict[str, object] = {"alone": await bench.alone([next(drafts) for _ in range(ALONE)])}
            for place, callers in enumerate(arguments.callers):
                part = stored[place * arguments.notes : (place + 1) * arguments.notes]
                figures[f"callers={callers}"] = await bench.beside(part, callers, drafts)
            return figures | bench.share()
        finally:
            server.close()


class Bench:
    """One worker with its model."""

    def __init__(self, backend: Any, url: str) -> None:
        self._backend = backend
        self._url = url
        self._grammar, self._decode = Watch(), Watch()
        self._watch_grammars()

    async def alone(self, drafts: list[Any]) -> dict[str, float]:
        engine = self._engine()
        async with engine.running():
            await engine.predict_draft(drafts[0], HASHTAGS, 600)
            return waits([await timed(engine, draft) for draft in drafts])

    async def beside(self, notes: list[Any], callers: int, drafts: Any) -> dict[str, float]:
        """All notes through the queue, while callers ask for drafts."""
        from support.working import idle, until

        from service.store.connection import open_redis
        from service.store.jobs import JobQueue
        from service.store.notes import RedisStore
        from service.store.records import StoredNote
        from service.worker.category_sampler import CategorySampler
        from service.worker.prediction_cache import PredictionCache
        from service.worker.worker import Worker

        redis, engine = open_redis(self._url), self._engine()
        queue = JobQueue(redis, "bench", self._backend.fingerprint, self._backend.dim)
        worker = Worker(engine, queue, CategorySampler(engine, [], 0.0), hashtags=HASHTAGS, cache=PredictionCache(0))
        await queue.open()
        await RedisStore(redis, max_queue=1_000_000).put([StoredNote(note, 0) for note in notes])
        found: list[Wait] = []

        async def ask() -> None:
            while True:
                found.append(await timed(engine, next(drafts)))

        async with engine.running():
            started, cpu = time.perf_counter(), time.process_time()
            asking = [asyncio.create_task(ask()) for _ in range(callers)]
            running = asyncio.create_task(worker.run())
            await until(lambda: idle(redis, self._backend.fingerprint), patience_s=7200)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
            for task in asking:
                task.cancel()
            worker.stop()
            await running
        await redis.aclose()
        return {
            "notes_per_s": round(len(notes) / seconds, 2),
            "cpu_s_per_note": round(cpu_s / len(notes), 4),
            "drafts_per_s": round(len(found) / seconds, 2),
            **waits(found),
        }

    def share(self) -> dict[str, float]:
        return {"grammar_share": round(self._grammar.seconds / self._decode.seconds, 3)} if self._decode.seconds else {}

    def _engine(self) -> Any:
        from service.worker.engine import Engine

        if hasattr(self._backend, "drop"):  # what the engine before had not finished; its keys are used again
            self._backend.drop(range(MOST_KEYS))
        return Engine(self._backend, max_batch_tokens=BATCH_TOKENS, max_drafts=1000)

    def _watch_grammars(self) -> None:
        from model.inference.hf import HfBackend

        if not isinstance(self._backend, HfBackend):
            return
        step = "step" if hasattr(HfBackend, "step") else "predict"
        original = getattr(self._backend, step)

        def timed_step(*values: Any) -> Any:
            answer = original(*values)
            self._decode.seconds += self._backend.timings.decode_s
            return answer

        setattr(self._backend, step, timed_step)
        if hasattr(HfBackend, "step"):
            from model.text.outputs import Outputs

            Outputs.log_probabilities = self._grammar.around(Outputs.log_probabilities)  # type: ignore[method-assign]
            Outputs.advance = self._grammar.around(Outputs.advance)  # type: ignore[method-assign]
        else:
            HfBackend._extend = staticmethod(self._grammar.around(HfBackend._extend))  # type: ignore[attr-defined]


class Watch:
    """Adds up the seconds of calls."""

    seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*values: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*values, **named)
            finally:
                self.seconds += time.perf_counter() - started

        return watched


Wait = tuple[float, float]  # in seconds by the clock, and of the processor


async def timed(engine: Any, draft: Any) -> Wait:
    started, cpu = time.perf_counter(), time.process_time()
    await engine.predict_draft(draft, HASHTAGS, 600)
    return time.perf_counter() - started, time.process_time() - cpu


def waits(found: list[Wait]) -> dict[str, float]:
    if not found:
        return {}
    figures = {}
    for name, seconds in zip(("", "cpu_"), map(sorted, zip(*found, strict=True)), strict=True):
        figures[f"{name}p50"] = round(statistics.median(seconds), 4)
        figures[f"{name}p99"] = round(seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))], 4)
    return figures


if __name__ == "__main__":
    main()

"""Long work of FAISS, done only in time that no search wants.

A thread that may wait for a core must not hold Python's lock meanwhile: searches would wait with it. So the thread of
chores, which runs Python, is only nice, and what FAISS does for long and without that lock is done by another one.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import faiss

P = ParamSpec("P")
T = TypeVar("T")


def in_spare_time(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result; on one core, and that only while nothing else wants it."""
    return _own.thread.submit(call, *args, **kwargs).result()


def rest(since_s: float) -> None:
    """As long as there was work since that moment of `time.perf_counter`: who writes for long takes core and disk."""
    time.sleep(time.perf_counter() - since_s)


def _give_way() -> None:
    faiss.omp_set_num_threads(1)
    if hasattr(os, "sched_setscheduler"):  # Linux; there a thread has a policy of its own
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class _Own(threading.local):
    """One for every thread that asks: nobody waits for what another index trains."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "spare", _give_way)


_own = _Own()

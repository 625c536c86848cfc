"""Long calls of FAISS on one core, with the lowest priority.

A thread that waits for a core must not hold the GIL meanwhile: searches would wait with it. So the maintenance
thread, which runs Python, is a little nice, and FAISS' long calls, which release it, run on another one that is
as nice as can be. Not SCHED_IDLE: around each call that thread needs the GIL, too, and where other processes keep
every core busy, an idle thread may get one once a second.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import faiss

P = ParamSpec("P")
T = TypeVar("T")

LOWEST_PRIORITY = 19
# Shorter work makes no search wait, and a sleep would take longer.
SHORT_S = 0.0002


def run_low_priority(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result, computed on one core and mostly while nothing else needs it."""
    return _low_priority.executor.submit(call, *args, **kwargs).result()


def throttle(since_s: float) -> None:
    """Sleep as long as the work since ``since_s`` of `time.perf_counter` took: long writes load core and disk."""
    worked_s = time.perf_counter() - since_s
    if worked_s > SHORT_S:
        time.sleep(worked_s)


def set_niceness(niceness: int) -> None:
    """Initialize a thread whose work can wait: FAISS uses one core, and other threads go first."""
    faiss.omp_set_num_threads(1)
    if sys.platform == "linux":  # there a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


class _LowPriority(threading.local):
    """One executor for each calling thread: no index waits for another one's training."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(1, "low-priority", set_niceness, (LOWEST_PRIORITY,))


_low_priority = _LowPriority()

"""Long work of FAISS, done in time that searches leave.

A thread that waits for a core must not hold Python's lock meanwhile: searches would wait with it. So the thread of
chores, which runs Python, is a little nice, and what FAISS does for long and without that lock is done by another one,
which is as nice as can be. Not SCHED_IDLE: around each call it needs the lock, too, and where other processes keep
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

NICEST = 19
# Nobody waits for what is shorter, and to sleep takes longer.
SHORT_S = 0.0002


def run_low_priority(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result; on one core, and that mostly while nothing else wants it."""
    return _own.thread.submit(call, *args, **kwargs).result()


def rest(since_s: float) -> None:
    """As long as there was work since that moment of `time.perf_counter`: who writes for long takes core and disk."""
    worked_s = time.perf_counter() - since_s
    if worked_s > SHORT_S:
        time.sleep(worked_s)


def set_niceness(niceness: int) -> None:
    """What a thread begins with whose work can wait: one core, and others first."""
    faiss.omp_set_num_threads(1)
    if sys.platform == "linux":  # there a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


class _Own(threading.local):
    """One for every thread that asks: nobody waits for what another index trains."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "spare", set_niceness, (NICEST,))


_own = _Own()

"""Threads of low priority, and the pauses of long writes."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import pytest

from indexer import low_priority
from indexer.low_priority import LOWEST_PRIORITY, SHORT_S, run_low_priority, set_niceness, throttle

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_call_runs_on_a_thread_of_its_caller_that_uses_one_core():
    first, second = (run_low_priority(threading.get_ident) for _ in range(2))
    with ThreadPoolExecutor(1) as other:
        third = other.submit(run_low_priority, threading.get_ident).result()

    assert first == second
    assert len({first, third, threading.get_ident()}) == 3
    assert run_low_priority(faiss.omp_get_max_threads) == 1


def test_arguments_results_and_errors_are_passed_on():
    assert run_low_priority(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
    with pytest.raises(ZeroDivisionError):
        run_low_priority(divmod, 1, 0)


@on_linux
def test_a_low_priority_thread_is_as_nice_as_can_be_and_its_caller_is_not():
    before = niceness()

    assert run_low_priority(niceness) == LOWEST_PRIORITY == 19
    assert niceness() == before


@on_linux
def test_niceness_is_that_of_one_thread():
    with ThreadPoolExecutor(1, initializer=set_niceness, initargs=(12,)) as pool:
        nice = pool.submit(niceness).result()

    assert nice == 12
    assert niceness() != 12


@pytest.mark.parametrize(("worked_s", "slept_s"), [(SHORT_S, []), (2 * SHORT_S, [2 * SHORT_S]), (3.0, [3.0])])
def test_a_writer_sleeps_as_long_as_it_wrote_but_not_after_a_short_write(monkeypatch, worked_s, slept_s):
    slept: list[float] = []
    monkeypatch.setattr(low_priority.time, "perf_counter", lambda: worked_s)
    monkeypatch.setattr(low_priority.time, "sleep", slept.append)

    throttle(0.0)

    assert slept == slept_s

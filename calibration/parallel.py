"""Parallel work whose results do not depend on the number of cores."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def in_order(make: Callable[[T], R], items: Iterable[T], ahead: int = 1) -> Iterator[R]:
    """``make`` of each of ``items``, in order, with one thread per core.

    ``make`` must spend its time where Python's lock is free: in numpy, ONNX Runtime and the kernels. The caller's
    thread draws ``items``, at most ``ahead`` more than the threads work on, so that few are held at once. BLAS uses one thread meanwhile. Its
    own threads would wait for each other in loops, which takes five times the processor time on a busy machine. Their
    number also changes the last digits of products.
    """
    workers = cores()
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) >= workers + ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()

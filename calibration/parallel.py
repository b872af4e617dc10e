"""Work on all cores with results that do not depend on their number."""

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
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def in_order(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``make`` of each of ``items``, in their order, in one thread for each core.

    ``make`` must spend its time where Python's lock is free: in numpy, ONNX Runtime and the kernels. ``items`` are drawn in the caller's thread,
    one ahead of the threads, so that few are held at once. BLAS has one thread meanwhile: its own would wait for each other in loops, which takes
    five times the processor time on a busy machine, and the number of its threads changes the last digits of its products.
    """
    workers = cores()
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()

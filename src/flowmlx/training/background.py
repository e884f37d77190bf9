"""Results computed ahead of their turn, in threads."""

import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Where it is left to `in_background`, as many threads as processors, at most.
MOST_THREADS = 8


def in_background(
    prepare: Callable[[int], Callable[[], T]], *, ahead: int | None = None
) -> Callable[[int], T]:
    """Make the function k -> prepare(k)() that computes results k + 1 ... k + ahead beforehand.

    `prepare(k)` runs in the caller's thread and returns the work, which runs in another one: its
    result must not depend on when, and it must leave MLX alone, whose streams belong to threads.
    Results may be asked for in any order, and again. Whatever is raised on the way is raised where
    that result is asked for. `ahead`: None is the number of processors, at most 8; 0 does all in
    the caller's thread. Raises ValueError where it is negative.

    The threads end with the function that they work for; a program that is interrupted waits for
    the work in hand, and no more.
    """
    if ahead is None:
        ahead = min(os.cpu_count() or 1, MOST_THREADS)
    if ahead < 0:
        raise ValueError(f"ahead is {ahead}; expected a number of results, 0 or more")
    pool = ThreadPoolExecutor(max(ahead, 1), thread_name_prefix="flowmlx-ahead")
    pending: dict[int, Future[T]] = {}

    def start(k: int) -> Future[T]:
        future: Future[T] = Future()
        try:
            work = prepare(k)
            if ahead:
                return pool.submit(work)
            future.set_result(work())
        except Exception as error:  # of a result that may never be asked for
            future.set_exception(error)
        return future

    def result(k: int) -> T:
        wanted = range(k, k + ahead + 1)
        for other in pending.keys() - set(wanted):
            pending.pop(other).cancel()
        for number in wanted:
            if number not in pending:
                pending[number] = start(number)
        return pending[k].result()

    weakref.finalize(result, pool.shutdown, wait=False, cancel_futures=True)
    return result

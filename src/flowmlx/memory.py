"""Memory of arrays, kept between operations: on Linux, with glibc.

glibc maps an array above a threshold as new memory, and returns what is freed to the system. Every
page of the next array then comes by a fault, for which threads wait for each other. `load` sets the
threshold to the highest that glibc knows, 32 MB, to which it would rise by itself in time. Inside
`kept` nothing is mapped or returned at all: a training step of an MLP of 3 x 256 on batches of
32,768 takes 212 ms in place of 350. It is not for solves, whose arrays of many sizes leave holes: a
million samples took three times the memory for a third off the time, and in batches of 10,000 a
third of the time and a tenth of the memory.

Where the environment has settings for malloc they stay as they are.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from functools import lru_cache

# mallopt(3)
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
LARGEST_KEPT, MOST_FREE, MOST_MAPPED = 2**25, 2**26, 2**16

_lock = threading.Lock()
_inside = 0


class _Info(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def load() -> bool:
    """Keep freed arrays of up to 32 MB, and 64 MB in all; say whether that can be set."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(TRIM_THRESHOLD, MOST_FREE)
    return libc is not None


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep all freed memory inside the block; at its end all that is free goes back, if it is much.

    Blocks may lie within each other and in several threads: the last to end gives back.
    """
    global _inside
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _inside += 1
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                libc.mallopt(MMAP_MAX, MOST_MAPPED)
                libc.mallopt(TRIM_THRESHOLD, MOST_FREE)
                if libc.mallinfo2().fordblks > MOST_FREE:
                    libc.malloc_trim(0)


@lru_cache
def _glibc() -> ctypes.CDLL | None:
    settings = ("MALLOC_", "GLIBC_TUNABLES")
    if any(name.startswith(settings) for name in os.environ):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Info  # since glibc 2.33
        libc.gnu_get_libc_version  # noqa: B018
        return libc
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return None

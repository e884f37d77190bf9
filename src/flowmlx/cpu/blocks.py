"""Matrix products on all cores, in blocks that threads take in turn: blocks.c, for `blas`.

The threads of a BLAS wait for each other by spinning. Beside another busy process a product on both
of two processors took up to 80 times as long as on one; in blocks it takes no longer than on one,
and half as long where nothing else runs.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

from flowmlx.native import libraries as native

# More were never tried, and each thread prepares anew what they share.
MOST_THREADS = 16
SOURCE = Path(__file__).with_name("blocks.c")

_used: ctypes.CDLL | None = None  # the compiled blocks.c, once `product` was called


def product(sgemm: Any, threads: int) -> Any:
    """The function to call in place of `sgemm`, a library's cblas_sgemm, which takes one thread.

    It takes up to `threads`; calling this again changes their number. None where there is no
    compiler.
    """
    global _used
    _used = _used or native.library(SOURCE)
    if _used is None:
        return None
    _pointer(_used).value = ctypes.cast(sgemm, ctypes.c_void_p).value
    _threads(_used).value = min(threads, MOST_THREADS)
    return _used.sgemm_in_blocks


def threads() -> int:
    """Threads that take the blocks of a large product; 0 where products are not cut."""
    return _threads(_used).value if _used and _threads(_used).value > 1 else 0


def slot(path: str) -> int | None:
    """Address of the pointer to the library's function, where `path` is what `product` made."""
    return ctypes.addressof(_pointer(_used)) if _used and _used._name == path else None


def cores() -> int:
    """Cores that this process may run on: processors that share one count once."""
    folder = Path("/sys/devices/system/cpu")
    paths = (
        folder / f"cpu{number}/topology/thread_siblings_list" for number in os.sched_getaffinity(0)
    )
    return len({path.read_text() if path.exists() else path for path in paths})


def _pointer(library: ctypes.CDLL) -> ctypes.c_void_p:
    return ctypes.c_void_p.in_dll(library, "sgemm_of_library")


def _threads(library: ctypes.CDLL) -> ctypes.c_int:
    return ctypes.c_int.in_dll(library, "threads")

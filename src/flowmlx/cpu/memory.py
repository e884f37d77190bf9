"""Memory that stays with the process, on Linux with glibc."""

import contextlib

import numpy as np

# glibc returns the memory of large arrays to the system, from where every page of the next array
# comes by a fault, for which threads wait for each other: a sixth of the time of a plan between 512
# points, and half of a training step on batches of 65,536. It keeps up to twice as much as the
# largest array that was freed so far (mallopt(3), M_MMAP_THRESHOLD), if that was below 32 MB, and
# if nobody has set it to anything else.
LARGEST_KEPT = 31 * 2**20


def load() -> None:
    """Let the C library keep the memory of arrays up to 31 MB when they are freed."""
    with contextlib.suppress(MemoryError):
        np.empty(LARGEST_KEPT, np.uint8)  # freed at once, and never written to

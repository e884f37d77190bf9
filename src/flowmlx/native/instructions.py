"""The widest vector instructions of this processor, and the options by which GCC uses them.

On x86-64 Linux, where a compiler takes those that every processor has unless it is told otherwise.
FLOWMLX_JIT=0 turns it off.
"""

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple


class Instructions(NamedTuple):
    """What the processor must have, as /proc/cpuinfo names it, GCC's options, the cache folder."""

    name: str
    needed: set[str]
    options: str
    folder: str


# Widest first. Registers of AVX-512 at their full length were no faster than half of it, which g++
# prefers.
INSTRUCTIONS = (
    Instructions(
        "AVX-512",
        {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"},
        "-mavx2 -mfma -mavx512f -mavx512dq -mavx512bw -mavx512vl ",
        "loops-avx512",
    ),
    Instructions("AVX2", {"avx2", "fma"}, "-mavx2 -mfma ", "loops-avx2"),
)
NARROW = Instructions("none", set(), "", f"loops-{platform.machine()}")


def widest() -> Instructions:
    """The widest instructions that the processor has; NARROW elsewhere, and where turned off."""
    x86_64 = sys.platform == "linux" and platform.machine() == "x86_64"
    if not x86_64 or os.environ.get("FLOWMLX_JIT") == "0":
        return NARROW
    flags = _processor_flags()
    return next((each for each in INSTRUCTIONS if each.needed <= flags), NARROW)


def _processor_flags() -> set[str]:
    with contextlib.suppress(OSError):  # where there is no /proc
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":")[1].split())
    return set()

"""Wide vector instructions in the loops that MLX compiles for the CPU, on x86-64 Linux.

MLX compiles fused operations with g++ for any x86-64 processor, four floats at a time. Where this
one has AVX2 and FMA, as nearly all since 2013, or AVX-512 as well, `load` adds the options that use
them: activations take two thirds of the time or less. MLX runs the compiler by `popen`, which
`load` redirects for libmlx.so alone (see `elf`); commands of any other form pass unchanged.
FLOWMLX_JIT=0 turns it off.

MLX keeps compiled loops under the temporary folder, and loads what it finds there. One that was
compiled before is used as it is, and one from here runs on no processor without the instructions it
was compiled for. The command keeps them in a folder of the user's own (`private_cache`), one for
each set of instructions.
"""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

from flowmlx import elf
from flowmlx.files import private, user_cache

# What MLX asks the shell for, up to where options can go.
COMMAND = b"g++ -std=c++17 -O3 "


class Instructions(NamedTuple):
    """What the processor must have, as /proc/cpuinfo names it, g++'s options, the cache folder."""

    name: str
    needed: set[str]
    options: bytes
    folder: str


# Widest first. Registers of AVX-512 at their full length were no faster than half of it, which g++
# prefers.
INSTRUCTIONS = (
    Instructions(
        "AVX-512",
        {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"},
        b"-mavx2 -mfma -mavx512f -mavx512dq -mavx512bw -mavx512vl ",
        "loops-avx512",
    ),
    Instructions("AVX2", {"avx2", "fma"}, b"-mavx2 -mfma ", "loops-avx2"),
)
NARROW = Instructions("none", set(), b"", "loops")


def load() -> bool:
    """Redirect MLX's compiler; say whether its loops get wide instructions.

    Never raises; calling it again is harmless.
    """
    try:
        if widest() is NARROW:
            return False
        elf.write(elf.slots(elf.mlx_library())["popen"], _popen)
        return True
    except Exception:  # narrow loops are better than a failing import
        return False


def private_cache(rank: int = 0) -> None:
    """Let MLX keep its loops in a folder of the user's cache that nobody else can write to.

    Under the shared temporary folder anyone could plant a library for MLX to load, and a restart
    removes all. MLX asks the system for that folder, so this sets TMPDIR for the whole process, and
    changes nothing where it is set. For a program of one's own to call, as `flowmlx` does. Never
    raises.

    `rank`: of a process among several that compile the same loops at once; each but the first gets
    a folder of its own, in TMPDIR where that is set, as MLX loads what another has half written.
    """
    given = os.environ.get("TMPDIR")
    if sys.platform != "linux" or (given and rank == 0):
        return
    try:
        loops = (widest() if load() else NARROW).folder
        folder = Path(given) / "flowmlx" if given else user_cache() / loops
    except RuntimeError:  # no home
        return
    if rank:
        folder = folder.with_name(f"{folder.name}-rank-{rank}")
    if private(folder):
        os.environ["TMPDIR"] = str(folder)


def widest() -> Instructions:
    """The widest instructions that the processor has; NARROW elsewhere, and where turned off."""
    x86_64 = sys.platform == "linux" and platform.machine() == "x86_64"
    if not x86_64 or os.environ.get("FLOWMLX_JIT") == "0":
        return NARROW
    flags = _processor_flags()
    return next((each for each in INSTRUCTIONS if each.needed <= flags), NARROW)


def with_options(command: bytes, options: bytes) -> bytes:
    """MLX's command with the options; any other as it is."""
    if command.startswith(COMMAND):
        return COMMAND + options + command[len(COMMAND) :]
    return command


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


_Popen = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)


@_Popen
def _popen(command: bytes, mode: bytes) -> int | None:
    popen = ctypes.CDLL(None).popen
    popen.restype, popen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_char_p)
    return popen(with_options(command, widest().options), mode)

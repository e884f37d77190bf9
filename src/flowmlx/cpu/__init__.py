"""What makes MLX's CPU backend fast on Linux, behind one door: `accelerate`. See docs/cpu.md.

Nothing here is imported on other systems, nor while MLX computes on a GPU. FLOWMLX_CPU=0 turns all
of it off.
"""

import os
import sys
import threading

import mlx.core as mx

from flowmlx.cpu import blas, blocks, jit, memory
from flowmlx.native import loops

_lock = threading.RLock()  # a signal's handler may come in again
_processes = 0  # among which the cores were shared; 0 before the first call


def accelerate(processes: int | None = None) -> None:
    """Make MLX's CPU backend fast, on Linux; the package calls this when it is first used.

    MLX gets a fast BLAS, its compiled loops wide instructions and a folder that only the user can
    write to, and freed memory stays with the process. Where no folder is safe, or a shell would act
    on the name of MLX's own, `mx.compile` is disabled.

    `processes`: how many processes like this one compute on this machine; each takes its part of
    the cores. None: as many as were said before, or this one alone. Never raises; calling it again
    changes nothing but the part of the cores.
    """
    global _processes
    if _processes and processes in (None, _processes):
        return
    with _lock:
        if not why_not():
            if not _processes:
                _load()
            if (processes or 1) != (_processes or 1):
                blas.share_processors(processes or 1)
        _processes = processes or _processes or 1


def why_not() -> str:
    """Why MLX's backend is left as it is; "" where it is not."""
    if sys.platform != "linux":
        return "for Linux alone"
    return "FLOWMLX_CPU=0" if os.environ.get("FLOWMLX_CPU") == "0" else ""


def status() -> tuple[dict[str, str], list[str]]:
    """What was done, by name, and what went wrong or would be faster, for people."""
    reason = why_not() or ("" if _processes else "not used yet")
    library, threads = blas.status(), blocks.threads()
    facts = {
        "cpu backend": f"as MLX has it: {reason}" if reason else "made faster by flowmlx",
        "blas": library.name + (f" ({library.path})" if library.path else ""),
        "large products": f"in blocks, threads: {threads}" if threads else "whole",
    }
    return facts, [f"BLAS: {library.note}"] if library.note else []


def _load() -> None:
    if loops.unsafe():  # uncompiled is slower, and right
        mx.disable_compile()
    jit.load()
    blas.load()
    memory.load()

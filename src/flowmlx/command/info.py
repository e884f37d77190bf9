"""What flowmlx runs on: versions, device, BLAS, compiler."""

import importlib.metadata
import os
import platform
import shutil
import sys

import mlx.core as mx

from flowmlx.native import cache, instructions, loops
from flowmlx.native import libraries as native
from flowmlx.solvers import backend
from flowmlx.transport import assignment

PACKAGES = ("flowmlx", "mlx", "numpy", "scipy", "pyarrow", "matplotlib", "tyro")

NO_COMPILER = (
    "no C++ compiler (g++), so the CPU runs uncompiled, correct but slower; install one: "
    + ("xcode-select --install" if sys.platform == "darwin" else "apt install g++")
)


def gather() -> tuple[dict[str, str], list[str]]:
    """Facts by name, and what is missing, each with the command that mends it."""
    on_cpu, problems = _cpu_backend()
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": f"{mx.default_device()}",
        **on_cpu,
        "compiler": compiler() or "none",
        "compiled loops": _loops(),
        "exact transport": "compiled" if native.library(assignment.SOURCE) else "by SciPy, slower",
    }
    if cache.root().note:
        problems.append(f"compiled code: {cache.root().note}")
    if mx.default_device() == mx.cpu and compiler() is None:
        problems.append(NO_COMPILER)
    return facts, problems


def _cpu_backend() -> tuple[dict[str, str], list[str]]:
    if backend.is_linux_cpu():
        from flowmlx import cpu

        return cpu.status()
    if sys.platform == "darwin":
        return {"cpu backend": "as MLX has it: for Linux alone", "blas": "Accelerate"}, []
    return {"cpu backend": "as MLX has it: MLX computes on a GPU"}, []


def _loops() -> str:
    if loops.unsafe():
        return "none"
    wide = instructions.widest()
    fitting = loops.are_redirected() and wide is not instructions.NARROW
    return f"in {loops.place()}" + (f", with {wide.name}" if fitting else "")


def compiler() -> str | None:
    """Path of the compiler that MLX calls to fuse operations on the CPU, if it is there."""
    return shutil.which("g++")

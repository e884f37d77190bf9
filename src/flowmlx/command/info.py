"""What flowmlx runs on: versions, device, BLAS, compiler."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile

import mlx.core as mx

from flowmlx.cpu import blas, blocks, jit
from flowmlx.native import cache, instructions
from flowmlx.native import libraries as native
from flowmlx.transport import assignment

PACKAGES = ("flowmlx", "mlx", "numpy", "scipy", "pyarrow", "matplotlib", "tyro")

NO_COMPILER = (
    "no C++ compiler (g++), so the CPU runs uncompiled, correct but slower; install one: "
    + ("xcode-select --install" if sys.platform == "darwin" else "apt install g++")
)


def gather() -> tuple[dict[str, str], list[str]]:
    """Facts by name, and what is missing, each with the command that mends it."""
    library = blas.status()
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": f"{mx.default_device()}",
        "blas": library.name + (f" ({library.path})" if library.path else ""),
        "large products": f"in blocks, threads: {blocks.threads()}"
        if blocks.threads()
        else "whole",
        "compiler": compiler() or "none",
        "compiled loops": _loops(),
        "exact transport": "compiled" if native.library(assignment.SOURCE) else "by SciPy, slower",
    }
    problems = []
    if library.note:
        problems.append(f"BLAS: {library.note}")
    if cache.root().note:
        problems.append(f"compiled code: {cache.root().note}")
    if mx.default_device() == mx.cpu and compiler() is None:
        problems.append(NO_COMPILER)
    return facts, problems


def _loops() -> str:
    if jit.unsafe():
        return "none"
    if not jit.load():
        return f"in {os.environ.get('TMPDIR') or tempfile.gettempdir()}/mlx"
    wide = instructions.widest() is not instructions.NARROW
    return f"in {jit.folder()}/mlx" + (f", with {instructions.widest().name}" if wide else "")


def compiler() -> str | None:
    """Path of the compiler that MLX calls to fuse operations on the CPU, if it is there."""
    return shutil.which("g++")

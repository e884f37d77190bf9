"""What flowmlx runs on: versions, device, BLAS, compiler."""

import importlib.metadata
import os
import platform
import shutil
import sys

import mlx.core as mx

from flowmlx import blas

PACKAGES = ("flowmlx", "mlx", "numpy", "scipy", "pyarrow", "matplotlib", "tyro")


def gather() -> tuple[dict[str, str], list[str]]:
    """Facts by name, and what is missing, each with the command that mends it."""
    compiler = shutil.which("g++")
    library = blas.status()
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": f"{mx.default_device()}",
        "blas": library.name + (f" ({library.path})" if library.path else ""),
        "compiler": compiler or "none",
    }
    problems = []
    if library.note:
        problems.append(f"BLAS: {library.note}")
    if compiler is None and sys.platform == "linux":
        problems.append(
            "No C++ compiler: training on the CPU runs uncompiled and is slower. Install one: "
            "apt install g++  (or dnf install gcc-c++)"
        )
    return facts, problems

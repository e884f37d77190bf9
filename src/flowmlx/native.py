"""C of this package, compiled for the processor when it is first needed.

For work row by row, which NumPy would do in thousands of calls. The compiler takes a fraction of a
second, once: the library is kept in the user's cache. Without a C compiler, without such a folder,
or with FLOWMLX_JIT=0 there is no library, and callers go another way to the same result.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from flowmlx import jit
from flowmlx.files import private, replacing, user_cache

# Numbers are finite: callers check. The options let comparisons be vector instructions.
OPTIONS = (
    "-x", "c", "-std=c99", "-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-signed-zeros",
    "-ffinite-math-only", "-shared", "-fPIC",
)  # fmt: skip
SECONDS = 60

_one_at_a_time = threading.Lock()


def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.c in this package, None where they cannot be had."""
    with _one_at_a_time:
        return _library(name) if os.environ.get("FLOWMLX_JIT") != "0" else None


@lru_cache
def _library(name: str) -> ctypes.CDLL | None:
    compiler = c_compiler()
    if compiler is None:
        return None
    source = Path(__file__).with_name(f"{name}.c").read_bytes()
    command = [compiler, *OPTIONS, *jit.widest().options.decode().split()]
    digest = hashlib.sha256(source + "\0".join(command).encode()).hexdigest()[:16]
    try:
        folder = user_cache() / "native"
        if not private(folder):
            return None
        path = folder / f"{name}-{digest}.so"
        if not path.exists():
            with replacing(path) as new:
                # In a session of its own, as Ctrl-C would end the compiler.
                subprocess.run(
                    [*command, "-o", str(new), "-"],
                    input=source,
                    capture_output=True,
                    check=True,
                    start_new_session=True,
                    timeout=SECONDS,
                )
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def c_compiler() -> str | None:
    """Path of a C compiler, None without one."""
    if sys.platform == "darwin" and not _developer_tools():
        return None
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _developer_tools() -> bool:
    # Without them macOS has a `cc` that opens a window to install some.
    return subprocess.run(["xcode-select", "-p"], capture_output=True).returncode == 0

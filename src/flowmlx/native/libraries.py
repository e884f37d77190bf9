"""C of this package, compiled for the processor when it is first needed.

For work row by row, which NumPy would do in thousands of calls. The compiler takes a fraction of a
second, once: the library is kept in the user's own folder (`cache`). Without a C compiler, without
such a folder, or with FLOWMLX_JIT=0 there is no library, and callers go another way.
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import lru_cache
from pathlib import Path

from flowmlx.files import writing
from flowmlx.native import cache, instructions

# Numbers are finite: callers check. The options let comparisons be vector instructions.
OPTIONS = (
    "-x", "c", "-std=c99", "-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-signed-zeros",
    "-ffinite-math-only", "-pthread", "-shared", "-fPIC",
)  # fmt: skip
SECONDS = 60


def library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file `source`, None where they cannot be had. Never raises."""
    return _library(source) if os.environ.get("FLOWMLX_JIT") != "0" else None


@lru_cache
def _library(source: Path) -> ctypes.CDLL | None:
    try:
        folder = cache.folder("native")
        if folder is None:
            return None
        file, command, text = _recipe(source)
        path = folder / file
        if cache.usable(path):
            with contextlib.suppress(OSError):  # of another system that shares the home
                return ctypes.CDLL(str(path))
        _compile(path, command, text)
        return ctypes.CDLL(str(path))
    except Exception:  # another way is better than none
        return None


def _recipe(source: Path) -> tuple[str, list[str], bytes]:
    """The library's file, the command that makes it, and what that reads."""
    compiler = c_compiler()
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    text = source.read_bytes()
    command = [compiler, *OPTIONS, *instructions.widest().options.split()]
    # A home may be shared by machines of several kinds.
    kind = [sys.platform, str(sysconfig.get_config_var("SOABI")), *command]
    digest = hashlib.sha256(text + "\0".join(kind).encode()).hexdigest()[:16]
    return f"{source.stem}-{digest}.so", command, text


def _compile(path: Path, command: list[str], source: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix=cache.UNFINISHED, dir=path.parent) as folder:
        made = Path(folder, path.name)
        subprocess.run(
            [*command, "-o", str(made), "-"],
            input=source,
            capture_output=True,
            check=True,
            timeout=SECONDS,
        )
        made.chmod(0o600)
        writing.flush(made)  # a name whose content is not on the disk would stay after a power cut
        made.replace(path)  # whole or not at all, also beside another process


def c_compiler() -> str | None:
    """Path of a C compiler, None without one."""
    if sys.platform == "darwin" and not _developer_tools():
        return None
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "g++"))), None)


def _developer_tools() -> bool:
    # Without them macOS has a `cc` that opens a window to install some.
    return subprocess.run(["xcode-select", "-p"], capture_output=True).returncode == 0

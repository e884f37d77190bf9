"""C of this package, compiled for the processor when it is first needed.

For work row by row, which NumPy would do in thousands of calls. The compiler takes a fraction of a
second, once: the library is kept in the user's cache. Without a C compiler, without such a folder,
or with FLOWMLX_JIT=0 there is no library, and callers go another way.
"""

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

from flowmlx import jit
from flowmlx.files import own, private, user_cache

# Numbers are finite: callers check. The options let comparisons be vector instructions.
OPTIONS = (
    "-x", "c", "-std=c99", "-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-signed-zeros",
    "-ffinite-math-only", "-pthread", "-shared", "-fPIC",
)  # fmt: skip
SECONDS = 60


def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.c in this package, None where they cannot be had. Never raises."""
    return _library(name) if os.environ.get("FLOWMLX_JIT") != "0" else None


@lru_cache
def _library(name: str) -> ctypes.CDLL | None:
    try:
        path, command, source = _recipe(name)
        if not private(path.parent):
            return None
        if path.exists():
            try:
                return _open(path)
            except OSError:  # damaged; once more
                path.unlink()
        _compile(path, command, source)
        return _open(path)
    except Exception:  # another way is better than none
        return None


def _recipe(name: str) -> tuple[Path, list[str], bytes]:
    """Where the library is, the command that makes it, and what that reads."""
    compiler = c_compiler()
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    source = Path(__file__).with_name(f"{name}.c").read_bytes()
    command = [compiler, *OPTIONS, *jit.widest().options.decode().split()]
    # A home may be shared by machines of several kinds.
    kind = [sys.platform, str(sysconfig.get_config_var("SOABI")), *command]
    digest = hashlib.sha256(source + "\0".join(kind).encode()).hexdigest()[:16]
    return user_cache() / "native" / f"{name}-{digest}.so", command, source


def _compile(path: Path, command: list[str], source: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # the user's alone
        made = Path(folder, path.name)
        subprocess.run(
            [*command, "-o", str(made), "-"],
            input=source,
            capture_output=True,
            check=True,
            timeout=SECONDS,
        )
        made.chmod(0o600)
        made.replace(path)  # whole or not at all, also beside another process


def _open(path: Path) -> ctypes.CDLL:
    if not own(path):
        raise OSError(f"others can write to {path}")
    return ctypes.CDLL(str(path))


def c_compiler() -> str | None:
    """Path of a C compiler, None without one."""
    if sys.platform == "darwin" and not _developer_tools():
        return None
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _developer_tools() -> bool:
    # Without them macOS has a `cc` that opens a window to install some.
    return subprocess.run(["xcode-select", "-p"], capture_output=True).returncode == 0

"""A fast BLAS for MLX on Linux CPUs.

MLX's Linux wheels bring the reference BLAS and LAPACK, 30 to 40 times slower than OpenBLAS at a
float32 matrix product. scipy-openblas32 has the same functions with `scipy_` before each name, so
the loader never connects the two. `load` redirects the BLAS and LAPACK calls of libmlx.so (see
`slots`), and no other library in the process sees any of it (symbols made global would also reach
PyTorch or SciPy).

A BLAS that reached MLX another way (LD_PRELOAD, a library opened with RTLD_GLOBAL, MLX built
from source) is left alone. The environment variable FLOWMLX_BLAS overrules this: `0` or `mlx`
keeps what MLX has, a path names the library to use (CBLAS names, 32-bit integers).

Large float32 products are cut into blocks for all cores (see `blocks`), and OpenBLAS has one
thread, for all else as well: other numbers, and LAPACK. Without a C compiler it has half of the
processors, whose threads it lets wait for each other by spinning, and where OPENBLAS_NUM_THREADS or
OMP_NUM_THREADS is set, what that says.
"""

import ctypes
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flowmlx.cpu import blocks, slots
from flowmlx.native import elf

BLAS_NAME = re.compile(r"cblas_[sdcz]\w+|[sdcz][a-z]{3,5}_")  # such as cblas_sgemm, sgesdd_
PREFIXES = ("scipy_", "")

_failure = ""  # why `load` could not do its work, for `status`
_openblas: ctypes.CDLL | None = None  # the library that `load` chose by itself


@dataclass(frozen=True)
class Blas:
    """What computes MLX's matrix products on the CPU.

    `name`: for people. `path`: of the library, "" where there is none to name. `note`: what is
    wrong with it and what to do, "" if all is well.
    """

    name: str
    path: str
    note: str = ""


def load() -> None:
    """Give MLX a fast BLAS; where it has one, change nothing.

    Never raises and prints nothing: the note of `status` says what went wrong. It does not import
    MLX, and calling it again is harmless.
    """
    global _failure, _openblas
    choice = os.environ.get("FLOWMLX_BLAS", "")
    if choice not in ("0", "mlx"):
        try:
            by_name = _slots()
            if choice or _is_bundled(slots.owner(by_name["cblas_sgemm"])):
                library = ctypes.CDLL(choice or str(_openblas_library()))
                _redirect(by_name, library)
                _openblas = None if choice else library
                _share(1)
            _failure = ""
        except Exception as error:  # a slow BLAS is better than a failing program
            _failure = f"FLOWMLX_BLAS={choice} cannot be used: {error}" if choice else str(error)


def share_processors(processes: int) -> None:
    """Take a part of the cores where as many processes like this one compute on the machine.

    Changes nothing where the BLAS or its threads were chosen otherwise. Never raises, as `load`.
    """
    global _failure
    try:
        _share(processes)
    except Exception as error:
        _failure = str(error)


def _share(processes: int) -> None:
    given = "OPENBLAS_NUM_THREADS" in os.environ or "OMP_NUM_THREADS" in os.environ
    if _openblas is None or given:
        return
    threads = max(1, blocks.cores() // processes)
    product = blocks.product(_function(_openblas, "cblas_sgemm"), threads)
    if product is not None:
        slots.write({_slots()["cblas_sgemm"]: product})
        threads = 1
    else:
        threads = max(1, len(os.sched_getaffinity(0)) // (2 * processes))
    set_threads = _function(_openblas, "openblas_set_num_threads")
    if set_threads is not None:
        set_threads(threads)


def status() -> Blas:
    """Say which library MLX calls for a matrix product, read from the slot that it calls through.

    Never raises.
    """
    try:
        path = _library(_slots()["cblas_sgemm"])
        version = _openblas_version(path)
    except Exception as error:  # information only
        return Blas("unknown", "", f"cannot tell which BLAS MLX calls: {error}")
    if not _is_bundled(path):
        return Blas(version or Path(path).name, path, _failure)
    if os.environ.get("FLOWMLX_BLAS") in ("0", "mlx"):
        advice = "chosen by FLOWMLX_BLAS; unset it for a faster one"
    else:
        advice = _failure
    return Blas("reference BLAS of the MLX wheel", path, advice)


@lru_cache
def _slots() -> dict[str, int]:
    """The slots through which MLX calls BLAS and LAPACK, by function name."""
    all_slots = slots.of(elf.mlx_library())
    found = {name: slot for name, slot in all_slots.items() if BLAS_NAME.fullmatch(name)}
    if "cblas_sgemm" not in found:
        raise LookupError("libmlx.so imports no function cblas_sgemm")
    return found


def _redirect(by_name: dict[str, int], library: ctypes.CDLL) -> None:
    """Point every slot that `library` has a function for to that function."""
    functions = {name: _function(library, name) for name in by_name}
    if functions["cblas_sgemm"] is None:
        raise LookupError(f"{library._name} has no function cblas_sgemm")
    slots.write({by_name[name]: function for name, function in functions.items() if function})


def _library(slot: int) -> str:
    """Path of the library that computes what is called through a slot."""
    path = slots.owner(slot)
    behind = blocks.slot(path)
    return path if behind is None else slots.owner(behind)


def _function(library: ctypes.CDLL, name: str):
    return next((f for p in PREFIXES if (f := getattr(library, p + name, None))), None)


def _openblas_version(path: str) -> str:
    """Such as 'OpenBLAS 0.3.30 ... Haswell MAX_THREADS=64'; "" for a library of another make."""
    config = _function(ctypes.CDLL(path), "openblas_get_config")
    if config is None:
        return ""
    config.restype = ctypes.c_char_p
    return config().decode()


def _openblas_library() -> Path:
    # Found, not imported: importing the package makes all of its symbols global.
    return elf.file_of("scipy_openblas32", "lib/libscipy_openblas*.so")


def _is_bundled(path: str) -> bool:
    """Whether MLX's wheel brought the library: site-packages/mlx_cpu.libs/libblas-....so."""
    folder = Path(path).parent.name
    return folder.startswith("mlx") and folder.endswith(".libs")

"""A fast BLAS for MLX on Linux CPUs.

MLX's Linux wheels bring the reference BLAS and LAPACK, 30 to 40 times slower than OpenBLAS at a
float32 matrix product. scipy-openblas32 has the same functions with `scipy_` before each name, so
the loader never connects the two. The loader keeps the address of every function that libmlx.so
imports in a slot of that library's global offset table; `load` overwrites the slots of the BLAS
and LAPACK functions. This needs no compiler and no files, works before and after `import
mlx.core`, and no other library in the process sees any of it (symbols made global would also
reach PyTorch or SciPy).

A BLAS that reached MLX another way (LD_PRELOAD, a library opened with RTLD_GLOBAL, MLX built
from source) is left alone. The environment variable FLOWMLX_BLAS overrules this: `0` or `mlx`
keeps what MLX has, a path names the library to use (CBLAS names, 32-bit integers).

OpenBLAS gets half of the processors, or what OPENBLAS_NUM_THREADS says. Its threads wait for each
other by spinning: beside any other busy process a product on both of two processors took 10 to 80
times as long as on one, where on a quiet machine it saved at most half.
"""

import ctypes
import mmap
import os
import platform
import re
import struct
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# Dynamic section tags and relocation types: ELF specification and its processor supplements.
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 5, 6, 7, 8, 23
SLOT_TYPES = {"x86_64": {6, 7}, "aarch64": {1025, 1026}}  # GLOB_DAT, JUMP_SLOT
RTLD_DI_LINKMAP = 2

BLAS_NAME = re.compile(r"cblas_[sdcz]\w+|[sdcz][a-z]{3,5}_")  # such as cblas_sgemm, sgesdd_
PREFIXES = ("scipy_", "")

_failure = ""  # why `load` could not do its work, for `status`


@dataclass(frozen=True)
class Blas:
    """What computes MLX's matrix products on the CPU.

    `name`: for people. `path`: of the library, "" where there is none to name. `note`: what is
    wrong with it and what to do, "" if all is well.
    """

    name: str
    path: str
    note: str = ""


def load() -> Blas:
    """Give MLX a fast BLAS on Linux; where it has one, and on other systems, change nothing.

    Never raises and prints nothing: the note of what it returns, like that of `status`, says what
    went wrong. It does not import MLX, and calling it again is harmless.
    """
    global _failure
    choice = os.environ.get("FLOWMLX_BLAS", "")
    if sys.platform == "linux" and choice not in ("0", "mlx"):
        try:
            slots = _slots(_mlx_library())
            if choice or _is_bundled(_owner(slots["cblas_sgemm"])):
                library = ctypes.CDLL(choice or str(_openblas_library()))
                _redirect(slots, library)
                if not choice:
                    _set_threads(library)
            _failure = ""
        except Exception as error:  # a slow BLAS is better than a failing import
            _failure = f"FLOWMLX_BLAS={choice} cannot be used: {error}" if choice else str(error)
    return status()


def status() -> Blas:
    """Say which library MLX calls for a matrix product, read from the slot that it calls through.

    Never raises.
    """
    if sys.platform == "darwin":
        return Blas("Accelerate", "")
    try:
        path = _owner(_slots(_mlx_library())["cblas_sgemm"])
        version = _openblas_version(path)
    except Exception as error:  # information only
        return Blas("unknown", "", f"cannot tell which BLAS MLX calls: {error}")
    if not _is_bundled(path):
        return Blas(version or Path(path).name, path, _failure)
    if os.environ.get("FLOWMLX_BLAS") in ("0", "mlx"):
        advice = "chosen by FLOWMLX_BLAS; unset it for a faster one"
    else:
        advice = _failure or "call flowmlx.blas.load() for a faster one"
    return Blas("reference BLAS of the MLX wheel", path, advice)


def _slots(path: Path) -> dict[str, int]:
    """Addresses of the slots through which a library calls BLAS and LAPACK, by function name."""
    base, tags = _dynamic_section(path)
    slots = {}
    for table, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
        relocations = ctypes.string_at(tags.get(table, 0), tags.get(size, 0))
        for offset, info, _ in struct.iter_unpack("<QQq", relocations):
            if info & 0xFFFFFFFF in SLOT_TYPES[platform.machine()]:
                symbol = tags[DT_SYMTAB] + 24 * (info >> 32)
                name = tags[DT_STRTAB] + ctypes.c_uint32.from_address(symbol).value
                slots[ctypes.string_at(name).decode()] = base + offset
    slots = {name: slot for name, slot in slots.items() if BLAS_NAME.fullmatch(name)}
    if "cblas_sgemm" not in slots:
        raise LookupError(f"{path} imports no function cblas_sgemm")
    return slots


def _dynamic_section(path: Path) -> tuple[int, dict[int, int]]:
    """Load address and dynamic section, tag -> value, of a library; opens it if need be."""
    libc, library, link = ctypes.CDLL(None), ctypes.CDLL(str(path)), ctypes.POINTER(_LinkMap)()
    # Only glibc turns the section's offsets into addresses.
    if platform.machine() not in SLOT_TYPES or not hasattr(libc, "gnu_get_libc_version"):
        raise OSError(f"only done for glibc on {' and '.join(SLOT_TYPES)}")
    if libc.dlinfo(ctypes.c_void_p(library._handle), RTLD_DI_LINKMAP, ctypes.byref(link)):
        raise OSError(f"dlinfo fails on {path}")
    tags, entry = {}, link.contents.dynamic
    while tag := ctypes.c_int64.from_address(entry).value:
        tags[tag] = ctypes.c_uint64.from_address(entry + 8).value
        entry += 16
    return link.contents.base, tags


class _LinkMap(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t))


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _owner(slot: int) -> str:
    """Path of the library that the function in a slot belongs to."""
    function, info = ctypes.c_void_p.from_address(slot), _SymbolInfo()
    if not ctypes.CDLL(None).dladdr(function, ctypes.byref(info)):
        raise LookupError("MLX's cblas_sgemm belongs to no loaded library")
    return os.fsdecode(info.library)


def _redirect(slots: dict[str, int], library: ctypes.CDLL) -> None:
    """Point every slot that `library` has a function for to that function."""
    functions = {name: _function(library, name) for name in slots}
    if functions["cblas_sgemm"] is None:
        raise LookupError(f"{library._name} has no function cblas_sgemm")
    for name, function in functions.items():
        if function is not None:
            _write(slots[name], ctypes.cast(function, ctypes.c_void_p))


def _set_threads(library: ctypes.CDLL) -> None:
    if "OPENBLAS_NUM_THREADS" not in os.environ and "OMP_NUM_THREADS" not in os.environ:
        processors = len(os.sched_getaffinity(0))
        set_threads = _function(library, "openblas_set_num_threads")
        if set_threads is not None:
            set_threads(max(1, processors // 2))


def _function(library: ctypes.CDLL, name: str):
    return next((f for p in PREFIXES if (f := getattr(library, p + name, None))), None)


def _write(slot: int, address: ctypes.c_void_p) -> None:
    # The loader makes the page read-only in a library that was linked with `-z now`.
    page = ctypes.c_void_p(slot & -mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect fails on libmlx.so")
    ctypes.c_void_p.from_address(slot).value = address.value


def _openblas_version(path: str) -> str:
    """Such as 'OpenBLAS 0.3.30 ... Haswell MAX_THREADS=64'; "" for a library of another make."""
    config = _function(ctypes.CDLL(path), "openblas_get_config")
    if config is None:
        return ""
    config.restype = ctypes.c_char_p
    return config().decode()


def _mlx_library() -> Path:
    return _file_of("mlx", "lib*/libmlx.so")


def _openblas_library() -> Path:
    # Found, not imported: importing the package makes all of its symbols global.
    return _file_of("scipy_openblas32", "lib/libscipy_openblas*.so")


def _file_of(package: str, pattern: str) -> Path:
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob(pattern):
            return path
    pip_name = package.replace("_", "-")
    raise LookupError(f"{package} has no {pattern}; try `pip install --force-reinstall {pip_name}`")


def _is_bundled(path: str) -> bool:
    """Whether MLX's wheel brought the library: site-packages/mlx_cpu.libs/libblas-....so."""
    folder = Path(path).parent.name
    return folder.startswith("mlx") and folder.endswith(".libs")

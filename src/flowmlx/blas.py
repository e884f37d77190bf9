"""A fast BLAS for MLX on Linux CPUs.

MLX's Linux wheels bring the reference BLAS and LAPACK, 30 to 40 times slower than OpenBLAS at a
float32 matrix product. scipy-openblas32 has the same functions with `scipy_` before each name, so
the loader never connects the two. It keeps the address of every function that libmlx.so
imports in a slot of that library's global offset table; `load` overwrites the slots of the BLAS
and LAPACK functions. This needs no compiler and no files, works before and after `import
mlx.core`, and no other library in the process sees any of it (symbols made global would also
reach PyTorch or SciPy).

A BLAS that reached MLX another way (LD_PRELOAD, a library opened with RTLD_GLOBAL, MLX built
from source) is left alone. The environment variable FLOWMLX_BLAS decides otherwise: `0` or `mlx`
keeps what MLX has, a path names the library to use (32-bit integers, CBLAS names). OpenBLAS uses
as many threads as there are cores; OPENBLAS_NUM_THREADS changes that.
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

# Dynamic section tags and relocation types of the ELF specification and its processor supplements.
DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_PLTRELSZ, DT_JMPREL = 5, 6, 7, 8, 2, 23
SLOT_TYPES = {"x86_64": {6, 7}, "aarch64": {1025, 1026}}  # GLOB_DAT and JUMP_SLOT
RTLD_DI_LINKMAP = 2

BLAS_NAME = re.compile(r"cblas_[sdcz]\w+|[sdcz][a-z]{3,5}_")  # cblas_sgemm, sgesdd_
PREFIXES = ("scipy_", "")

_failure = ""


@dataclass(frozen=True)
class Blas:
    """What computes MLX's matrix products on the CPU.

    `name` for people, `path` of the library ("" where there is none to name), `note`: why it is
    not a fast one and what to do about it, "" if all is well.
    """

    name: str
    path: str
    note: str = ""


def load() -> Blas:
    """Give MLX a fast BLAS on Linux; elsewhere, or where it has one, change nothing.

    Never raises and prints nothing: `status` says what went wrong. Calling it again is harmless.
    """
    global _failure
    choice = os.environ.get("FLOWMLX_BLAS", "")
    if sys.platform == "linux" and choice not in ("0", "mlx"):
        try:
            _failure = ""
            mlx = _Imports.of(_mlx_library())
            if choice or _is_bundled(mlx.provider()):
                mlx.redirect(ctypes.CDLL(choice or str(_openblas_library())))
        except (OSError, LookupError, AttributeError, ValueError) as error:
            _failure = f"{type(error).__name__}: {error}"
    return status()


def status() -> Blas:
    """Say which library MLX calls for a matrix product, from the slot that it calls through."""
    if sys.platform == "darwin":
        return Blas("Accelerate", "")
    try:
        path = _Imports.of(_mlx_library()).provider()
    except (OSError, LookupError, AttributeError, ValueError) as error:
        return Blas("unknown", "", f"cannot tell which BLAS MLX uses ({error})")
    if not _is_bundled(path):
        return Blas(_version(path) or Path(path).name, path, _failure)
    if _failure:
        advice = f"{_failure}; try `pip install --force-reinstall scipy-openblas32`"
    elif os.environ.get("FLOWMLX_BLAS", ""):
        advice = "unset FLOWMLX_BLAS for a fast one"
    else:
        advice = "call flowmlx.blas.load() for a fast one"
    return Blas("reference BLAS of the MLX wheel", path, advice)


@dataclass(frozen=True)
class _Imports:
    """The BLAS and LAPACK functions that a loaded library imports: name -> address of its slot."""

    slots: dict[str, int]

    @classmethod
    def of(cls, path: Path) -> "_Imports":
        types = SLOT_TYPES[platform.machine()]
        base, tags = _dynamic_section(path)
        slots = {}
        for table, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
            relocations = ctypes.string_at(tags.get(table, 0), tags.get(size, 0))
            for offset, info, _ in struct.iter_unpack("<QQq", relocations):
                if info & 0xFFFFFFFF in types:
                    symbol = ctypes.string_at(tags[DT_SYMTAB] + 24 * (info >> 32), 4)
                    (name,) = struct.unpack("<I", symbol)
                    slots[ctypes.string_at(tags[DT_STRTAB] + name).decode()] = base + offset
        slots = {name: slot for name, slot in slots.items() if BLAS_NAME.fullmatch(name)}
        if "cblas_sgemm" not in slots:
            raise LookupError(f"{path} does not import cblas_sgemm")
        return cls(slots)

    def provider(self) -> str:
        """Path of the library that cblas_sgemm comes from."""
        info = _SymbolInfo()
        target = ctypes.c_void_p.from_address(self.slots["cblas_sgemm"])
        if not ctypes.CDLL(None).dladdr(target, ctypes.byref(info)):
            raise LookupError("cblas_sgemm belongs to no loaded library")
        return os.fsdecode(info.library)

    def redirect(self, library: ctypes.CDLL) -> None:
        """Make every import that `library` has a function for call that function."""
        found = {name: _function(library, name) for name in self.slots}
        if not found["cblas_sgemm"]:
            raise LookupError(f"{library._name} has no function cblas_sgemm")
        for name, address in found.items():
            if address:
                _write(self.slots[name], address)


class _LinkMap(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t))


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _dynamic_section(path: Path) -> tuple[int, dict[int, int]]:
    """Load address and dynamic section, tag -> value, of a library, opened if it is not yet."""
    library, link = ctypes.CDLL(str(path)), ctypes.POINTER(_LinkMap)()
    handle = ctypes.c_void_p(library._handle)
    if ctypes.CDLL(None).dlinfo(handle, RTLD_DI_LINKMAP, ctypes.byref(link)):
        raise OSError(f"dlinfo fails on {path}")
    tags, at = {}, link.contents.dynamic
    while entry := ctypes.c_int64.from_address(at).value:
        tags[entry] = ctypes.c_uint64.from_address(at + 8).value
        at += 16
    return link.contents.base, tags


def _write(slot: int, address: int) -> None:
    # A library linked with `-z now` has its slots in pages that the loader made read-only.
    page = slot & -mmap.PAGESIZE
    if ctypes.CDLL(None, use_errno=True).mprotect(
        ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE
    ):
        raise OSError(ctypes.get_errno(), "mprotect fails on libmlx.so")
    ctypes.c_size_t.from_address(slot).value = address


def _function(library: ctypes.CDLL, name: str) -> int | None:
    for prefix in PREFIXES:
        function = getattr(library, prefix + name, None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


def _version(path: str) -> str:
    """'OpenBLAS 0.3.30 ...' as the library itself says, or "" if it is not OpenBLAS."""
    library = ctypes.CDLL(path)
    for prefix in PREFIXES:
        config = getattr(library, prefix + "openblas_get_config", None)
        if config is not None:
            config.restype = ctypes.c_char_p
            return config().decode()
    return ""


def _mlx_library() -> Path:
    return _file_of("mlx", "lib*/libmlx.so")


def _openblas_library() -> Path:
    # Found, not imported: the package makes all of its symbols global when it is imported.
    return _file_of("scipy_openblas32", "lib/libscipy_openblas*.so")


def _file_of(package: str, pattern: str) -> Path:
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob(pattern):
            return path
    raise LookupError(f"no file {pattern} in the package {package}")


def _is_bundled(path: str) -> bool:
    """Whether a wheel brought the library along: site-packages/mlx_cpu.libs/libblas-....so."""
    folder = Path(path).parent.name
    return folder.startswith("mlx") and folder.endswith(".libs")

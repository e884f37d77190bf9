"""MLX's compiled loops on Linux: where they are kept, and compiled for this processor.

MLX compiles fused operations with g++ for any processor of the kind, on x86-64 four floats at a
time. Where this one has AVX2 and FMA, as nearly all since 2013, or AVX-512 as well, they get the
options that use them (`instructions`): activations take two thirds of the time or less.

It keeps them under the shared temporary folder, and loads whatever it finds there, for whatever
processor and by whomever it was made. Here it keeps them in the user's own folder (`cache`), in one
for each set of instructions. MLX asks the C++ library for the temporary folder, and `popen` for the
compiler; `load` redirects these two calls, of libmlx.so alone (see `elf`), to loops.c. No variable
of the process changes, and plain MLX finds none of these loops.

FLOWMLX_JIT=0 turns it off.
"""

import contextlib
import ctypes
import os
import re
import secrets
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from flowmlx.cpu import elf
from flowmlx.native import cache, instructions
from flowmlx.native import libraries as native

FIND, COPY = (
    "_ZNSt10filesystem19temp_directory_pathB5cxx11Ev",
    "_ZNSt10filesystem8absoluteERKNS_7__cxx114pathE",
)


SOURCE = Path(__file__).with_name("loops.c")


def load(rank: int = 0) -> bool:
    """Let MLX keep its loops in the user's cache; say whether it does.

    Never raises; calling it again is harmless. `rank`: as of `private_cache`.
    """
    try:
        if sys.platform != "linux":
            return False
        functions, path = native.library(SOURCE), folder(rank)
        if functions is None or path is None:
            return False
        _remove_unusable(path)
        _redirect(functions, path)
        return True
    except Exception:  # loops as MLX makes them are better than a failing import
        return False


def private_cache(rank: int = 0) -> None:
    """Let MLX keep its loops in the user's cache also where `load` cannot, by TMPDIR.

    That is set for the whole process, so this is for a program of one's own to call, as `flowmlx`
    does. Never raises.

    `rank`: of a process among several that compile the same loops at once; each but the first gets
    a folder of its own, as MLX before 0.32.4 reads what another is writing.
    """
    if sys.platform != "linux" or load(rank):
        return
    with contextlib.suppress(OSError):
        path = folder(rank)
        if path is not None:
            _remove_unusable(path)
            os.environ["TMPDIR"] = str(path)


def folder(rank: int = 0) -> Path | None:
    """The folder of compiled loops in the cache, None where there can be none."""
    name = instructions.widest().folder
    return cache.folder(f"{name}-rank-{rank}" if rank else name)


def unsafe() -> bool:
    """Whether MLX would load what others could have made, or a shell would act on its own path."""
    if sys.platform != "linux":
        return False
    return _a_shell_acts_on_mlx() or folder() is None


@lru_cache
def _a_shell_acts_on_mlx() -> bool:
    # MLX gives its own folder to a shell as well, between double quotes.
    try:
        path = str(elf.mlx_library())
    except LookupError:  # a backend without libmlx.so compiles no loops
        return False
    found = re.search(r'[$`"\\]', path)
    if found:
        reason = f"a shell could act on the {found[0]!r} in {path!r}"
        cache.warn(f"{reason}, so nothing is compiled: install MLX elsewhere")
    return bool(found)


def _redirect(functions: ctypes.CDLL, path: Path) -> None:
    slots = elf.slots(elf.mlx_library())
    standard = ctypes.CDLL("libstdc++.so.6")  # that of libmlx.so, which is there by now
    for pointer, name in (("temporary_folder", FIND), ("copy_of_path", COPY)):
        address = ctypes.cast(getattr(standard, name), ctypes.c_void_p).value
        ctypes.c_void_p.in_dll(functions, pointer).value = address
    functions.keep_folder.restype = ctypes.c_char_p
    with _temporary_folder(path):
        if functions.keep_folder() != os.fsencode(path):
            raise OSError("the C++ library is another one")
    unfinished = path / f"{cache.UNFINISHED}{secrets.token_hex(8)}-"
    functions.compile_with(
        *(os.fsencode(each) for each in (instructions.widest().options, path, unfinished))
    )
    elf.write(slots[FIND], functions.kept_folder)
    elf.write(slots["popen"], functions.start_compiler)


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[None]:
    given = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(path)
    try:
        yield
    finally:
        if given is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = given


def _remove_unusable(path: Path) -> None:
    """Remove the loops that MLX would take as they are, but must not: it makes them again."""
    for library in path.glob("mlx/*/cpu/lib*.so"):
        if not cache.usable(library):
            library.unlink(missing_ok=True)
    cache.clear(path.glob("mlx/*/cpu/tmp_*"))  # of compilers that were killed

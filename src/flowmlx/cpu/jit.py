"""MLX's compiled loops on Linux: kept in the user's own folder, and compiled for this processor.

MLX compiles fused operations with g++ for any processor of the kind, on x86-64 four floats at a
time. Where this one has AVX2 and FMA, as nearly all since 2013, or AVX-512 as well, they get the
options that use them (`instructions`): activations take two thirds of the time or less.

MLX asks the C++ library for the temporary folder, in which it keeps its loops (`native.loops`), and
`popen` for the compiler; `load` redirects these two calls, of libmlx.so alone (see `slots`), to
loops.c. No variable of the process changes, and plain MLX finds none of these loops.

FLOWMLX_JIT=0 turns it off.
"""

import ctypes
import os
import secrets
from pathlib import Path

from flowmlx.cpu import slots
from flowmlx.native import cache, elf, instructions, loops
from flowmlx.native import libraries as native

SOURCE = Path(__file__).with_name("loops.c")
# Called by libmlx.so; called by loops.c: copy a path, and the two calls that make one of a text.
FIND = "_ZNSt10filesystem19temp_directory_pathB5cxx11Ev"
OF_PATHS = {
    "copy_of_path": "_ZNSt10filesystem8absoluteERKNS_7__cxx114pathE",
    "no_parts": "_ZNSt10filesystem7__cxx114path5_ListC1Ev",
    "find_parts": "_ZNSt10filesystem7__cxx114path14_M_split_cmptsEv",
}


def load() -> bool:
    """Let MLX keep its loops in the user's cache; say whether it does.

    Never raises; calling it again is harmless.
    """
    try:
        functions, path = native.library(SOURCE), loops.folder()
        if functions is None or path is None:
            return False
        _redirect(functions, path)
        loops.redirect(path)
        return True
    except Exception:  # loops as MLX makes them are better than a failing program
        return False


def _redirect(functions: ctypes.CDLL, path: Path) -> None:
    by_name = slots.of(elf.mlx_library())
    standard = ctypes.CDLL("libstdc++.so.6")  # that of libmlx.so, which is there by now
    for pointer, name in OF_PATHS.items():
        address = ctypes.cast(getattr(standard, name), ctypes.c_void_p).value
        ctypes.c_void_p.in_dll(functions, pointer).value = address
    functions.keep_folder.restype = ctypes.c_char_p
    if functions.keep_folder(os.fsencode(path)) != os.fsencode(path):
        raise OSError("the C++ library is another one")
    unfinished = path / f"{cache.UNFINISHED}{secrets.token_hex(8)}-"
    functions.compile_with(
        *(os.fsencode(each) for each in (instructions.widest().options, path, unfinished))
    )
    slots.write({by_name[FIND]: functions.kept_folder, by_name["popen"]: functions.start_compiler})

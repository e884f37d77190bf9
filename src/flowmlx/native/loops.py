"""Where MLX keeps the loops that it compiles on Linux: a folder that only the user can write to.

By itself MLX keeps them under the shared temporary folder, and loads whatever it finds there, for
whatever processor and by whomever it was made. Here there is a folder in the user's own cache, one
for each set of instructions. `cpu.jit` has MLX use it; a program of one's own, as the command is,
may also do so by a variable.
"""

import os
import re
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from flowmlx.native import cache, elf, instructions, launchers

_redirected: Path | None = None  # where MLX was told to keep them


def folder(kind: instructions.Instructions | None = None) -> Path | None:
    """The folder in the cache for loops of a kind, the widest by default; None where none is safe.

    Of several ranks, which compile the same loops at once, each but the first gets a folder of its
    own, as MLX before 0.32.4 reads what another is writing.
    """
    name, rank = (kind or instructions.widest()).folder, launchers.rank()
    path = cache.folder(f"{name}-rank-{rank}" if rank else name)
    try:
        return path and _without_unusable(path)
    except OSError as error:  # what MLX would load, but must not, stays
        cache.warn(f"{error}, so nothing is compiled: remove {path}")
        return None


def redirect(path: Path | None) -> None:
    """Note that MLX was told to keep its loops in `path`; None: as it does by itself."""
    global _redirected
    _redirected = path


def are_redirected() -> bool:
    """Whether MLX was told where to keep its loops, and compiles them for this processor."""
    return _redirected is not None


def place() -> Path:
    """Where MLX keeps its loops in this process."""
    return (_redirected or Path(os.environ.get("TMPDIR") or tempfile.gettempdir())) / "mlx"


def keep_by_variable() -> bool:
    """Let MLX keep its loops in the cache also where it was not told to, by TMPDIR.

    That is set for the whole process, so this is for a program of one's own. Returns whether they
    are kept there; never raises.
    """
    if _redirected is None and (path := folder(instructions.NARROW)) is not None:
        os.environ["TMPDIR"] = str(path)
        return True
    return _redirected is not None


def unsafe() -> bool:
    """Whether MLX would load what others could have made, or a shell would act on its own path."""
    return sys.platform == "linux" and (a_shell_acts_on_mlx() or folder() is None)


@lru_cache
def a_shell_acts_on_mlx() -> bool:
    """Whether a shell would act on MLX's own path, which is given to one in double quotes."""
    try:
        path = str(elf.mlx_library())
    except LookupError:  # a backend without libmlx.so compiles no loops
        return False
    found = re.search(r'[$`"\\]', path)
    if found:
        reason = f"a shell could act on the {found[0]!r} in {path!r}"
        cache.warn(f"{reason}, so nothing is compiled: install MLX elsewhere")
    return bool(found)


@lru_cache
def _without_unusable(path: Path) -> Path:
    """Remove, once, the loops that MLX would take but must not, so that it makes them again."""
    for library in path.glob("mlx/*/cpu/lib*.so"):
        if not cache.usable(library):
            library.unlink(missing_ok=True)
    cache.clear(path.glob("mlx/*/cpu/tmp_*"))  # of compilers that were killed
    return path

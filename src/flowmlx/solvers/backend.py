"""What is done to MLX's backend at the first use, and not at the import, of this package.

`ready` is called where work begins: where arrays and keys are handed over (`arrays`), and where
something is compiled. Whoever only imports the package leaves MLX as it is.
"""

import sys
from collections.abc import Callable

import mlx.core as mx

_preparation: Callable[[], object] | None = None


def is_linux_cpu() -> bool:
    """Whether MLX computes on its CPU backend, on Linux."""
    return sys.platform == "linux" and mx.default_device() == mx.cpu


def prepare_by(preparation: Callable[[], object]) -> None:
    """Let `ready` call `preparation` when MLX computes on its CPU backend on Linux.

    Threads may call it at once: it does its work once, and returns when that is done.
    """
    global _preparation
    _preparation = preparation


def ready() -> None:
    """Prepare the backend, where that was not done; else it costs what an empty call does."""
    if _preparation is not None:
        _prepare()


def _prepare() -> None:
    global _preparation
    if is_linux_cpu() and (preparation := _preparation):  # else later: devices can be changed
        preparation()
        _preparation = None

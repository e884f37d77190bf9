"""What the command does to its own process before anything is compiled."""

import sys

import mlx.core as mx

from flowmlx.native import loops
from flowmlx.solvers import backend
from flowmlx.training import ranks


def keep_loops_private() -> None:
    """Have MLX keep its compiled loops where only the user can write.

    Where `cpu.accelerate` does not, as on a GPU and with FLOWMLX_CPU=0, TMPDIR does.
    """
    if sys.platform == "linux" and (loops.a_shell_acts_on_mlx() or not loops.keep_by_variable()):
        mx.disable_compile()  # uncompiled is slower, and right


def share_processors(group: ranks.Group | None) -> None:
    """Take this rank's part of the cores, where several run on one machine. All must call it."""
    if group is None:
        return
    processes = ranks.on_this_machine(group)
    if backend.is_linux_cpu():
        from flowmlx import cpu

        cpu.accelerate(processes)

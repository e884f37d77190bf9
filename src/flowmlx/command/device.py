"""The device that a command runs on."""

import sys

import mlx.core as mx

from flowmlx.command import info
from flowmlx.solvers import backend


def use_device(cpu: bool) -> None:
    """Use the CPU where it is asked for, and say what is missing for a fast one."""
    if cpu:
        mx.set_default_device(mx.cpu)
    backend.ready()
    if mx.default_device() == mx.cpu and info.compiler() is None:
        print(f"flowmlx: {info.NO_COMPILER}", file=sys.stderr)

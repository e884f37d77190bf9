"""flowmlx: flow matching for MLX. Train, sample, score and draw continuous flows.

Words and symbols, the same in code, options and files:

    t            time: 0 at the source (noise), 1 at the data; v = dx/dt. Some codes count the other
                 way (SD3, Flux, SiT): replace their t by 1 - t and their v by -v.
    x0, x1       a source sample and a data sample; xt the point on the path between them
    path         how x0 travels to x1: `flowmlx.paths`
    coupling     which x0 meets which x1: `flowmlx.couplings`
    field        any function v(t, x), such as a network of `flowmlx.nets`; a conditional one is
                 v(t, x, cond), and without cond the field of all the data: `flowmlx.conditions`
    ut, vt       the path's velocity, which a field is trained on, and the field's own
    solver       integrates dx/dt = v(t, x): `flowmlx.solvers`; nfe counts evaluations of the field
    key          an MLX random key; whatever draws at random takes one by name
    run          a folder that `flowmlx train` writes: `flowmlx.load` opens it
"""

import os as _os
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

_is_command = _os.path.splitext(_os.path.basename(_sys.argv[0]))[0] == "flowmlx"
if _is_command:
    from flowmlx.command import interrupt as _interrupt

    _interrupt.while_loading()

try:
    import mlx.core as _mx  # noqa: F401
except ImportError as _error:
    _extra = "" if _sys.platform == "darwin" else "[cpu]"
    _message = f"MLX has no backend here ({_error}); install one: pip install 'mlx{_extra}'" + (
        "" if _sys.platform == "darwin" else "  (or [cuda12], [cuda13] for an NVIDIA GPU)"
    )
    if _is_command:  # a line, not a traceback
        print(f"flowmlx: error: {_message}", file=_sys.stderr)
        _sys.exit(2)
    raise ImportError(_message) from _error

from flowmlx import (  # noqa: E402
    bridges,
    conditions,
    conversions,
    couplings,
    data,
    guidance,
    keys,
    likelihood,
    losses,
    metrics,
    nets,
    paths,
    sampling,
    snapshots,
    solvers,
    times,
    torchcfm,
    training,
)
from flowmlx.couplings import semidiscrete  # noqa: E402
from flowmlx.solvers import backend as _backend  # noqa: E402
from flowmlx.training import checkpoint, ranks  # noqa: E402
from flowmlx.transport import entropic  # noqa: E402

# Modules that moved into packages, under the names that they had before.
for _module in (checkpoint, entropic, ranks, semidiscrete):
    _sys.modules[f"flowmlx.{_module.__name__.rpartition('.')[2]}"] = _module


def _accelerate() -> None:
    from flowmlx import cpu

    cpu.accelerate()


_backend.prepare_by(_accelerate)

if _TYPE_CHECKING:
    from flowmlx.flow import Flow, load, train


def __getattr__(name: str):
    """`Flow`, `train` and `load`, whose imports take longer than all others."""
    if name in ("Flow", "load", "train"):
        from flowmlx import flow

        return getattr(flow, name)
    raise AttributeError(f"module 'flowmlx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Flow",
    "bridges",
    "checkpoint",
    "conditions",
    "conversions",
    "couplings",
    "data",
    "entropic",
    "guidance",
    "keys",
    "likelihood",
    "load",
    "losses",
    "metrics",
    "nets",
    "paths",
    "ranks",
    "sampling",
    "semidiscrete",
    "snapshots",
    "solvers",
    "times",
    "torchcfm",
    "train",
    "training",
]
__version__ = "0.1.0"

"""How a solve is made: the keywords that the solvers of ODEs share, and their defaults."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar

import numpy as np

from flowmlx.solvers.control import DEFAULT_CONTROL, Controller, Norm, rms
from flowmlx.solvers.stepper import Stepper

F = TypeVar("F", bound=Callable)


class StepOptions(TypedDict, total=False):
    """What all of them have; `odeint` says what each means."""

    method: str | Stepper
    rtol: Any
    atol: Any
    max_steps: int
    control: Controller


class SolveOptions(StepOptions, total=False):
    """And those of solves whose samples share their steps."""

    step_size: float | None
    grid: Sequence[float] | np.ndarray | None
    norm: Norm


DEFAULTS: dict[str, Any] = {
    "method": "dopri5",
    "rtol": 1e-4,
    "atol": 1e-4,
    "max_steps": 10_000,
    "control": DEFAULT_CONTROL,
    "step_size": None,
    "grid": None,
    "norm": rms,
}


def takes(kind: type) -> Callable[[F], F]:
    """Decorate a function of `**options: Unpack[kind]`: its signature names them, with defaults.

    `kind`: StepOptions or SolveOptions. For `help`, for editors, and for whoever inspects it.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name])
            for name in kind.__annotations__
        ]
        function.__signature__ = signature.replace(parameters=[*own, *shared])
        return function

    return decorate


def complete(kind: type, options: Any) -> dict[str, Any]:
    """The options with the defaults of those that were not given. Raises TypeError for others."""
    known = list(kind.__annotations__)
    for name in options:
        if name not in known:
            raise TypeError(f"unknown keyword {name!r}; expected one of {', '.join(known)}")
    return DEFAULTS | options

"""The methods by name."""

from typing import Any

from flowmlx.solvers import adams, tableaus
from flowmlx.solvers.stepper import Stepper

_ALL: list[Stepper] = [
    tableaus.EULER,
    tableaus.MIDPOINT,
    tableaus.HEUN,
    tableaus.RALSTON,
    tableaus.RK4,
    tableaus.RK4_38,
    adams.AB2,
    adams.AB3,
    adams.ABM2,
    tableaus.BOSH3,
    tableaus.DOPRI5,
    tableaus.TSIT5,
]

METHODS: dict[str, Stepper] = {method.name: method for method in _ALL}

# Those that choose their steps.
ADAPTIVE = [name for name, method in METHODS.items() if method.error_order is not None]


def look_up(method: Any) -> Stepper:
    """The method of that name, or the one that was given."""
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    if isinstance(method, Stepper) and not isinstance(method, type):
        return method
    raise ValueError(
        f"unknown method {method!r}; known: {', '.join(METHODS)}, and any solvers.Stepper, such as "
        "the one for a path that flowmlx.sampling.sample(..., path=...) makes of dpmpp_2m and "
        "unipc_2"
    )


def has_name(method: Stepper) -> bool:
    """Whether a method is the one that its name stands for."""
    return METHODS.get(method.name) is method

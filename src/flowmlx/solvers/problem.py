"""A solve, checked and ready."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowmlx.solvers.arrays import check_callable
from flowmlx.solvers.control import Controller, Norm
from flowmlx.solvers.failures import Call
from flowmlx.solvers.inputs import (
    Field,
    check_control,
    check_grid,
    check_max_steps,
    check_times,
    check_tolerance,
)
from flowmlx.solvers.methods import has_name, look_up
from flowmlx.solvers.stepper import Stepper


@dataclass(frozen=True)
class Problem:
    """A solve, checked and ready.

    `ends`: of its steps, None where errors decide on them. `tolerances`: rtol and atol of each leaf
    of the state.
    """

    field: Field
    method: Stepper
    times: list[float]
    ends: list[float] | None
    tolerances: tuple[list[float], list[float]]
    norm: Norm
    control: Controller
    max_steps: int
    call: Call


def prepare(
    field: Callable[..., Any], x0: Any, ts: Any, args: tuple, chosen: dict[str, Any]
) -> Problem:
    """Check the arguments of a solver; `chosen`: `options.complete` ones."""
    method = look_up(chosen["method"])
    slope = Field(field, x0, args)
    check_control(chosen["control"])
    check_callable(
        chosen["norm"], "norm", "of the ratios of error to tolerance, such as solvers.rms"
    )
    times = check_times(ts, slope.time_dtype)
    max_steps = check_max_steps(chosen["max_steps"])
    grid = chosen["step_size"], chosen["grid"]
    ends = check_grid(times, *grid, slope.time_dtype, max_steps)
    if ends is None and (method.error_order is None or not slope.x0.size):  # nothing has no error
        ends = times
    return Problem(
        slope,
        method,
        times,
        ends,
        check_tolerance(chosen["rtol"], chosen["atol"], slope),
        chosen["norm"],
        chosen["control"],
        max_steps,
        call_of("odeint", method),
    )


def call_of(function: str, method: Stepper) -> Call:
    """The user's call, for messages."""
    written = f'"{method.name}"' if has_name(method) else "method"
    return Call(function, written, method.name)

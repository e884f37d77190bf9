"""How a solve ends, and what the error says when it ends early."""

import math
from dataclasses import dataclass
from enum import Enum

import mlx.core as mx

from flowmlx.solvers.arrays import dtype_name

# Steps are short for stability from here, in units of 1 / rate: orders 3 to 5 reach 2.5 to 3.3.
STIFF = 1.5


class Status(str, Enum):
    """How a solve ended; each compares equal to its string."""

    SUCCESS = "success"
    EVENT = "event"
    MAX_STEPS = "max_steps"
    NON_FINITE = "non_finite"
    STAGNATION = "stagnation"


class SolverError(RuntimeError):
    """A solve that could not reach its last output time.

    `status`: the cause; `t` and `dt`: where, and the signed step that failed.
    """

    def __init__(self, status: Status, t: float, dt: float, message: str):
        super().__init__(message)
        self.status, self.t, self.dt = status, t, dt


@dataclass(frozen=True)
class Call:
    """The user's call, for messages.

    `method`: as it is written there. `who`: the solver, with the sample that failed, if any.
    """

    function: str
    method: str
    who: str

    def write(self, *options: str) -> str:
        """The call to write instead."""
        parts = ["field", "x0", "ts", f"method={self.method}", *options]
        return f"{self.function}({', '.join(parts)})"


def out_of_steps(
    call: Call, t: float, dt: float, rate: float = 0.0, *, max_steps: int, end: float
) -> SolverError:
    """The number of steps ran out; `rate`: that of `control.answer_rate` there."""
    where = f"{call.who} took max_steps={max_steps} steps and is at t={t:.6g}, dt={dt:.3g}, short "
    where += f"of t={end:.6g}."
    if rate * abs(dt) > STIFF:
        advice = (
            f"The field is stiff there: its slope answers to changes of x at a rate of {rate:.2g}, "
            "which bounds the steps of an explicit method however loose the tolerance. Rescale x "
            "or smooth the field, or allow as many steps as that takes: "
        )
    else:
        advice = "Allow more steps or a larger error: "
    return SolverError(
        Status.MAX_STEPS, t, dt, f"{where} {advice}{call.write(f'max_steps={10 * max_steps}')}"
    )


def below_rounding(call: Call, t: float, dt: float, dtype: mx.Dtype) -> SolverError:
    """The tolerance is one that the state cannot resolve; before the first step where dt is 0."""
    eps = mx.finfo(dtype).eps
    reachable = f"1e{math.ceil(math.log10(10 * eps))}"
    finer = "float64 on the CPU" if dtype == mx.float32 else "float32, x0.astype(mx.float32)"
    other = "" if dtype == mx.float64 else f" or solve in {finer},"
    return SolverError(
        Status.STAGNATION,
        t,
        dt,
        f"{call.who} at t={t:.6g}, dt={dt:.3g}: rtol and atol ask for less than the rounding error "
        f"of a {dtype_name(dtype)} state, whose resolution is {eps:.2g}. Loosen them,{other} as in "
        + call.write(f"rtol={reachable}", f"atol={reachable}"),
    )


def no_step(call: Call, t: float, dt: float, error: float) -> SolverError:
    """Error control rejected the shortest step, which had that error norm."""
    if math.isfinite(error):
        return SolverError(
            Status.STAGNATION,
            t,
            dt,
            f"{call.who} at t={t:.6g} needs a step below dt={dt:.3g}, the shortest that dtmin or "
            "the precision of t allows. The solution blows up there, or the field jumps or is "
            "stiff, or the tolerance is too tight. Loosen it, or stop before: "
            + call.write("rtol=1e-3", "atol=1e-3"),
        )
    return SolverError(
        Status.NON_FINITE,
        t,
        dt,
        f"{call.who} at t={t:.6g}: the state or the field is not finite (NaN or overflow) however "
        f"small the step, down to dt={dt:.3g}. The solution blows up there or the field is not "
        "defined. Stop before, or keep what there is: " + call.write("throw=False"),
    )


def not_finite_at_start(call: Call, t: float) -> SolverError:
    """The state or the field is not finite before the first step."""
    return SolverError(
        Status.NON_FINITE,
        t,
        0.0,
        f"{call.who}: x0 or field(t, x0) is not finite (NaN or overflow) at t={t:.6g}, before the "
        f"first step (dt=0). Look at the field there: field(mx.array({t!r}), x0)",
    )


def not_finite_after(call: Call, t: float, dt: float) -> SolverError:
    """Steps of fixed length left the finite numbers."""
    return SolverError(
        Status.NON_FINITE,
        t,
        dt,
        f"{call.who} met a state that is not finite (NaN or overflow) after t={t:.6g} with steps "
        f"of dt={dt:.3g}. The solution blows up, the steps are too long to be stable, or the field "
        "returns NaN. Take shorter steps, or let the method choose them: "
        'odeint(field, x0, ts, method="dopri5")',
    )

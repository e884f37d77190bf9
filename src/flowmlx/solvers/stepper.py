"""What a method is: a `Stepper`, which takes one step at a time.

The loops, gradients, events and dense solutions ask no more of a method than this, so that a new
sort of step needs a file of its own and nothing else: see "A step of your own" in docs/solvers.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
import numpy as np

# A float, or a float64 array (batch,) where every sample has steps of its own.
Time = Any
# The solution inside a step: shares (n,) of its length to states (n, *x.shape).
Inside = Callable[[np.ndarray], mx.array]


class Slope(Protocol):
    """The field, as methods see it: `field(t, x)` is dx/dt, and counts as an evaluation.

    The state is one array: of x0, or of all its leaves, (batch, n) or (n,), where x0 is a tree.
    """

    def __call__(self, t: Time, x: mx.array) -> mx.array:
        """Slope at time t and state x, with the shape and dtype of x."""
        ...

    def begin(self, k: mx.array) -> None:
        """Let the device start on a slope, while the host prepares the next stage."""
        ...


@dataclass
class Point:
    """A time, the state there, and its slope `k` once that is known."""

    t: Time
    x: mx.array
    k: mx.array | None = None

    def slope(self, field: Slope) -> mx.array:
        """The slope here; the field is evaluated only when it is first asked for."""
        if self.k is None:
            self.k = field(self.t, self.x)
        return self.k


@dataclass
class Step:
    """A step from `start` to `end`.

    `error`: estimate of the error in the state at the end; None from methods without one.
    `inside`: the solution between the two, of shares in (0, 1) of the step; None stands for the
    cubic polynomial through the states and slopes of both ends. `memory`: what the next step is
    told; a tree, whose arrays gradients go through. `accepted`: whether the solve goes on from the
    end, which the loop decides; (batch,) where every sample has steps of its own.
    """

    start: Point
    end: Point
    error: mx.array | None = None
    inside: Inside | None = None
    memory: Any = None
    accepted: Any = True


@runtime_checkable
class Stepper(Protocol):
    """A method for `odeint`: what the loops ask of it."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def order(self) -> int:
        """Of the solution: its error goes with this power of the steps' length."""
        ...

    @property
    def error_order(self) -> int | None:
        """Of a step's error estimate, None without one.

        The estimate goes with the power `error_order` + 1 of the step's length: for an embedded
        pair it is the order of the solution that is compared with. A method with an estimate
        chooses its steps, one without takes those that it is told.
        """
        ...

    def start(self, ts: Sequence[float], x0: mx.array) -> Any:
        """What the first step of a solve at times `ts` is told; None for nothing.

        Raises ValueError for times or states that the method is not for.
        """
        ...

    def step(self, field: Slope, start: Point, t_next: Time, memory: Any) -> Step:
        """The step from `start` to the time `t_next`, earlier or later.

        `memory`: that of the step before. The method keeps nothing itself: equal arguments give
        equal steps, as a step may be rejected, and taken again for its gradients.
        """
        ...

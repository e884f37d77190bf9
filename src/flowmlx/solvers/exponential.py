"""Multistep methods that know the path: DPM-Solver++(2M) and UniPC(2).

Along x_t = alpha(t) x1 + beta(t) x0 any field is v = alpha' D + beta' (x - alpha D) / beta for some
D(t, x), the field's guess of the data x1; it changes slowly. What is linear in x is solved exactly:

    x(t) = beta_t / beta_s x(s) + alpha_t * integral of exp(l - l_t) D dl,   l = log(alpha / beta),

and the methods differ in how they extend D over the step from its last values. l is infinite where
alpha or beta is 0: a value there says nothing about the slope of D in l, so that the step after it
does without, and a last step to beta = 0 ends at alpha D.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.solvers.stepper import Point, Slope, Step


class Coefficients(NamedTuple):
    """Of a path x_t = alpha x1 + beta x0 at one time, with their derivatives in time.

    Numbers, or arrays of one shape.
    """

    alpha: Any
    beta: Any
    d_alpha: Any
    d_beta: Any

    @property
    def det(self) -> Any:
        """Determinant of (x, velocity) as functions of (x1, x0); below 0 where noise recedes."""
        return self.alpha * self.d_beta - self.beta * self.d_alpha

    @property
    def level(self) -> float:
        """log(alpha / beta), infinite at the ends; of numbers."""
        if self.alpha == 0 or self.beta == 0:
            return math.inf if self.beta == 0 else -math.inf
        return math.log(self.alpha / self.beta)


class Node(NamedTuple):
    """A value of D, with the l (`level`) and the coefficients of its time."""

    level: float
    c: Coefficients
    data: mx.array


class Known(NamedTuple):
    """What a step is told: the coefficients at its start, and the node before that.

    `here`, `k`: the node and the slope at the start, where the step before found them.
    """

    c: Coefficients
    before: Node | None = None
    here: Node | None = None
    k: mx.array | None = None


@dataclass(frozen=True)
class Exponential:
    """A `method` for `odeint`: UniPC(2) with the `corrector`, DPM-Solver++(2M) without.

    `coefficients(t)`: of the path, at a float t. The solve leads from the source, where beta > 0,
    to the data. It may be of any field; steps can be long where that is close to the path's own.
    """

    coefficients: Callable[[float], Coefficients]
    corrector: bool = False

    @property
    def name(self) -> str:
        """The name that users know it by."""
        return "unipc_2" if self.corrector else "dpmpp_2m"

    @property
    def order(self) -> int:
        """Between the ends of the path; the last step, to where beta is 0, is of first order."""
        return 3 if self.corrector else 2

    @property
    def error_order(self) -> None:
        """None: it takes the steps that it is told."""

    def start(self, ts: Sequence[float], x0: mx.array) -> Known:
        """The coefficients at the first time.

        Raises ValueError for times that do not lead from the source to the data, and where the path
        stands still at the first of them.
        """
        return Known(check_direction(self, ts))

    def step(self, field: Slope, start: Point, t_next: float, memory: Known) -> Step:
        """Predict the state at the end, and correct it unless no noise is left there."""
        if memory.k is not None:
            start.k = memory.k  # that of the predicted state, which is near enough
        here = memory.here or node(memory.c, start.x, start.slope(field))
        c = self.coefficients(t_next)
        end, there = Point(t_next, predict(start.x, c, here, memory.before)), None
        if self.corrector and c.beta != 0:
            # The value at the predicted state serves the next step as well: one evaluation a step.
            there = node(c, end.x, end.slope(field))
            end.x = correct(start.x, there, here, memory.before)
        return Step(start, end, memory=Known(c, here, there, end.k))


def check_direction(method: Exponential, ts: Sequence[float]) -> Coefficients:
    """The coefficients at the first of the times, if they lead from the source to the data.

    Raises ValueError where they do not, and where the path stands still at the first of them.
    """
    first, last = (method.coefficients(t) for t in (ts[0], ts[-1]))
    if ts[-1] < ts[0] or first.beta == 0 or min(first.alpha, last.beta) < 0:
        raise ValueError(
            f"{method.name} solves from the source to the data and ts runs from {ts[0]!r} to "
            f"{ts[-1]!r}; expected rising times from one at which beta is above 0, or another "
            'method, such as "dopri5"'
        )
    if first.det == 0:
        raise ValueError(
            f"{method.name} finds the data by the velocity, and at t = {ts[0]!r} this path "
            'stands still; start a little later, or take another method, such as "dopri5"'
        )
    return first


def node(c: Coefficients, x: mx.array, v: mx.array) -> Node:
    """The value of D at x that goes with the velocity v there."""
    scale = c.det
    data = (c.d_beta / scale) * x - (c.beta / scale) * v
    return Node(c.level, c, data)


def predict(x: mx.array, c: Coefficients, here: Node, before: Node | None) -> mx.array:
    """Extend D along a line in l: DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    It is UniP-2 as well, with B(h) = exp(h) - 1 (Zhao et al. 2023, arXiv 2302.04867).
    """
    data, h = here.data, c.level - here.level
    if before is not None and math.isfinite(h):
        data = data + (0.5 * h / (here.level - before.level)) * (data - before.data)
    ratio = c.beta / here.c.beta
    return ratio * x + (c.alpha - ratio * here.c.alpha) * data


def correct(x: mx.array, there: Node, here: Node, before: Node | None) -> mx.array:
    """Take the step again, with D at its end as well: UniC-2 (Zhao et al. 2023, arXiv 2302.04867).

    D is the parabola through three values, integrated exactly, which is UniC-2 for every B(h).
    Without a value before, at finite l, it is the mean of two: UniC-1.
    """
    h = there.level - here.level
    ratio = there.c.beta / here.c.beta
    if before is None or not math.isfinite(before.level) or not math.isfinite(h):
        return ratio * x + (there.c.alpha - ratio * here.c.alpha) * 0.5 * (here.data + there.data)
    # Moments of exp(l - l_t) over the step, in powers of its share (l - l_s) / h.
    first = -math.expm1(-h)
    second = 1 - first / h
    moments = [first, second, 1 - 2 * second / h]
    places = np.array([0.0, 1.0, (before.level - here.level) / h])
    a, b, c = there.c.alpha * np.linalg.solve(np.vander(places, increasing=True).T, moments)
    return ratio * x + float(a) * here.data + float(b) * there.data + float(c) * before.data

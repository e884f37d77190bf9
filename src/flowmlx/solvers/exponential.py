"""Multistep methods that know the path: DPM-Solver++(2M) and UniPC(2).

Along x_t = alpha(t) x1 + beta(t) x0 any field is v = alpha' D + beta' (x - alpha D) / beta for some
D(t, x), the field's guess of the data x1; it changes slowly. What is linear in x is solved exactly:

    x(t) = beta_t / beta_s x(s) + alpha_t * integral of exp(l - l_t) D dl,   l = log(alpha / beta),

and the methods differ in how they extend D over the step from its last values. l is infinite where
alpha or beta is 0: a value there says nothing about the slope of D in l, so that the step after it
does without, and a last step to beta = 0 ends at alpha D.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.solvers import failures
from flowmlx.solvers.failures import Call
from flowmlx.solvers.steps import Slope, Step


class Coefficients(NamedTuple):
    """Of a path at one time: alpha and beta, and their derivatives in time."""

    alpha: float
    beta: float
    d_alpha: float
    d_beta: float

    @property
    def level(self) -> float:
        """log(alpha / beta), infinite at the ends."""
        if self.alpha == 0 or self.beta == 0:
            return math.inf if self.beta == 0 else -math.inf
        return math.log(self.alpha / self.beta)


@dataclass(frozen=True)
class Exponential:
    """A `method` for `odeint`: UniPC(2) with the `corrector`, DPM-Solver++(2M) without.

    `coefficients(t)`: of the path, at a float t from its source (beta > 0) to its data. Any field
    can be solved; the closer it is to that path's, the longer the steps that will do.
    """

    coefficients: Callable[[float], Coefficients]
    corrector: bool = False

    @property
    def name(self) -> str:
        """The name that users know it by."""
        return "unipc_2" if self.corrector else "dpmpp_2m"


class Node(NamedTuple):
    """A value of D, with the l (`level`) and the coefficients of its time."""

    level: float
    c: Coefficients
    data: mx.array


def determinant(c: Coefficients) -> float:
    """Of the system that D and the noise solve, given x and its velocity; 0 where it has none."""
    return c.alpha * c.d_beta - c.beta * c.d_alpha


def node(c: Coefficients, x: mx.array, v: mx.array) -> Node:
    """The value of D at x that goes with the velocity v there."""
    scale = determinant(c)
    data = (c.d_beta / scale) * x - (c.beta / scale) * v
    return Node(c.level, c, data)


def check_direction(method: Exponential, times: list[float]) -> None:
    """Refuse a solve that does not lead from the source to the data, or starts at a standstill."""
    first, last = (method.coefficients(t) for t in (times[0], times[-1]))
    if times[-1] < times[0] or first.beta == 0 or min(first.alpha, last.beta) < 0:
        raise ValueError(
            f"{method.name} solves from the source to the data and ts runs from {times[0]!r} to "
            f"{times[-1]!r}; expected rising times from one at which beta is above 0, or another "
            'method, such as "dopri5"'
        )
    if determinant(first) == 0:
        raise ValueError(
            f"{method.name} finds the data by the velocity, and at t = {times[0]!r} this path "
            'stands still; start a little later, or take another method, such as "dopri5"'
        )


def exponential_steps(
    field: Slope, method: Exponential, ends: list[float], x: mx.array, max_steps: int, call: Call
) -> Iterator[Step]:
    """Yield the steps between the times `ends`, which must rise and begin where beta > 0."""
    k = field(ends[0], x)
    before, here = None, node(method.coefficients(ends[0]), x, k)
    for n, (t, t_next) in enumerate(pairwise(ends)):
        if n == max_steps:
            raise failures.out_of_steps(call, n, t, t_next - t, ends[-1])
        c = method.coefficients(t_next)
        step = Step(t, t_next, x, predict(x, c, here, before), [k])
        there = None
        if method.corrector and c.beta != 0:
            # The value at the predicted state serves the next step as well: one evaluation a step.
            step.k_next = field(t_next, step.x_next)
            there = node(c, step.x_next, step.k_next)
            step.x_next = correct(x, there, here, before)
        yield step
        if t_next == ends[-1]:
            return
        x, k = step.x_next, step.k_next
        if k is None:
            k = field(t_next, x)
        before, here = here, there or node(c, x, k)


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

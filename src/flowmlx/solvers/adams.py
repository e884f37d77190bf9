"""Adams-Bashforth methods, for steps of any length."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.solvers.dense import weighted_sum
from flowmlx.solvers.stepper import Point, Slope, Step
from flowmlx.solvers.tableaus import HEUN

# Times and slopes there, the newest first.
Past = list[tuple[float, mx.array]]


@dataclass(frozen=True)
class Adams:
    """An Adams-Bashforth method through the slopes at the last `order` ends of steps.

    `corrector`: whether the trapezoidal rule corrects it, at a second evaluation per step; the
    order is then 2 and so is `order`.
    """

    order: int
    corrector: bool = False
    name: str = "adams"

    @property
    def error_order(self) -> None:
        """None: it takes the steps that it is told."""

    def start(self, ts: Sequence[float], x0: mx.array) -> Past:
        """No slopes so far."""
        return []

    def step(self, field: Slope, start: Point, t_next: float, memory: Past) -> Step:
        """Integrate the polynomial through the slope at `start` and those of the past.

        With a corrector, the slope at the predicted state joins the trapezoidal rule, and the next
        step starts from the slope at the corrected state (PECE). Without a past, as at the start,
        the step is Heun's. Hairer, Norsett & Wanner I, III.1 and III.5.
        """
        t, x, k = start.t, start.x, start.slope(field)
        past: Past = [(t, k), *memory][: self.order]
        usable = _far_apart(past, t_next - t)
        if len(usable) == 1:
            step = HEUN.step(field, start, t_next)
        else:
            nodes, slopes = zip(*usable, strict=True)
            x_next = x + weighted_sum(adams_weights(nodes, t, t_next), slopes)
            if self.corrector:
                predicted = field(t_next, x_next)
                x_next = x + weighted_sum(adams_weights((t_next, t), t, t_next), (predicted, k))
            step = Step(start, Point(t_next, x_next))
        step.memory = past[: self.order - 1]
        return step


def adams_weights(nodes: Sequence[float], t: float, t_next: float) -> list[float]:
    """Weights w with sum_i w_i p(nodes_i) = integral of p from t to t_next.

    Exact for polynomials p of a degree below the number of nodes.
    """
    h = t_next - t
    powers = np.arange(len(nodes))
    matrix = ((np.asarray(nodes) - t) / h) ** powers[:, None]
    return (h * np.linalg.solve(matrix, 1 / (powers + 1))).tolist()


def _far_apart(past: Past, h: float) -> Past:
    """The newest slopes, as far back as they are no closer than a tenth of the step.

    A polynomial through closer ones amplifies rounding errors as it leaves them.
    """
    gaps: list[Any] = [abs(new[0] - old[0]) for new, old in pairwise(past)]
    close = [gap < abs(h) / 10 for gap in gaps]
    return past[: 1 + (close.index(True) if any(close) else len(close))]


AB2 = Adams(order=2, name="ab2")
AB3 = Adams(order=3, name="ab3")
# Adams-Bashforth-Moulton of order 2: predict, evaluate, correct, evaluate.
ABM2 = Adams(order=2, corrector=True, name="abm2")

"""Brownian motion as a function of a key: ask for its increment over any interval.

A path is a binary tree. Its root holds the increment over all of [0, span], and a node gives those
over its two halves by drawing what it does not determine, with a key of its own. An interval is a
union of nodes, so one key gives one path, however it is cut: a virtual Brownian tree (Gaines &
Lyons 1997; Li et al. 2020, arXiv 2001.01328), here with the space-time area (Jelincic, Foster &
Kidger 2024, arXiv 2405.06464).
"""

import math
from typing import Any, NamedTuple

import mlx.core as mx

from flowmlx.solvers.arrays import check_count, check_key, check_number, describe

# Levels of the tree. Below, a cell is cut where asked, with one draw for all its cuts: exact for
# intervals no shorter than a cell. Every level more is one more draw per step, unless the number of
# steps is a power of two.
DEPTH = 10
# Times this close to the edge of a cell, in cells, are on it but for rounding.
SNAP = 1e-6


class Increment(NamedTuple):
    """Brownian motion W over an interval [s, t] of length `dt` = t - s.

    `w`: W(t) - W(s), of variance dt. `h`: the space-time area, the mean of W(r) - W(s) over the
    interval minus w / 2, of variance dt / 12 and independent of w.
    """

    dt: float
    w: mx.array
    h: mx.array


class BrownianMotion:
    """Independent Brownian motions of `shape` from W(0) = 0 to time `span`, set by `key`.

    `motion(s, t)` returns the `Increment` over [s, t]. Increments over adjacent intervals combine
    to the one over their union, whatever else was asked before; going from left to right is cheap.
    `shortest`: length of the shortest interval that will be asked for. It does not change the path
    down to span / 2^DEPTH; below, it keeps the path at multiples of span / 2^DEPTH.
    Raises ValueError for intervals that are empty, too short or not in [0, span].
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        span: float,
        *,
        key: mx.array,
        dtype: mx.Dtype = mx.float32,
        shortest: float | None = None,
    ):
        span = check_number(span, "span", "a number above 0", lambda span: 0 < span < math.inf)
        if shortest is not None:
            expected = f"a number in (0, {span!r}]"
            check_number(shortest, "shortest", expected, lambda length: 0 < length <= span)
        self.shape = tuple(check_count(size, "shape", least=0) for size in _sizes(shape))
        self.span, self.dtype = span, dtype
        depth = max(DEPTH, math.ceil(math.log2(span / (shortest or span))))
        self.cells = 2**depth
        root, self.key = mx.random.split(check_key(key))
        z = self._normal(root)
        self.whole = Increment(span, math.sqrt(span) * z[0], math.sqrt(span / 12) * z[1])
        # Halves, and their keys, of the nodes around the end of the last interval.
        self.known: dict = {}

    def __call__(self, s: float, t: float) -> Increment:
        """Increment over [s, t]."""
        s, t = (check_number(time, name, "a time") for time, name in ((s, "s"), (t, "t")))
        start, end = self._cell(s), self._cell(t)
        if not (0 <= start <= end - 1 + SNAP and end <= self.cells):
            raise ValueError(
                f"no increment over [{s!r}, {t!r}]; expected an interval in [0, {self.span!r}] no "
                f"shorter than {self.span / self.cells:.3g}; pass shortest= for shorter ones"
            )
        increment = self._within(start, end, 0, self.cells, self.whole, self.key)
        self.known = {
            (low, high, cut): halves
            for (low, high, cut), halves in self.known.items()
            if low < end < high
        }
        return increment

    def _within(
        self, start: float, end: float, low: float, high: float, node: Increment, key: mx.array
    ) -> Increment:
        """Increment over the part of [start, end] in the node [low, high], in cells."""
        if start <= low and high <= end:
            return node
        cut = (low + high) // 2 if high - low > 1 else (start if start > low else end)
        if (low, high, cut) not in self.known:
            noise, *keys = mx.random.split(key, 3)
            halves = divide(node, (cut - low) / (high - low), self._normal(noise))
            self.known[low, high, cut] = list(zip(halves, keys, strict=True))
        (left, left_key), (right, right_key) = self.known[low, high, cut]
        if end <= cut:
            return self._within(start, end, low, cut, left, left_key)
        if start >= cut:
            return self._within(start, end, cut, high, right, right_key)
        return join(
            self._within(start, end, low, cut, left, left_key),
            self._within(start, end, cut, high, right, right_key),
        )

    def _cell(self, t: float) -> float:
        """Time in units of cells; an int on their edges."""
        cell = t / self.span * self.cells
        return round(cell) if abs(cell - round(cell)) < SNAP else cell

    def _normal(self, key: mx.array) -> mx.array:
        return mx.random.normal((2, *self.shape), dtype=self.dtype, key=key)


def _sizes(shape: Any) -> tuple | list:
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape is {describe(shape)}; expected a tuple of integers, such as (8, 2)")
    return shape


def divide(whole: Increment, theta: float, z: mx.array) -> tuple[Increment, Increment]:
    """Increments over the first `theta` of an interval and over the rest.

    `z` (2, ...): standard normals. Those of the first part are drawn given the whole (normal
    distributions conditioned on linear sums of themselves); the rest is what is left.
    """
    dt, w, h = whole
    a, b = theta * dt, (1 - theta) * dt
    q = theta * (1 - theta)
    # Conditional variances of w and h of the first part, and their covariance.
    var_w, var_h, cov = dt * q * (1 - 3 * q), dt * (theta - theta**4) / 12, -dt * theta**2 * q / 2
    std_w = math.sqrt(var_w)
    w1 = theta * w + 6 * q * h + std_w * z[0]
    h1 = theta**2 * h + cov / std_w * z[0] + math.sqrt(var_h - cov**2 / var_w) * z[1]
    w2 = w - w1
    h2 = (dt * h - a * h1 - (b * w1 - a * w2) / 2) / b  # `join` solved for h of the second part
    return Increment(a, w1, h1), Increment(b, w2, h2)


def join(first: Increment, second: Increment) -> Increment:
    """Increment over the union of two adjacent intervals."""
    a, b = first.dt, second.dt
    h = (a * first.h + b * second.h + (b * first.w - a * second.w) / 2) / (a + b)
    return Increment(a + b, first.w + second.w, h)

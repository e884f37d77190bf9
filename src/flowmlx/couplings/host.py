"""What a coupling is, and couplings that are computed by NumPy on the host."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from flowmlx.keys import generator
from flowmlx.solvers.arrays import as_rows

Coupling = Callable[..., tuple[mx.array, mx.array]]
Points = mx.array | np.ndarray
Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class HostCoupling:
    """A coupling computed on the host.

    `pair(x0, x1, rng=...)` takes arrays (n, ...) and (m, ...) and a generator (None: no key was
    given), all of NumPy, and returns two index arrays; it may run in any thread. `conditional`: it
    takes the conditions of x1, (m, ...), as a third array. `pointwise`: pair k is of x0[k], and
    depends on no other point of x0, so that it does not matter how many are paired at once.
    """

    pair: Callable[..., Pairs]
    conditional: bool = False
    pointwise: bool = False

    def __call__(self, *points: Points, key: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """Pair x0 and x1, and the conditions of x1 where `conditional`."""
        rng = None if key is None else generator(key)
        i, j = self.pair(*on_host(*points), rng=rng)
        return mx.array(i), mx.array(j)


def on_host(*points: Points) -> list[np.ndarray]:
    """x0, x1 and, if there are some, the conditions of x1 as a `HostCoupling` takes them.

    Raises ValueError where one has no rows, or the samples of x0 and x1 have different shapes.
    """
    names = ("x0", "x1", "condition", *("what follows x1",) * len(points))
    arrays = [as_rows(x, name) for x, name in zip(points, names, strict=False)]
    if len(arrays) > 1 and arrays[0].shape[1:] != arrays[1].shape[1:]:
        raise ValueError(
            f"x0 has samples of shape {arrays[0].shape[1:]} and x1 of {arrays[1].shape[1:]}; "
            "expected points of one space"
        )
    return arrays


def required(rng: np.random.Generator | None) -> np.random.Generator:
    """Return the generator that pairs are drawn with; ValueError where no key was given."""
    if rng is None:
        raise ValueError("pairs are drawn at random here; pass key=mx.random.key(...)")
    return rng


def even(n: int, m: int, rng: np.random.Generator | None) -> Pairs:
    """Indices that repeat the points of the smaller batch: (i, j), each of length max(n, m)."""
    return _copies(n, max(n, m), rng), _copies(m, max(n, m), rng)


def _copies(n: int, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """Repeat range(n) to `size` indices: whole copies, and a random choice for the rest."""
    whole, rest = divmod(size, n)
    copies = np.tile(np.arange(n), whole)
    return np.append(copies, required(rng).choice(n, rest, replace=False)) if rest else copies

"""Where fixed steps end: grids of times from 0 to 1, for the `grid` of `odeint`.

Each is a function `(n) -> (n + 1,)` of the number of steps, float64. `1 - grid` and `grid[::-1]`
run the other way.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import as_array, as_numpy, check_count, check_number

Grid = Callable[[int], np.ndarray]

# Towards the source, as Esser et al. 2024 train and sample: their shift of 3, in their time.
SHIFT = 1 / 3


def uniform(n: int) -> np.ndarray:
    """Equal steps: k / n."""
    return _shares(n)


def sine(n: int) -> np.ndarray:
    """sin(pi k / (2 n)): the steps get shorter towards t = 1, the last by pi / (4 n)."""
    return np.sin(0.5 * np.pi * _shares(n))


def shifted(n: int, factor: float = SHIFT) -> np.ndarray:
    """`shift` of equal steps: below 1 the steps get shorter towards t = 0. Raises as `shift`."""
    grid = shift(_shares(n), factor)
    grid[-1] = 1.0  # which rounding may miss
    return grid


def shift(t: Any, factor: float) -> Any:
    """Move times on [0, 1] to factor t / (1 + (factor - 1) t): 0 and 1 stay.

    A `factor` above 1 moves them to the data, one below 1 to the source. Esser et al. 2024 (SD3,
    arXiv 2403.03206, Eq. 23) count time the other way: their shift of 3 is a factor of 1/3 here.
    `t`: numbers or arrays of any kind, so that it serves for a solver's `ts` as well. Raises
    ValueError for a factor that is not above 0.
    """
    expected = "a number above 0, such as 1/3"
    factor = check_number(factor, "factor", expected, lambda f: 0 < f < math.inf)
    if not isinstance(t, int | float):
        t = as_array(t, "t") if isinstance(t, mx.array) else as_numpy(t, "t", np.float64)
    return factor * t / (1 + (factor - 1) * t)


def _shares(n: int) -> np.ndarray:
    n = check_count(n, "n")
    # The ends are exact; 1 / n may round so that n steps of it are not 1.
    return np.arange(n + 1) / n


GRIDS: dict[str, Grid] = {"uniform": uniform, "sine": sine, "shifted": shifted}

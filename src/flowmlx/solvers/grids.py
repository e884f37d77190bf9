"""Where fixed steps end: grids of times from 0 to 1, for the `grid` of `odeint`.

Each is a function `(n) -> (n + 1,)` of the number of steps, float64. `1 - grid` and `grid[::-1]`
run the other way.
"""

from collections.abc import Callable

import numpy as np

from flowmlx.solvers.arrays import check_count, check_number

Grid = Callable[[int], np.ndarray]


def uniform(n: int) -> np.ndarray:
    """Equal steps: k / n."""
    return _shares(n)


def sine(n: int) -> np.ndarray:
    """sin(pi k / (2 n)): the steps get shorter towards t = 1, the last by pi / (4 n)."""
    return np.sin(0.5 * np.pi * _shares(n))


def shifted(n: int, factor: float = 1 / 3) -> np.ndarray:
    """factor u / (1 + (factor - 1) u) for u = k / n: below 1 it moves times towards t = 0.

    The shift of Esser et al. 2024 (arXiv 2403.03206, section 5.3.2), who count time from the data
    to the noise: their shift of 3 is 1/3 here. Raises ValueError for a factor that is not above 0.
    """
    factor = check_number(factor, "factor", "a number above 0, such as 1/3", lambda f: f > 0)
    u = _shares(n)
    return factor * u / (factor * u + (1 - u))  # which is 1 at u = 1 in any rounding


def _shares(n: int) -> np.ndarray:
    n = check_count(n, "n")
    # The ends are exact; 1 / n may round so that n steps of it are not 1.
    return np.arange(n + 1) / n


GRIDS: dict[str, Grid] = {"uniform": uniform, "sine": sine, "shifted": shifted}

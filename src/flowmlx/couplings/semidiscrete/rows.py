"""The rows of a data set as semidiscrete transport sees them, and how a point chooses one."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flowmlx.couplings.conditions import check_weight, condition_coordinates
from flowmlx.couplings.host import required
from flowmlx.files.fingerprints import fingerprint
from flowmlx.solvers.arrays import as_rows
from flowmlx.transport import entropic, laguerre
from flowmlx.transport.costs import check_finite, flat_rows
from flowmlx.transport.products import products

# Columns up to which rows are found by a grid in place of a comparison with all.
GRID_COLUMNS = 3
# Scores of draws in a block (1 MB), which stays in a cache.
BLOCK = 2**18

# From points (n, d) about the centre of the rows, and a generator, to distinct rows (n,).
Chooser = Callable[[np.ndarray, np.random.Generator | None], np.ndarray]


class DataSet(NamedTuple):
    """Rows (N, d) float32 with their conditions (N, ...), None where they have none.

    A point meets the rows of one group only: `group` (N,), numbers from 0. `coordinates` (N, k)
    float32: what a row's condition adds to its own coordinates, k = 0 for nothing.
    """

    rows: np.ndarray
    conditions: np.ndarray | None
    group: np.ndarray
    coordinates: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Tells these rows, and their conditions, from others."""
        arrays = [x for x in (self.rows, self.conditions) if x is not None]
        return fingerprint(*(part for x in arrays for part in (repr(x.shape), x)))

    def groups(self) -> list[np.ndarray]:
        """The numbers of the rows of each group."""
        return [np.flatnonzero(self.group == k) for k in range(self.group.max() + 1)]

    def points(self, members: np.ndarray) -> "Points":
        """Those rows as points, with the coordinates of their conditions."""
        return Points(np.hstack([self.rows[members], self.coordinates[members]]))


def data_set(rows: Any, conditions: Any, weight: float) -> DataSet:
    """Rows, and conditions or None, as users give them; `weight`: of conditions in the cost.

    Raises ValueError where there are more of one than of the other.
    """
    weight = check_weight(weight)
    flat = flat_rows(as_rows(rows, "rows"), np.float32)
    n, nothing = len(flat), np.zeros((len(flat), 0), np.float32)
    if conditions is None:
        return DataSet(flat, None, np.zeros(n, int), nothing)
    conditions = as_rows(conditions, "conditions")
    if len(conditions) != n:
        raise ValueError(f"{n} rows and {len(conditions)} conditions; expected as many")
    y = condition_coordinates(conditions)
    if weight < math.inf:
        weighted = (math.sqrt(weight) * y).astype(np.float32)
        return DataSet(flat, conditions, np.zeros(n, int), weighted)
    group = np.unique(y, axis=0, return_inverse=True)[1].ravel()
    return DataSet(flat, conditions, group, nothing)


class Points:
    """Rows as points about their centre, each distinct one once."""

    def __init__(self, flat: np.ndarray):
        check_finite(np.abs(flat).max())
        distinct, self.first, self.inverse, self.counts = np.unique(
            flat, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        self.inverse = self.inverse.ravel()
        self.members = np.argsort(self.inverse, kind="stable")  # rows, equal ones together
        self.last = np.cumsum(self.counts) - 1  # place of the last of equal ones there
        self.weights = self.counts / len(flat)
        # Not the mean, which one row moves to where float32 cannot tell the others apart.
        self.centre = np.median(flat, axis=0).astype(np.float32)
        self.points = distinct - self.centre
        with np.errstate(over="ignore"):
            self.squares = (self.points**2).sum(1)
        if not np.isfinite(self.squares).all():
            raise ValueError(
                f"the rows reach up to {np.abs(flat).max():.3g}, the squares of which are beyond "
                "float32; give them in other units, such as standardised"
            )

    def scores(self, potential: np.ndarray) -> laguerre.Affine:
        """The scores g_j - |x - y_j|^2, less |x|^2, as functions of x."""
        return laguerre.Affine(2 * self.points, potential.astype(np.float32) - self.squares)

    def one_of_equal(self, j: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """A row for each distinct one: at random, where rows are equal."""
        place = self.last[j]
        if len(self.counts) < len(self.members):
            place -= required(rng).integers(0, self.counts[j])
        return self.members[place]


def chooser(
    data: Points, potential: np.ndarray, reg: float, box: np.ndarray | None = None
) -> Chooser:
    """Make the function from points to the rows that they meet.

    `potential` (distinct rows,). `box`: bounds of the points, with which few columns take a grid.
    """
    scores = data.scores(potential)
    if reg > 0:
        columns = potential + reg * np.log(data.weights)

        def choose(x, rng):
            def costs(rows):
                return data.squares - products(x[rows], scores.slopes)

            return entropic.draw(costs, np.arange(len(x)), columns, reg, rng=required(rng))

    elif box is not None and data.points.shape[1] <= GRID_COLUMNS:
        exact = laguerre.Affine(*(part.astype(np.float64) for part in scores))
        grid = laguerre.grid(exact, *box.astype(np.float64))

        def choose(x, rng):
            return grid.largest(x)

    else:

        def choose(x, rng):
            return np.concatenate([scores.largest(x[k]) for k in blocks(len(x), len(potential))])

    return choose


def blocks(draws: int, rows: int) -> list[slice]:
    """Parts of `draws` whose scores of all rows stay in a cache."""
    size = max(1, BLOCK // rows)
    return [slice(k, k + size) for k in range(0, draws, size)]

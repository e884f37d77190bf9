"""The coupling that a fitted potential makes."""

from collections.abc import Callable

import numpy as np

from flowmlx.couplings.host import HostCoupling, Pairs, required
from flowmlx.couplings.semidiscrete.potential import Semidiscrete
from flowmlx.couplings.semidiscrete.rows import Chooser, DataSet, chooser, data_set
from flowmlx.transport.costs import check_finite, flat_rows


def semidiscrete(
    fitted: Semidiscrete, rows: np.ndarray, conditions: np.ndarray | None = None
) -> HostCoupling:
    """Make the coupling of a fitted potential: it pairs each x0 with its row of the whole data set.

    `fitted`: from `fit_semidiscrete`. `rows`, `conditions`: the same as in the fit. The coupling
    needs all rows as x1, as `data.streams.whole(rows)` gives them, and makes one pair for each x0.
    So all batches follow the same transport map. With up to 3 columns, the row is found among a few
    candidates (see `laguerre`), otherwise by a matrix product and an argmax; with reg > 0 it is
    drawn with the key. If rows have conditions, each x0 gets the condition of a random row, drawn
    with the key. So the source does not depend on the condition, as in sampling. Raises ValueError
    for rows or conditions other than those of the fit.
    """
    data = data_set(rows, conditions, fitted.weight)
    if fitted.fingerprint != data.fingerprint:
        raise ValueError(
            f"these {len(rows)} rows, or their conditions, are not those that the potential of "
            f"{len(fitted.potential)} rows was fitted to; fit it again with fit_semidiscrete"
        )
    choosers = [_chooser(fitted, data, members) for members in data.groups()]

    def pair(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
        x = _checked(x0, x1, data)
        if data.conditions is None:
            return np.arange(len(x)), choosers[0](x, rng)
        row = required(rng).integers(0, len(data.rows), len(x))
        x, j = np.hstack([x, data.coordinates[row]]), np.empty(len(x), int)
        for group, choose in enumerate(choosers):
            those = np.flatnonzero(data.group[row] == group)
            j[those] = choose(x[those], rng)
        return np.arange(len(x)), j

    return HostCoupling(pair, pointwise=True)


def _checked(x0: np.ndarray, x1: np.ndarray, data: DataSet) -> np.ndarray:
    """x0 as rows (n, d); ValueError where it, or x1, does not go with the data."""
    if len(x1) != len(data.rows):
        raise ValueError(
            f"x1 has {len(x1)} points; this coupling chooses among the {len(data.rows)} rows that "
            "it was fitted to: pass these, as data.streams.whole(rows) does"
        )
    x, columns = flat_rows(x0, np.float32), data.rows.shape[1]
    if x.shape[1] != columns:
        raise ValueError(f"x0 has {x.shape[1]} columns; expected {columns}, as the rows")
    check_finite(np.abs(x).max())
    return x


def _chooser(fitted: Semidiscrete, data: DataSet, members: np.ndarray) -> Chooser:
    """Make the function from points, with coordinates of conditions, to rows among the members."""
    points = data.points(members)
    potential = fitted.potential[members][points.first]
    choose = chooser(points, potential, fitted.reg, fitted.box - points.centre)

    def row(x: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return members[points.one_of_equal(choose(x - points.centre, rng), rng)]

    return row


# Couplings that are made of a potential and the rows that it was fitted to.
FITTED_COUPLINGS: dict[str, Callable[..., HostCoupling]] = {"semidiscrete": semidiscrete}

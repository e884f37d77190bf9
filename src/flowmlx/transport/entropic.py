"""Entropic optimal transport between two samples of equal weights, on the host.

The plan of least sum P c + reg KL(P | a b) with marginals a = 1/n and b = 1/m is
P_ij = a b exp((f_i + g_j - c_ij) / reg); Sinkhorn's algorithm finds the potentials f and g (Cuturi
2013). Where the marginals are only held by reg_m KL, every update shrinks by
reg_m / (reg_m + reg), and the plan's mass is no longer 1 (Chizat et al. 2018).

Potentials stay in the log domain. A kernel exp((g_j - c_ij - top_i) / reg), top_i the largest
g_j - c_ij of its row, is made from them, and rounds of scaling on one kernel are products with
vectors (after Schmitzer 2019): what costs time is exp. Matrices are float32, exact to 1e-7 of the
largest cost.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flowmlx.solvers.arrays import check_number

# Costs of some rows, `(rows) -> (len(rows), m)` float32, in units of about the mean cost; `rows` is
# a slice or an array of indices.
RowCosts = Callable[[slice | np.ndarray], np.ndarray]

# Rounds of scaling on a kernel that is kept: ten take as long as making it.
ROUNDS = 10
# A round goes this many times as far as Sinkhorn's, which saves a third of the rounds and more
# (Thibault et al. 2021, arXiv 1711.01851).
RELAXATION = 1.7
# The regularisation is divided by this from level to level, starting from the mean cost, and each
# level is left at this error: from there the last one takes a third of the rounds.
ANNEALING, WARM = 3, 0.02
# Numbers in a kernel that is kept (16 MB), and in a block of a larger one (1 MB).
KEPT, BLOCK = 2**22, 2**18
# A potential moves by at most this many reg on one kernel, which keeps exp in range of float32: a
# column that no row reaches comes closer kernel by kernel.
REACH = 60


class NotConverged(RuntimeError):
    """A transport plan did not meet its marginals."""


class Potentials(NamedTuple):
    """Potentials f (n,) and g (m,) of the plan P_ij = exp((f_i + g_j - c_ij) / reg) / (n m)."""

    rows: np.ndarray
    columns: np.ndarray


def potentials(
    costs: RowCosts,
    shape: tuple[int, int],
    reg: float,
    *,
    reg_m: float = math.inf,
    tolerance: float = 1e-3,
    iterations: int = 10_000,
) -> Potentials:
    """Find the potentials of the entropic plan between n = shape[0] and m = shape[1] points.

    `reg`, `reg_m`: in units of `costs`. `tolerance`: on the sum over columns of the difference
    between the plan's mass there and its target; rows are exact. Raises NotConverged where it is
    not met after `iterations` rounds, or a number is not finite; ValueError for a `reg` that is not
    above 0.
    """
    reg = check_reg(reg)
    rounds = ROUNDS if math.prod(shape) <= KEPT else 1
    columns, done = np.zeros(shape[1]), 0
    for level in _annealing(reg):
        goal = tolerance if level == reg else max(tolerance, WARM)
        while True:
            rows, error, following = sweep(costs, shape, columns, level, reg_m=reg_m, rounds=rounds)
            if error <= goal:
                break
            columns, done = following, done + rounds
            if not math.isfinite(error) or done >= iterations:
                raise NotConverged(
                    f"a Sinkhorn plan misses its marginals by {error:.2g} (tolerance {goal:.2g}) "
                    f"after {done} iterations at reg {level:.3g}, in units of the mean cost; give "
                    f"a larger reg (here {reg:.3g}), more iterations or a larger tolerance"
                )
    return Potentials(rows, columns)


def check_reg(reg: float) -> float:
    """The strength of a regularisation, above 0."""
    return check_number(reg, "reg", "a finite number above 0", lambda reg: 0 < reg < math.inf)


def _annealing(reg: float) -> list[float]:
    """Regularisations that fall to `reg`, from below the mean cost."""
    levels = [1 / ANNEALING]
    while levels[-1] > reg:
        levels.append(levels[-1] / ANNEALING)
    return [*levels[:-1], reg]


def sweep(
    costs: RowCosts,
    shape: tuple[int, int],
    columns: np.ndarray,
    reg: float,
    *,
    reg_m: float = math.inf,
    rounds: int = 1,
    scratch: np.ndarray | None = None,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Scale the kernel of column potentials (m,): their row potentials, their error, new ones.

    The error is that of the plan of the row and column potentials, as in `potentials`. More than
    one round keeps the whole kernel in memory, in `scratch` (n, m) float32 if given.
    """
    n, m = shape
    columns = columns.astype(np.float32).astype(np.float64)  # as the kernel sees them
    shrink = 1 / (1 + reg / reg_m)
    relaxation = RELAXATION if reg_m == math.inf else 1.0

    def row_update(kernel, top, v):
        return -shrink * (top + reg * np.log(np.einsum("ij,j->i", kernel, v) / m))

    def reached(kernel, top, rows):
        return np.einsum("ij,i->j", kernel, np.exp((rows + top) / reg).astype(np.float32)) / n

    def column_update(reach):
        return shrink * (columns - reg * np.log(np.maximum(reach, math.exp(-REACH))))

    rows, reach, v = np.empty(n), np.zeros(m), np.ones(m, np.float32)
    for block in [slice(0, n)] if rounds > 1 else _blocks(n, m):
        kernel, top = _kernel(costs(block), columns, reg, scratch)
        rows[block] = row_update(kernel, top, v)
        reach += reached(kernel, top, rows[block])
    error = float(np.abs(reach - np.exp(-columns / reg_m)).mean())
    new = columns + relaxation * (column_update(reach) - columns)
    for _ in range(rounds - 1):
        new = np.clip(new, columns - REACH * reg, columns + REACH * reg)
        v = np.exp((new - columns) / reg).astype(np.float32)
        reach = reached(kernel, top, row_update(kernel, top, v))
        new = new + relaxation * (column_update(reach) - new)
    return rows, error, new


def _kernel(
    costs: np.ndarray, columns: np.ndarray, reg: float, scratch: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    kernel = np.subtract(columns.astype(np.float32), costs, out=scratch)
    top = kernel.max(1)
    kernel -= top[:, None]
    kernel *= np.float32(1 / reg)
    np.exp(kernel, out=kernel)
    return kernel, top.astype(np.float64)


def _blocks(n: int, m: int) -> list[slice]:
    """Slices of range(n) of about `BLOCK` numbers in m columns."""
    size = max(1, BLOCK // m)
    return [slice(k, min(k + size, n)) for k in range(0, n, size)]


def draw(
    costs: RowCosts, rows: np.ndarray, columns: np.ndarray, reg: float, *, rng: np.random.Generator
) -> np.ndarray:
    """Draw a column for each of `rows` (k,), with the probabilities that the plan gives its row.

    `columns`: potentials (m,), in units of `costs`, as `reg`. Returns indices (k,).
    """
    chosen = np.empty(len(rows), np.int64)
    for block in _blocks(len(rows), len(columns)):
        kernel, _ = _kernel(costs(rows[block]), columns, reg)
        cumulated = kernel.cumsum(1, dtype=np.float64)
        level = rng.random(len(kernel)) * cumulated[:, -1]
        chosen[block] = (cumulated <= level[:, None]).sum(1)
    return np.minimum(chosen, len(columns) - 1)  # where rounding made the level the whole

"""Exact transport between points of equal masses: the assignment problem, and its plans.

Shortest augmenting paths (Jonker & Volgenant 1987) from approximate potentials of the columns,
near which most paths are one arc long, walked by assignment.c, which `native` compiles. Rounding
there is 1e-16 of the largest cost, and a proof follows that it has not mattered. Where there is
none, as with points far away or with ties, the costs are taken digit by digit, in whole numbers,
which makes the plan the best one of the costs as they are. Of several that cost the same it may be
any.
"""

import ctypes
import math
from pathlib import Path

import numpy as np

from flowmlx.native import libraries as native
from flowmlx.transport import entropic

# Regularisations of the annealed scaling, in units of the mean cost, and the rounds at each:
# measured to balance the time that it takes against the time that it saves.
ANNEALING, ROUNDS = (0.1, 0.02, 0.004), 5
# What assignment.c returns in place of a number of flows.
NO_MEMORY, BAD_NUMBER = -1, -2
# A whole number of fewer bits is exact in float64, and so are its sums along a path.
BITS = 48
SOURCE = Path(__file__).with_name("assignment.c")


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (i, j), each a permutation of range(n), with the least sum of `cost[i, j]`.

    `cost`: (n, n). Takes 0.8 ms for 512 points in the plane, after the potentials; SciPy 5. Raises
    ValueError where a cost is not finite or the matrix is not square.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost has shape {cost.shape}; expected (n, n)")
    return np.arange(len(cost)), shortest_paths(cost, column_potentials(cost))


def transport(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cheapest plan between n points of mass 1/n and m of 1/m: (i, j, mass), each (k,).

    `cost`: (n, m). The plan moves `mass`, above 0 and 1 in all, from i to j. Where one plan is the
    cheapest, k is below n + m. Takes 0.3 s for 1,000 points to 999 in the plane, 25 without a C
    compiler. Raises ValueError where a cost is not finite.
    """
    n, m = cost.shape
    if n < m:
        j, i, mass = transport(cost.T)
        return i, j, mass
    if n == m:
        i, j = assign(cost)
        return i, j, np.full(n, 1 / n)
    i, j, mass = _best_flows(cost, column_potentials(cost)).T
    return i, j, mass / math.lcm(n, m)


def shortest_paths(cost: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The columns of the rows in the best assignment, from column potentials (n,)."""
    if native.library(SOURCE) is None:
        found = _by_scipy(cost, columns)
        if found is not None:
            return found
    column_of = np.empty(len(cost), np.int32)
    i, j, _ = _best_flows(cost, columns).T
    column_of[i] = j
    return column_of


def _by_scipy(cost: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """`shortest_paths` by SciPy; None where costs that it paid are lost beside the potentials."""
    from scipy.optimize import linear_sum_assignment

    # A potential changes the cost of every permutation alike. Rows need none: a path starts in
    # its row at whatever height.
    _check_finite(cost=cost, columns=columns)
    i, j = linear_sum_assignment(cost - columns)
    paid = np.abs(cost[i, j])
    least = np.min(paid, where=paid > 0, initial=np.abs(cost).max())
    return j if least >= 1e-10 * np.abs(columns).max() else None


def _best_flows(cost: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Flows (k, 3) of the cheapest plan, from approximate column potentials (m,).

    Each is a row, a column, and a mass in units of 1 / lcm(n, m).
    """
    cost = np.ascontiguousarray(cost, np.float64)
    v = np.array(columns, np.float64)
    if native.library(SOURCE) is not None:
        flows = _shortest_paths(cost, v)
        if flows is not None and _is_proved(cost, v, flows):
            return flows[:, :3]
    return _by_digits(cost, v)[0]


def reduced_costs(cost: np.ndarray) -> np.ndarray:
    """Costs (n, m) less the potentials of a cheapest plan, to float64 accuracy of each.

    They are 0 where the plan moves mass, and at least 0 elsewhere. Raises as `transport` does.
    """
    cost = np.ascontiguousarray(cost, np.float64)
    return _by_digits(cost, column_potentials(cost))[1]


def _by_digits(cost: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_best_flows` without rounding, from column potentials (m,), and the `reduced_costs`.

    The leading digits of the costs are whole numbers, for which float64 is exact. A pair of which
    they are far above its potentials can be in no best plan, whatever the digits after them. The
    rest of the costs decides between the other pairs, with the digits so far less their potentials
    before it, and so on, until no digit is left.
    """
    # A better plan differs by cycles of at most as many pairs as there are points on a side, and
    # the digits to come change each pair by less than 1 either way.
    far = 2 * min(cost.shape) + 1
    bits = BITS - far.bit_length()
    exponent = int(np.frexp(np.abs(cost).max())[1])
    rest = np.ldexp(cost, -exponent)
    v = np.rint(np.clip(np.ldexp(v, bits - exponent), -(2.0**bits), 2.0**bits))
    reduced, gaps, level = np.zeros_like(cost), rest.copy(), 0
    while True:
        rest = np.ldexp(rest, bits)
        digits = np.trunc(rest)
        rest -= digits
        reduced = np.ldexp(reduced, bits) + digits
        flows = _shortest_paths(reduced, v)
        assert flows is not None  # as whole numbers of BITS bits are not too large
        u = np.empty(len(cost))
        u[flows[:, 0]] = reduced[flows[:, 0], flows[:, 1]] - v[flows[:, 1]]
        reduced -= u[:, None]
        reduced -= v
        level += bits
        gaps -= np.ldexp(u, -level)[:, None]
        gaps -= np.ldexp(v, -level)
        near = reduced < far
        gaps[near] = np.ldexp(reduced[near] + rest[near], -level)
        if not rest[near].any():
            return flows[:, :3], np.ldexp(np.maximum(gaps, 0), exponent)
        np.minimum(reduced, far, out=reduced)
        v = np.zeros_like(v)


def _shortest_paths(cost: np.ndarray, v: np.ndarray) -> np.ndarray | None:
    """Flows (k, 4) of the best plan: rows, columns, masses in units of 1 / lcm(n, m), and links.

    From potentials `v` (m,), which it makes the best. None where the numbers are too large for it.
    """
    (n, m), masses = cost.shape, math.lcm(*cost.shape)
    compiled = native.library(SOURCE)
    if compiled is None:
        return _shortest_paths_in_python(cost, v, masses // n, masses // m)
    flows = np.empty((min(n * m, masses) + 1, 4), np.int32)
    sizes = (ctypes.c_int(size) for size in (n, m, masses // n, masses // m))
    count = compiled.transport(*sizes, *map(_pointer, (cost, v, flows)))
    if count == NO_MEMORY:
        raise MemoryError(f"no memory for a plan between {n} and {m} points")
    if count == BAD_NUMBER:
        _check_finite(cost=cost, columns=v)
        return None
    return flows[:count][flows[:count, 2] > 0]


def _is_proved(cost: np.ndarray, v: np.ndarray, flows: np.ndarray) -> bool:
    """Whether rounding leaves no doubt that `flows` (k, 4), of potentials `v`, are the best."""
    compiled = native.library(SOURCE)
    assert compiled is not None
    sizes, arrays = map(ctypes.c_int, cost.shape), map(_pointer, (cost, v, flows))
    return compiled.is_unique(*sizes, *arrays, ctypes.c_int(len(flows))) == 1


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def _check_finite(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")


def _shortest_paths_in_python(
    cost: np.ndarray, v: np.ndarray, supply: int, demand: int
) -> np.ndarray:
    """What `transport` of assignment.c does, where there is no compiler; see there."""
    u = (cost - v).min(1)
    flow, left, room = _flows_to_nearest(cost - v, u, supply, demand)
    while left.any():
        start = int(left.argmax())
        column, source, through = _shortest_path(cost, u, v, flow, room, start)
        gaining, losing = [(source[column], column)], []
        while (row := gaining[-1][0]) != start:
            losing.append((row, through[row]))
            gaining.append((source[through[row]], through[row]))
        sent = min(left[start], room[column], *(flow[pair] for pair in losing))
        left[start] -= sent
        room[column] -= sent
        for pair in gaining:
            flow[pair] += sent
        for pair in losing:
            flow[pair] -= sent
    i, j = np.nonzero(flow)
    return np.stack([i, j, flow[i, j]], 1)


def _flows_to_nearest(
    reduced: np.ndarray, u: np.ndarray, supply: int, demand: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Send rows to the nearest column with most room: flow (n, m), what rows keep, what is free."""
    n, m = reduced.shape
    flow, left, room = np.zeros((n, m), np.int64), np.full(n, supply), np.full(m, demand)
    for i in range(n):
        nearest = np.flatnonzero(reduced[i] == u[i])
        j = nearest[room[nearest].argmax()]
        flow[i, j] = min(left[i], room[j])
        left[i] -= flow[i, j]
        room[j] -= flow[i, j]
    return flow, left, room


def _shortest_path(
    cost: np.ndarray, u: np.ndarray, v: np.ndarray, flow: np.ndarray, room: np.ndarray, start: int
) -> tuple[int, np.ndarray, dict[int, int]]:
    """Find a shortest path from row `start` to a column with room, and move u and v by it.

    Returns that column, the row (m,) from which each column is reached, and for rows the column
    through which they are entered.
    """
    m = cost.shape[1]
    # Lengths at which rows are entered and columns reached.
    entered, reached, length = {start: 0.0}, {}, 0.0
    new, through, source = [start], {}, np.zeros(m, int)
    distance, within = np.full(m, np.inf), np.ones(m, bool)
    while True:
        if new:
            tried = cost[new] - v + (length - u[new])[:, None]
            best = tried.argmin(0)
            tried = tried[best, np.arange(m)]
            nearer = within & (tried < distance)
            distance[nearer], source[nearer] = tried[nearer], np.take(new, best)[nearer]
        column = int(np.where(within, distance, np.inf).argmin())
        length = reached[column] = distance[column]
        within[column] = False
        if room[column]:
            break
        new = [row for row in np.flatnonzero(flow[:, column]) if row not in entered]
        entered |= dict.fromkeys(new, length)
        through |= dict.fromkeys(new, column)
    for row, at in entered.items():
        u[row] += length - at
    for j, at in reached.items():
        v[j] -= length - at
    return column, source, through


def column_potentials(cost: np.ndarray) -> np.ndarray:
    """Approximate optimal potentials (m,) of costs (n, m), zero where all are one number.

    Those of entropic plans with less and less regularisation, not to convergence: nothing rests on
    their accuracy. Raises ValueError where a cost is not finite.
    """
    least = cost.min()
    scale = cost.mean() - least if np.isfinite(least) else least
    if not np.isfinite(scale):
        raise ValueError("cost holds NaN or infinity, or adds up to it; expected finite numbers")
    columns = np.zeros(cost.shape[1])
    if not scale > 0:
        return columns
    # Large temporary arrays are what threads that plan side by side wait for: each is new memory.
    relative = np.empty(cost.shape, np.float32)
    scratch = np.empty_like(relative)
    np.divide(cost, scale, out=relative, casting="same_kind")
    relative -= np.float32(least / scale)
    for reg in ANNEALING:
        _, _, columns = entropic.sweep(
            lambda rows: relative[rows],
            cost.shape,
            columns,
            reg,
            rounds=ROUNDS,
            scratch=scratch,
        )
    return scale * columns

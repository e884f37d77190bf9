"""Fitting the potential of semidiscrete transport: stochastic ascent of the semidual."""

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.couplings.semidiscrete.potential import Semidiscrete
from flowmlx.couplings.semidiscrete.rows import DataSet, Points, blocks, chooser, data_set
from flowmlx.keys import fold_in, generator
from flowmlx.solvers.arrays import (
    as_rows,
    check_callable,
    check_count,
    check_key,
    check_number,
)
from flowmlx.transport.costs import check_finite, flat_rows
from flowmlx.transport.entropic import NotConverged
from flowmlx.transport.products import products

# Draws per row of the ascent, and its least steps: the rows then differ by some 10% (root mean
# square) in how often they are chosen, the noise of the half of the draws that is averaged.
DRAWS, LEAST_STEPS = 200, 1_000
# Draws per row, and at least, for the estimate of that difference.
JUDGED, LEAST_JUDGED = 10, 20_000
# Levels of the entropic ascent that comes before, each of a third of the regularisation, and their
# steps.
LEVELS, LEVEL_STEPS = 20, 20
# Step of the ascent, in units of the lead with which a row is chosen, which is its natural length.
STEP = 0.7

# Draws of the source (n, d) for a step of a phase of the fit, by the names of both.
Draw = Callable[[str, int], np.ndarray]


class _Ascent(NamedTuple):
    """Numbers of a fit; `steps` None is by the number of rows."""

    reg: float
    steps: int | None
    batch_size: int

    def steps_for(self, data: Points) -> int:
        """The steps that are given, or 200 draws for each row."""
        return self.steps or max(LEAST_STEPS, math.ceil(DRAWS * len(data.points) / self.batch_size))


class _Fit(NamedTuple):
    """Potential of rows in their order, box and imbalance of `Semidiscrete`, steps taken."""

    potential: np.ndarray
    box: np.ndarray
    imbalance: float
    steps: int


def fit_semidiscrete(
    rows: np.ndarray,
    source: Callable[..., mx.array],
    *,
    key: mx.array,
    conditions: np.ndarray | None = None,
    weight: float = math.inf,
    reg: float = 0.0,
    steps: int | None = None,
    batch_size: int = 1024,
    tolerance: float = 0.25,
) -> Semidiscrete:
    """Learn the potential of optimal transport from a source to `rows` (N, ...).

    `source(n, *, key) -> (n, ...)` draws source points. `conditions`: labels (N,) or numbers
    (N, ...) of the rows, with a `weight` in the cost, as in `couplings.conditional`. With an
    infinite weight, the rows of each condition are fitted separately: use it for labels. `reg`:
    entropic regularisation, at least 0, in units of squared distance; with 0 the transport is a
    map. `steps`: number of steps, for each condition that is fitted separately. Each step compares
    `batch_size` source points with all rows, on the host. None takes as many steps as give 200
    source points per row, at least 1,000. `tolerance`: largest `Semidiscrete.imbalance` allowed.

    The fit starts with decreasing entropic regularisation. Then it maximises the semidual by
    stochastic gradient ascent and averages the second half of the steps; the gradient for a row is
    its target share minus how often it is chosen. Raises NotConverged if the tolerance is not
    reached; ValueError for rows that are not finite, for a wrong number of conditions, and for
    numbers out of range.
    """
    ascent, key = _ascent(reg, steps, batch_size), check_key(key)
    check_number(tolerance, "tolerance", "a number above 0", lambda tol: tol > 0)
    check_callable(source, "source", "source(n, key=key)")
    data = data_set(rows, conditions, weight)
    _check_choice(data)
    potential, groups = np.empty(len(data.rows), np.float32), data.groups()
    low, high, squares = [], [], 0.0
    for k, members in enumerate(groups):
        found = _fit(data, members, source, fold_in(key, "kind", k), ascent)
        if found.imbalance > tolerance:
            raise _not_converged(found, tolerance, data, members)
        potential[members] = found.potential
        low.append(found.box[0])
        high.append(found.box[1])
        squares += found.imbalance**2 * len(members) / len(data.rows)
    return Semidiscrete(
        potential,
        np.stack([np.min(low, axis=0), np.max(high, axis=0)]),
        ascent.reg,
        math.sqrt(squares),
        data.fingerprint,
        float(weight),
    )


def _ascent(reg: float, steps: int | None, batch_size: int) -> _Ascent:
    expected = "a number >= 0, in units of squared distance"
    reg = check_number(reg, "reg", expected, lambda reg: 0 <= reg < math.inf)
    steps = steps if steps is None else check_count(steps, "steps")
    return _Ascent(reg, steps, check_count(batch_size, "batch_size"))


def _check_choice(data: DataSet) -> None:
    """Refuse numbers as conditions of which no two rows share one."""
    numbers = data.conditions is not None and data.conditions.dtype.kind == "f"
    if numbers and 1 < len(data.rows) == data.group.max() + 1:
        raise ValueError(
            "every row has a condition of its own, so that none is left to choose; give a finite "
            "weight, such as 10 for numbers of scale 1"
        )


def _not_converged(
    found: _Fit, tolerance: float, data: DataSet, members: np.ndarray
) -> NotConverged:
    which = "" if data.conditions is None else f" of condition {data.conditions[members[0]]}"
    return NotConverged(
        f"after {found.steps} steps the rows{which} differ by {found.imbalance:.0%} (root mean "
        f"square) in how often they are chosen, tolerance {tolerance:.0%}; give more steps, such "
        f"as steps={4 * found.steps}, or a larger tolerance"
    )


def _fit(
    data: DataSet,
    members: np.ndarray,
    source: Callable[..., mx.array],
    key: mx.array,
    ascent: _Ascent,
) -> _Fit:
    """Fit the rows of one group, which compete for the same draws."""
    points = data.points(members)
    draw, steps = _draws(data, members, source, key, ascent.batch_size), ascent.steps_for(points)
    box = np.stack([np.full(points.points.shape[1], s * np.inf, np.float32) for s in (1, -1)])

    def centred(phase: str, step: int) -> np.ndarray:
        x = draw(phase, step) - points.centre
        check_finite(np.abs(x).max())
        box[:] = np.minimum(box[0], x.min(0)), np.maximum(box[1], x.max(0))
        return x

    if len(points.points) == 1:  # takes all
        centred("warm", 0)
        return _Fit(np.zeros(len(members), np.float32), box + points.centre, 0.0, steps)
    potential = _ascend(points, centred, ascent)
    counts = _judge(points, potential, centred, generator(fold_in(key, "choice")), ascent)
    potential -= np.median(potential)
    return _Fit(
        potential.astype(np.float32)[points.inverse],
        box + points.centre,
        _imbalance(counts, points.weights),
        steps,
    )


def _draws(
    data: DataSet,
    members: np.ndarray,
    source: Callable[..., mx.array],
    key: mx.array,
    batch_size: int,
) -> Draw:
    """Make the draws of the source, each with the coordinates of the condition of a random row."""
    coordinates, shape = data.coordinates[members], (batch_size, data.rows.shape[1])

    def draw(phase: str, step: int) -> np.ndarray:
        drawn = fold_in(key, phase, step)
        x = as_rows(source(batch_size, key=drawn), "the value of source(n, key=key)")
        x = flat_rows(x, np.float32)
        if x.shape != shape:
            raise ValueError(
                f"source(n, key=key) returned shape {x.shape} for n = {batch_size}; expected "
                f"{shape}, with the columns of the rows"
            )
        if not coordinates.shape[1]:
            return x
        row = generator(fold_in(drawn, "row")).integers(0, len(coordinates), len(x))
        return np.hstack([x, coordinates[row]])

    return draw


def _ascend(data: Points, draw: Draw, ascent: _Ascent) -> np.ndarray:
    """The potential of distinct rows, averaged over the second half of the ascent."""
    n, steps = len(data.points), ascent.steps_for(data)
    potential, lead = _warm_start(data, ascent.reg, lambda step: draw("warm", step))
    mean, wins, leads = np.zeros(n), np.ones(n), np.full(n, lead)
    for step in range(steps):
        chosen, won, lead = _compete(data, potential, draw("ascent", step), ascent.reg)
        wins, leads = wins + won, leads + lead
        # The inverse of the semidual's curvature in a row is about n times the row's mean lead;
        # where draws are fewer than rows, their noise asks for less.
        size = STEP * math.sqrt(n * min(n, ascent.batch_size)) / math.sqrt(1 + 5 * step / steps)
        potential += size * np.maximum(leads / wins, ascent.reg) * (data.weights - chosen)
        if step >= steps // 2:
            mean += potential / (steps - steps // 2)
    return mean


def _judge(
    data: Points, potential: np.ndarray, draw: Draw, rng: np.random.Generator, ascent: _Ascent
) -> np.ndarray:
    """How often new draws choose each of the distinct rows, (n,)."""
    choose, counts = chooser(data, potential, ascent.reg), np.zeros(len(potential))
    draws = max(JUDGED * len(potential), LEAST_JUDGED)
    for step in range(math.ceil(draws / ascent.batch_size)):
        counts += np.bincount(choose(draw("judge", step), rng), minlength=len(potential))
    return counts


def _warm_start(data: Points, reg: float, draw: Callable) -> tuple[np.ndarray, float]:
    """Potential by stochastic Sinkhorn updates, with regularisation that falls to `reg`, or to the
    mean lead of the best row over the second, where a smaller one changes little; that lead."""
    potential, lead = np.zeros(len(data.points)), 0.0
    x = draw(0)
    level = float((x**2).sum(1).mean() + data.weights @ data.squares) / 3
    for step in range(LEVELS * LEVEL_STEPS):
        chosen, won, leads = _compete(data, potential, draw(step), level)
        pace = level / math.sqrt(1 + step % LEVEL_STEPS)
        potential -= pace * np.log(np.maximum(chosen / data.weights, 1e-3))
        if (step + 1) % LEVEL_STEPS == 0:
            lead = leads.sum() / won.sum()
            if level <= max(reg, lead):
                break
            level = max(level / 3, reg)
    return potential, lead


def _compete(
    data: Points, potential: np.ndarray, x: np.ndarray, reg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How the rows compete for draws `x`, each (N,): the share of draws that a row is chosen for,
    those that it is the best for, and the sum of its leads over the second there."""
    n, scores = len(potential), data.scores(potential)
    chosen, won, leads = np.zeros(n), np.zeros(n), np.zeros(n)
    for block in blocks(len(x), n):
        score = products(x[block], scores.slopes) + scores.offsets
        row, best = np.arange(len(score)), score.argmax(1)
        won += np.bincount(best, minlength=n)
        top = score[row, best]
        score[row, best] = -np.inf
        leads += np.bincount(best, top - score.max(1), minlength=n)
        if reg > 0:
            score[row, best] = top
            score += (reg * np.log(data.weights)).astype(np.float32) - top[:, None]
            score *= np.float32(1 / reg)
            np.exp(score, out=score)
            chosen += np.einsum("ij,i->j", score, 1 / score.sum(1))
    return (chosen if reg > 0 else won) / len(x), won, leads


def _imbalance(counts: np.ndarray, weights: np.ndarray) -> float:
    """Root mean square of a row's relative error in mass, without the noise of its counts."""
    draws = counts.sum()
    chi_squared = (counts * (counts - 1) / weights).sum() / (draws * (draws - 1)) - 1
    return math.sqrt(max(chi_squared, 0.0))

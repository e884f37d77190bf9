"""Semidiscrete transport: from any source to a fixed set of rows, learned once.

A potential g_j per row is learned such that over draws x0 of the source every row is equally often
the argmax_j (g_j - |x0 - y_j|^2): that map is optimal transport to the whole data set, not to a
batch of it (Mousavi-Hosseini et al. 2025, arXiv 2509.25519). With reg > 0 a draw goes to row j with
probability proportional to b_j exp((g_j - |x0 - y_j|^2) / reg), b_j the share of equal rows.

Where the rows have conditions, x0 is given that of a row drawn at random, and meets the rows of its
kind, or pays for the difference, as in `couplings.conditional`: the source of a row then does not
depend on its condition.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.couplings import (
    HostCoupling,
    Pairs,
    check_finite,
    check_weight,
    condition_coordinates,
    required,
)
from flowmlx.files import reading
from flowmlx.files.writing import replacing
from flowmlx.keys import fold_in, generator
from flowmlx.solvers.arrays import (
    as_numpy,
    as_rows,
    check_callable,
    check_count,
    check_key,
    check_number,
)
from flowmlx.transport import entropic, laguerre
from flowmlx.transport.products import products

FORMAT = 1

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
# Columns up to which rows are found by a grid in place of a comparison with all.
GRID_COLUMNS = 3
# Scores of draws in a block (1 MB), which stays in a cache.
BLOCK = 2**18


@dataclass(frozen=True)
class Semidiscrete:
    """A potential fitted by `fit_semidiscrete`; `semidiscrete` makes a coupling of it.

    `potential`: (N,) float32, in units of squared distance. `reg`, `weight`: those of the fit.
    `box`: (2, d) float32, least and largest draw of the source, column by column, and of the
    conditions where these enter the cost. `imbalance`: root mean square of how much more or less
    often than its share a row is chosen, as a part of the share. `fingerprint`: tells one set of
    rows, and their conditions, from another.
    """

    potential: np.ndarray
    box: np.ndarray
    reg: float
    imbalance: float
    fingerprint: str
    weight: float = math.inf


class _Told(NamedTuple):
    """What rows are told: their kind (N,), a number, and coordinates (N, k) beside their own.

    A draw meets rows of one kind only.
    """

    kind: np.ndarray
    coordinates: np.ndarray

    @classmethod
    def by(cls, conditions: np.ndarray | None, rows: int, weight: float) -> "_Told":
        weight = check_weight(weight)
        same, nothing = np.zeros(rows, int), np.zeros((rows, 0), np.float32)
        if conditions is None:
            return cls(same, nothing)
        if len(conditions) != rows:
            raise ValueError(f"{rows} rows and {len(conditions)} conditions; expected as many")
        y = condition_coordinates(conditions)
        if weight < math.inf:
            return cls(same, (math.sqrt(weight) * y).astype(np.float32))
        kinds = np.unique(y, axis=0, return_inverse=True)[1].ravel()
        if conditions.dtype.kind == "f" and 1 < rows == kinds.max() + 1:
            raise ValueError(
                "every row has a condition of its own, so that none is left to choose; give a "
                "finite weight, such as 10 for numbers of scale 1"
            )
        return cls(kinds, nothing)

    def members(self) -> list[np.ndarray]:
        """The rows of each kind."""
        return [np.flatnonzero(self.kind == kind) for kind in range(self.kind.max() + 1)]


class _Rows:
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
    """Learn the potential of `rows` (N, ...) under draws of `source(n, *, key) -> (n, ...)`.

    `conditions`: labels (N,) or numbers (N, ...) of the rows, with a `weight` in the cost, as in
    `couplings.conditional`: an infinite one fits the rows of each condition alone, the choice for
    labels. `reg` >= 0: entropic regularisation in units of squared distance, 0 for transport by a
    map. Stochastic ascent of the semidual by draws of `batch_size` (its gradient is the share of a
    row less how often it is chosen), averaged over its second half, from a start by entropic ascent
    with falling regularisation. `steps`: None takes 200 draws per row, at least 1,000 steps; each
    compares its draws with all rows, on the host; of each condition that is fitted alone.
    `tolerance`: on `Semidiscrete.imbalance`.
    Raises NotConverged where that is not met, ValueError for rows that are not finite, another
    number of conditions, and numbers out of range.
    """
    expected = "a number >= 0, in units of squared distance"
    reg = check_number(reg, "reg", expected, lambda reg: 0 <= reg < math.inf)
    check_number(tolerance, "tolerance", "a number above 0", lambda tol: tol > 0)
    batch_size, key = check_count(batch_size, "batch_size"), check_key(key)
    steps = steps if steps is None else check_count(steps, "steps")
    check_callable(source, "source", "source(n, key=key)")
    rows, conditions = as_rows(rows, "rows"), _conditions(conditions)
    flat, told = _flat(rows), _Told.by(conditions, len(rows), weight)
    potential, boxes, error = np.empty(len(flat), np.float32), [], 0.0
    for kind, members in enumerate(told.members()):
        part, coordinates = fold_in(key, "kind", kind), told.coordinates[members]

        def draw(phase: str, step: int, *, part=part, coordinates=coordinates) -> np.ndarray:
            drawn = fold_in(part, phase, step)
            x = _flat(as_rows(source(batch_size, key=drawn), "the value of source(n, key=key)"))
            if x.shape != (batch_size, flat.shape[1]):
                raise ValueError(
                    f"source(n, key=key) returned shape {x.shape} for n = {batch_size}; expected "
                    f"{(batch_size, flat.shape[1])}, with the columns of the rows"
                )
            if not coordinates.shape[1]:
                return x
            row = generator(fold_in(drawn, "row")).integers(0, len(coordinates), len(x))
            return np.hstack([x, coordinates[row]])

        data = _Rows(np.hstack([flat[members], coordinates]))
        found, box, imbalance = _fit(data, draw, part, reg, steps, batch_size)
        if imbalance > tolerance:
            done = steps or _steps(data, batch_size)
            which = "" if conditions is None else f" of condition {conditions[members[0]]}"
            raise entropic.NotConverged(
                f"after {done} steps the rows{which} differ by {imbalance:.0%} (root mean square) "
                f"in how often they are chosen, tolerance {tolerance:.0%}; give more steps, such "
                f"as steps={4 * done}, or a larger tolerance"
            )
        potential[members] = found
        boxes.append(box)
        error += imbalance**2 * len(members) / len(flat)
    low, high = zip(*boxes, strict=True)
    return Semidiscrete(
        potential,
        np.stack([np.min(low, axis=0), np.max(high, axis=0)]),
        float(reg),
        math.sqrt(error),
        _fingerprint(flat, conditions),
        float(weight),
    )


def _steps(data: _Rows, batch_size: int) -> int:
    return max(LEAST_STEPS, math.ceil(DRAWS * len(data.points) / batch_size))


def _fit(
    data: _Rows,
    draw: Callable[[str, int], np.ndarray],
    key: mx.array,
    reg: float,
    steps: int | None,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The potential of the rows, in their order, and the box and imbalance of `Semidiscrete`."""
    steps = steps or _steps(data, batch_size)
    box = np.stack([np.full(data.points.shape[1], s * np.inf, np.float32) for s in (1, -1)])

    def centred(phase: str, step: int) -> np.ndarray:
        x = draw(phase, step) - data.centre
        check_finite(np.abs(x).max())
        box[:] = np.minimum(box[0], x.min(0)), np.maximum(box[1], x.max(0))
        return x

    n = len(data.points)
    if n == 1:  # takes all
        centred("warm", 0)
        return np.zeros(len(data.inverse), np.float32), box + data.centre, 0.0
    potential, lead = _warm_start(data, reg, lambda step: centred("warm", step))
    mean, wins, leads = np.zeros(n), np.ones(n), np.full(n, lead)
    for step in range(steps):
        chosen, won, lead = _compete(data, potential, centred("ascent", step), reg)
        wins, leads = wins + won, leads + lead
        # The inverse of the semidual's curvature in a row is about n times the row's mean lead;
        # where draws are fewer than rows, their noise asks for less.
        size = STEP * math.sqrt(n * min(n, batch_size)) / math.sqrt(1 + 5 * step / steps)
        potential += size * np.maximum(leads / wins, reg) * (data.weights - chosen)
        if step >= steps // 2:
            mean += potential / (steps - steps // 2)

    choose, rng = _chooser(data, mean, reg), generator(fold_in(key, "choice"))
    judged = math.ceil(max(JUDGED * len(mean), LEAST_JUDGED) / batch_size)
    counts = np.zeros(len(mean))
    for step in range(judged):
        counts += np.bincount(choose(centred("judge", step), rng), minlength=len(mean))
    mean -= np.median(mean)
    return (
        mean.astype(np.float32)[data.inverse],
        box + data.centre,
        _imbalance(counts, data.weights),
    )


def semidiscrete(
    fitted: Semidiscrete, rows: np.ndarray, conditions: np.ndarray | None = None
) -> HostCoupling:
    """Make the coupling of a fitted potential: every x0 to its row of the whole data set.

    `rows`, `conditions`: those of the fit. The coupling takes the rows as x1
    (`data.streams.whole(rows)` streams them, and what goes with them) and makes one pair for each
    x0; all batches follow one map. With up to 3 columns a row is found among a few candidates (see
    `laguerre`), else by a matrix product and an argmax; with reg > 0 it is drawn with the key. So
    is the condition of each x0, where there are some; without, those of the rows would depend on
    the source, which spoils conditional models. Raises ValueError for other rows or conditions.
    """
    rows, conditions = as_rows(rows, "rows"), _conditions(conditions)
    flat = _flat(rows)
    if fitted.fingerprint != _fingerprint(flat, conditions):
        raise ValueError(
            f"these {len(rows)} rows, or their conditions, are not those that the potential of "
            f"{len(fitted.potential)} rows was fitted to; fit it again with fit_semidiscrete"
        )
    told = _Told.by(conditions, len(rows), fitted.weight)
    parts = [_part(fitted, flat, told, members) for members in told.members()]

    def pair(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
        if len(x1) != len(rows):
            raise ValueError(
                f"x1 has {len(x1)} points; this coupling chooses among the {len(rows)} rows that "
                "it was fitted to: pass these, as data.streams.whole(rows) does"
            )
        x = _flat(x0)
        if x.shape[1] != flat.shape[1]:
            raise ValueError(f"x0 has {x.shape[1]} columns; expected {flat.shape[1]}, as the rows")
        check_finite(np.abs(x).max())
        if conditions is None:
            return np.arange(len(x)), parts[0](x, rng)
        row = required(rng).integers(0, len(rows), len(x))
        x, j = np.hstack([x, told.coordinates[row]]), np.empty(len(x), int)
        for kind, choose in enumerate(parts):
            those = np.flatnonzero(told.kind[row] == kind)
            j[those] = choose(x[those], rng)
        return np.arange(len(x)), j

    return HostCoupling(pair, pointwise=True)


def _part(fitted: Semidiscrete, flat: np.ndarray, told: _Told, members: np.ndarray) -> Callable:
    """Make the function from points, with what they are told, to rows among the members."""
    data = _Rows(np.hstack([flat[members], told.coordinates[members]]))
    potential = fitted.potential[members][data.first]
    choose = _chooser(data, potential, fitted.reg, fitted.box - data.centre)

    def row(x: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return members[data.one_of_equal(choose(x - data.centre, rng), rng)]

    return row


def save_semidiscrete(path: str | Path, fitted: Semidiscrete) -> None:
    """Write a fitted potential to `path` (.safetensors), whole or not at all."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"cannot write {path}; expected a name that ends in .safetensors")
    about = {
        "format": FORMAT,
        "reg": fitted.reg,
        "imbalance": fitted.imbalance,
        "fingerprint": fitted.fingerprint,
        "weight": None if fitted.weight == math.inf else fitted.weight,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        mx.save_safetensors(
            file,
            {"potential": mx.array(fitted.potential), "box": mx.array(fitted.box)},
            {"semidiscrete": json.dumps(about)},
        )


def load_semidiscrete(path: str | Path) -> Semidiscrete:
    """Read a fitted potential. Raises ValueError where `path` does not hold one."""
    with reading.checked(path, "so it holds no fitted potential"):
        arrays, metadata = reading.arrays_of_mlx(path)
        about = reading.parse_object(metadata["semidiscrete"])
        reading.check_format(path, about, FORMAT)
        potential, box = (as_numpy(arrays[name]).copy() for name in ("potential", "box"))
        if potential.ndim != 1 or box.ndim != 2 or len(box) != 2:
            raise ValueError(f"its arrays have the shapes {potential.shape} and {box.shape}")
        if (potential.dtype, box.dtype) != (np.float32, np.float32):
            raise ValueError(f"its arrays are {potential.dtype} and {box.dtype}, not float32")
        return Semidiscrete(
            potential,
            box,
            float(about["reg"]),
            float(about["imbalance"]),
            str(about["fingerprint"]),
            math.inf if about.get("weight") is None else float(about["weight"]),
        )


def _warm_start(data: _Rows, reg: float, draw: Callable) -> tuple[np.ndarray, float]:
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
    data: _Rows, potential: np.ndarray, x: np.ndarray, reg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How the rows compete for draws `x`, each (N,): the share of draws that a row is chosen for,
    those that it is the best for, and the sum of its leads over the second there."""
    n, scores = len(potential), data.scores(potential)
    chosen, won, leads = np.zeros(n), np.zeros(n), np.zeros(n)
    for block in _blocks(len(x), n):
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


def _blocks(draws: int, rows: int) -> list[slice]:
    size = max(1, BLOCK // rows)
    return [slice(k, k + size) for k in range(0, draws, size)]


def _chooser(
    data: _Rows, potential: np.ndarray, reg: float, box: np.ndarray | None = None
) -> Callable[[np.ndarray, np.random.Generator | None], np.ndarray]:
    """Make the function from centred points (n, d) to distinct rows (n,); a box allows a grid."""
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
            return np.concatenate([scores.largest(x[k]) for k in _blocks(len(x), len(potential))])

    return choose


def _imbalance(counts: np.ndarray, weights: np.ndarray) -> float:
    """Root mean square of a row's relative error in mass, without the noise of its counts."""
    draws = counts.sum()
    chi_squared = (counts * (counts - 1) / weights).sum() / (draws * (draws - 1)) - 1
    return math.sqrt(max(chi_squared, 0.0))


def _conditions(conditions: Any) -> np.ndarray | None:
    return None if conditions is None else as_rows(conditions, "conditions")


def _flat(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32, copy=False).reshape(len(x), -1)


def _fingerprint(flat: np.ndarray, conditions: np.ndarray | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in (flat,) if conditions is None else (flat, conditions):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# Couplings that are made of a potential and the rows that it was fitted to.
FITTED_COUPLINGS: dict[str, Callable[..., HostCoupling]] = {"semidiscrete": semidiscrete}

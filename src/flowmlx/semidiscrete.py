"""Semidiscrete transport: from any source to a fixed set of rows, learned once.

A potential g_j per row is learned such that over draws x0 of the source every row is equally often
the argmax_j (g_j - |x0 - y_j|^2): that map is optimal transport to the whole data set, not to a
batch of it (Mousavi-Hosseini et al. 2025, arXiv 2509.25519). With reg > 0 a draw goes to row j with
probability proportional to b_j exp((g_j - |x0 - y_j|^2) / reg), b_j the share of equal rows.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from flowmlx import entropic, laguerre
from flowmlx.couplings import HostCoupling, Pairs, check_finite, required
from flowmlx.files import replacing
from flowmlx.keys import fold_in, generator
from flowmlx.products import products

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

    `potential`: (N,) float32, in units of squared distance. `reg`: that of the fit. `box`: (2, d)
    float32, least and largest draw of the source, column by column. `imbalance`: root mean square
    of how much more or less often than its share a row is chosen, as a part of the share.
    `fingerprint`: tells one set of rows from another.
    """

    potential: np.ndarray
    box: np.ndarray
    reg: float
    imbalance: float
    fingerprint: str


class _Rows:
    """The rows as points about their centre, each distinct one once."""

    def __init__(self, rows: np.ndarray):
        flat = np.asarray(rows, np.float32).reshape(len(rows), -1)
        check_finite(np.abs(flat).max())
        self.fingerprint = _fingerprint(flat)
        distinct, self.first, self.inverse, self.counts = np.unique(
            flat, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        self.inverse = self.inverse.ravel()
        self.members = np.argsort(self.inverse, kind="stable")  # rows, equal ones together
        self.last = np.cumsum(self.counts) - 1  # place of the last of equal ones there
        self.weights = self.counts / len(flat)
        self.centre = flat.mean(0, dtype=np.float64).astype(np.float32)
        self.points = distinct - self.centre
        self.squares = (self.points**2).sum(1)

    def centred(self, x: np.ndarray | mx.array) -> np.ndarray:
        x = np.asarray(x, np.float32)
        return x.reshape(len(x), -1) - self.centre

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
    reg: float = 0.0,
    steps: int | None = None,
    batch_size: int = 1024,
    tolerance: float = 0.25,
) -> Semidiscrete:
    """Learn the potential of `rows` (N, ...) under draws of `source(n, *, key) -> (n, ...)`.

    `reg` >= 0: entropic regularisation in units of squared distance, 0 for transport by a map.
    Stochastic ascent of the semidual by draws of `batch_size` (its gradient is the share of a row
    less how often it is chosen), averaged over its second half, from a start by entropic ascent
    with falling regularisation. `steps`: None takes 200 draws per row, at least 1,000 steps; each
    compares its draws with all rows, on the host. `tolerance`: on `Semidiscrete.imbalance`.
    Raises NotConverged where that is not met, ValueError for rows that are not finite and for
    numbers out of range.
    """
    if not 0 <= reg < math.inf:
        raise ValueError(f"reg is {reg}; expected a number >= 0, in units of squared distance")
    data = _Rows(rows)
    if steps is None:
        steps = max(LEAST_STEPS, math.ceil(DRAWS * len(data.points) / batch_size))
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps is {steps} and batch_size {batch_size}; expected at least 1")
    box = np.stack([np.full(data.points.shape[1], s * np.inf, np.float32) for s in (1, -1)])

    def draw(phase: str, step: int) -> np.ndarray:
        x = data.centred(source(batch_size, key=fold_in(key, phase, step)))
        check_finite(np.abs(x).max())
        box[:] = np.minimum(box[0], x.min(0)), np.maximum(box[1], x.max(0))
        return x

    potential, lead = _warm_start(data, reg, lambda step: draw("warm", step))
    n = len(potential)
    mean, wins, leads = np.zeros(n), np.ones(n), np.full(n, lead)
    for step in range(steps):
        chosen, won, lead = _compete(data, potential, draw("ascent", step), reg)
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
        counts += np.bincount(choose(draw("judge", step), rng), minlength=len(mean))
    imbalance = _imbalance(counts, data.weights)
    if imbalance > tolerance:
        raise entropic.NotConverged(
            f"after {steps} steps the rows differ by {imbalance:.0%} (root mean square) in how "
            f"often they are chosen, tolerance {tolerance:.0%}; give more steps, such as "
            f"steps={4 * steps}, or a larger tolerance"
        )
    mean -= mean.mean()
    return Semidiscrete(
        mean.astype(np.float32)[data.inverse],
        box + data.centre,
        float(reg),
        imbalance,
        data.fingerprint,
    )


def semidiscrete(fitted: Semidiscrete, rows: np.ndarray) -> HostCoupling:
    """Make the coupling of a fitted potential: every x0 to its row of the whole data set.

    `rows`: those of the fit. The coupling takes them as x1 (`data.streams.whole(rows)` streams
    them) and makes one pair for each x0; all batches follow one map. With up to 3 columns a row is
    found among a few candidates (see `laguerre`), else by a matrix product and an argmax; with
    reg > 0 it is drawn with the key. Labels of the rows then depend on the source, which spoils
    conditional models: for those, fit the rows of each label alone. Raises ValueError for other
    rows.
    """
    data = _Rows(rows)
    if fitted.fingerprint != data.fingerprint:
        raise ValueError(
            f"these {len(rows)} rows are not those that the potential of "
            f"{len(fitted.potential)} rows was fitted to; fit it again with fit_semidiscrete"
        )
    choose = _chooser(data, fitted.potential[data.first], fitted.reg, fitted.box - data.centre)

    def pair(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
        if len(x1) != len(rows):
            raise ValueError(
                f"x1 has {len(x1)} points; this coupling chooses among the {len(rows)} rows that "
                "it was fitted to: pass these, as data.streams.whole(rows) does"
            )
        x = data.centred(x0)
        check_finite(np.abs(x).max())
        return np.arange(len(x)), data.one_of_equal(choose(x, rng), rng)

    return HostCoupling(pair, pointwise=True)


def save_semidiscrete(path: str | Path, fitted: Semidiscrete) -> None:
    """Write a fitted potential to `path` (.safetensors), whole or not at all."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"cannot write {path}; expected a name that ends in .safetensors")
    about = {
        "format": FORMAT,
        "reg": fitted.reg,
        "imbalance": fitted.imbalance,
        "fingerprint": fitted.fingerprint,
    }
    with replacing(path) as temporary:
        mx.save_safetensors(
            str(temporary),
            {"potential": mx.array(fitted.potential), "box": mx.array(fitted.box)},
            {"semidiscrete": json.dumps(about)},
        )


def load_semidiscrete(path: str | Path) -> Semidiscrete:
    """Read a fitted potential. Raises ValueError where `path` does not hold one."""
    try:
        arrays, metadata = cast(
            tuple[dict[str, mx.array], dict[str, str]],
            mx.load(str(path), format="safetensors", return_metadata=True),
        )
        about = json.loads(metadata["semidiscrete"])
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']}; this version reads {FORMAT}")
        return Semidiscrete(
            np.array(arrays["potential"]),
            np.array(arrays["box"]),
            float(about["reg"]),
            float(about["imbalance"]),
            str(about["fingerprint"]),
        )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no fitted potential: {error}") from error


def _warm_start(data: _Rows, reg: float, draw: Callable) -> tuple[np.ndarray, float]:
    """Potential by stochastic Sinkhorn updates, with regularisation that falls to `reg`, or to the
    mean lead of the best row over the second, where a smaller one changes little; that lead."""
    potential, lead = np.zeros(len(data.points)), 0.0
    if len(potential) == 1:
        return potential, lead
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
        if n > 1:
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


def _fingerprint(flat: np.ndarray) -> str:
    digest = hashlib.blake2b(repr(flat.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(flat).tobytes())
    return digest.hexdigest()


# Couplings that are made of a potential and the rows that it was fitted to.
FITTED_COUPLINGS: dict[str, Callable[[Semidiscrete, np.ndarray], HostCoupling]] = {
    "semidiscrete": semidiscrete
}

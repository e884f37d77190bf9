"""A trained flow held against data: distances, likelihood, and the figures of its run."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx import metrics
from flowmlx.bridges import under
from flowmlx.data.arrays import open_writer
from flowmlx.experiment.flow import Flow
from flowmlx.experiment.folder import (
    Lines,
    Run,
    read_about,
    read_lines,
    read_metrics,
    read_results,
    write_lines,
)
from flowmlx.experiment.runs import saved_step
from flowmlx.files.reading import Damaged
from flowmlx.keys import fold_in
from flowmlx.solvers.arrays import as_numpy
from flowmlx.spaces.kind import Data

# Exact W2 is an assignment, whose cost grows as n^3; energy distance grows as n^2.
W2_POINTS, ENERGY_POINTS = 2048, 4096
# Rows of the data that figures show.
DRAWN_POINTS = 5_000


def evaluate(run: Run, flow: Flow, data: Data) -> dict[str, Any]:
    """Sample a flow, measure the samples against held-out data, and keep both in the run.

    Distances are in model units. Flow lines are kept where a point has two numbers, beside rows of
    the data, which are those of all times there.
    """
    read_results(run)  # which these will be added to
    wanted, key = flow.options.sampling, fold_in(_key(flow), "evaluation")
    ts = np.linspace(0, 1, wanted.frames) if flow.space.dim == 2 else np.array([0.0, 1.0])
    cond = data.test.conditions(wanted.samples)
    x0 = data.source.start(wanted.samples, cond, key=key)
    mx.eval(x0)
    start = time.perf_counter()
    field, solver = flow.dynamics.field(flow.net), flow.options.integration
    noise = fold_in(key, "noise")
    solution = flow.dynamics.solve(under(field, cond), x0, solver, ts=ts, key=noise)
    mx.eval(solution.xs)
    seconds = time.perf_counter() - start

    xs = as_numpy(solution.xs)
    results = {
        "step": flow.step,
        "samples": wanted.samples,
        "times": len(ts),
        "sampling_seconds": seconds,
        "nfe": solution.stats.nfe,
        **distances(data, xs[-1]),
        **_along(flow, data, field),
    }
    shown = data.shown() if len(ts) > 2 else np.concatenate([data.test.points, data.train.points])
    if len(shown) > DRAWN_POINTS:
        shown = shown[as_numpy(mx.random.permutation(len(shown), key=key))[:DRAWN_POINTS]]
    write_lines(run, Lines(ts, xs, shown, flow.step))
    with open_writer(run.samples, flow.columns) as writer:
        writer.write(flow.space.transform.inverse(xs[-1]))
    return results


def _key(flow: Flow) -> mx.array:
    return mx.random.key(flow.options.run.seed)


def _along(flow: Flow, data: Data, field: Callable) -> dict[str, Any]:
    """What the kind of data measures on the way."""
    key = fold_in(_key(flow), "snapshots")
    noise, solver = fold_in(key, "noise"), flow.options.integration

    def solve(field: Callable, x0: mx.array, *, ts: Sequence[float]) -> Any:
        return flow.dynamics.solve(field, x0, solver, ts=ts, key=noise)

    return data.along(field, solve, key=key)


def likelihood(flow: Flow, data: Data, *, rows: int, divergence: str) -> dict[str, Any]:
    """Score the first `rows` held-out rows: mean nats per row, and its standard error.

    In model units and in the original ones: they differ by the sum of the logarithms of the scales.
    Raises ValueError where the source's density has no formula.
    """
    points, cond = data.test.points[:rows], data.test.cond
    cond = None if cond is None else cond[:rows]
    key = fold_in(_key(flow), "likelihood")
    nll = -flow.score(points, cond, divergence=divergence, key=key)
    return {
        "nll_rows": len(nll),
        "nll": float(nll.mean()),
        "nll_standard_error": float(nll.std(ddof=1) / len(nll) ** 0.5) if len(nll) > 1 else None,
        "nll_original_units": float(nll.mean() + flow.log_scale),
    }


def distances(data: Data, samples: np.ndarray) -> dict[str, Any]:
    """Distances from `samples` (n, d) to held-out data, in model units.

    Beside each stands the same distance between training data and held-out data, its floor: two
    finite samples of one distribution are not at distance zero. Where there are classes, `samples`
    are of those of the held-out rows, and so is that training data.
    """
    test, train, space = data.test, data.train, data.space
    heldout = test.points
    places = space.conditioning.places(train.cond, test.cond, len(train.points))
    reference = train.points[places]
    n = min(len(samples), len(heldout), len(reference), W2_POINTS)
    m = ENERGY_POINTS

    def column_w1(x: np.ndarray) -> dict[str, float]:
        by_column = metrics.column_wasserstein(x, heldout).tolist()
        return dict(zip(space.transform.modelled, by_column, strict=True))

    return {
        "w2_points": n,
        "w2": metrics.wasserstein(samples[:n], heldout[:n]),
        "w2_floor": metrics.wasserstein(reference[:n], heldout[:n]),
        "energy_distance": metrics.energy_distance(samples[:m], heldout[:m]),
        "energy_distance_floor": metrics.energy_distance(reference[:m], heldout[:m]),
        "column_w1": column_w1(samples),
        "column_w1_floor": column_w1(reference),
    }


def is_evaluated(run: Run) -> bool:
    """Whether the kept flow lines are those of the newest checkpoint."""
    if not os.path.lexists(run.flow):
        return False
    dim = read_about(run).space.dim
    try:
        return read_lines(run, dim).step == saved_step(run)
    except Damaged as error:
        warnings.warn(str(error), stacklevel=2)
        return False


def draw(run: Run, *, lines: int = 512, columns: int = 6) -> Sequence[Path]:
    """Draw the figures of a run that has been evaluated; return their paths."""
    from flowmlx import plots

    figures = []
    logged = read_metrics(run)
    if logged:
        figures.append(run.folder / "loss.png")
        tested = [m for m in logged if "test_loss" in m]
        plots.loss_curve(
            [m["step"] for m in logged],
            [m["loss"] for m in logged],
            figures[-1],
            test_steps=[m["step"] for m in tested],
            test_losses=[m["test_loss"] for m in tested],
        )
    units = read_about(run).space.transform
    names = units.modelled
    ts, xs, data, _ = read_lines(run, len(names))
    varies = [name in names for name in units.columns]
    data, *xs = (units.inverse(x)[:, varies] for x in (data, *xs))
    if len(names) == 2:
        figures.append(run.folder / "trajectories.png")
        plots.trajectories(np.stack(xs), data, names, figures[-1], lines=lines)
        figures.append(run.folder / "flow.gif")
        plots.animation(ts, np.stack(xs), data, names, figures[-1])
    else:
        figures.append(run.folder / "marginals.png")
        plots.marginals(data, xs[-1], names, figures[-1], columns=columns)
    return figures

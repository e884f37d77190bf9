"""A trained flow: its samples, log-densities, velocities and ways, in the user's own units."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from flowmlx.bridges import under
from flowmlx.data.arrays import Standardizer, form_of, in_form, table_for, table_of
from flowmlx.experiment import resolve
from flowmlx.experiment.dynamics import Dynamics, reversible, takes_grid
from flowmlx.experiment.folder import About, is_empty, write_about, write_source
from flowmlx.experiment.new import all_or_nothing, new_run, write_options
from flowmlx.experiment.options import Sample, SolverOptions, Train, make
from flowmlx.experiment.own import NO_OWN, Own
from flowmlx.experiment.rules import check
from flowmlx.guidance import GUIDANCE
from flowmlx.keys import fold_in
from flowmlx.likelihood import log_prob
from flowmlx.paths import Linear
from flowmlx.sampling import row_blocks
from flowmlx.solvers.arrays import as_numpy, check_count, check_number
from flowmlx.spaces.conditioning import text_of
from flowmlx.spaces.ends import SOURCE_DENSITIES, Source, named_source
from flowmlx.spaces.space import Space
from flowmlx.training import TrainState, checkpoint
from flowmlx.training.copies import copy_of_module

# Rows that are scored or carried at a time, which bounds memory.
BATCH = 4096


@dataclass(frozen=True, eq=False)
class Flow:
    """A trained flow, as `flowmlx.train` and `flowmlx.load` return it.

    Rows have the units and column names of the training data, and its form: for a file, methods
    return a pyarrow.Table (`.to_pandas()`); for a DataFrame, a DataFrame of the same library; for
    an array of NumPy or MLX, such an array; for a toy data set, an array of MLX. Rows that you pass
    to a method may have any of these forms, or be the path of a file.

    `net`: the network, with averaged weights; `space`: maps rows to points of the model and back;
    `source`: the distribution where the flow starts; `dynamics`: how the network moves points;
    `options`: options of the training; `own`: objects of your own that it was trained with; `step`:
    training step of the weights.
    """

    net: nn.Module
    space: Space
    source: Source
    dynamics: Dynamics
    options: Train
    own: Own = NO_OWN
    step: int = 0

    def __repr__(self) -> str:
        columns, told = (", ".join(map(repr, names)) for names in self._names())
        parts = [f"{self.space.kind} of {columns}", f"given {told}" if told else ""]
        parts += [f"along {self.dynamics.path}", f"step {self.step:,}"]
        return f"Flow({'; '.join(filter(None, parts))})"

    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Some columns of rows, and those of the condition."""
        most, columns = 4, self.columns
        shown = columns if len(columns) <= most else (*columns[: most - 1], f"... {len(columns)}")
        return shown, self.space.conditioning.names

    @classmethod
    def of(
        cls,
        net: nn.Module,
        like: Any,
        *,
        path: Any = None,
        source: Any = "normal",
        prediction: str = "velocity",
        transform: Standardizer | None = None,
    ) -> "Flow":
        """Make a flow from a network that was trained with `fit`, such as `state.averaged()`.

        `like`: rows like the training data, in any form. They set column names and the form of
        results. `path`: the path of the loss; None is Linear(). `source`: where the flow starts:
        "normal", another toy name, rows, or a generator `(n, *, key)` of points. `prediction`: what
        the network outputs: "velocity", "x1" or "x0". `transform`: the standardisation of the rows
        before training; None if there was none.
        """
        if transform is None:
            columns = table_of(like).columns
            transform = Standardizer(columns, np.zeros(len(columns)), np.ones(len(columns)))
        space = Space("table", transform, form=form_of(like))
        options, own = resolve.named(net, path or Linear(), source, prediction, space)
        resolved = check(options, own)
        net = copy_of_module(net).eval()
        dynamics = resolve.dynamics(resolved, space)
        return cls(net, space, named_source(source, transform), dynamics, options, own)

    def sample(
        self,
        n: int = 1024,
        *,
        condition: Any = None,
        guidance: float = 1.0,
        guidance_method: str = "cfg",
        at_time: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        step_size: float | None = None,
        grid: str | None = None,
    ) -> Any:
        """Draw `n` new rows.

        Row k depends on `seed` and k only, not on n. `condition`: the condition of all rows, as a
        value or text, or a tuple for several columns; with None, rows of all conditions are drawn.
        `guidance`: 1 gives rows as in the data; above 1, they are more typical of the condition and
        less varied. `at_time`: for snapshots, the time of the rows; None is the last time.
        `solver`, `rtol`, `atol`, `step_size`, `grid`: None uses those of the training. The solvers
        euler_maruyama, milstein, stochastic_heun and sra1 sample with noise. Raises ValueError for
        unknown or unsuitable arguments, and SolverError if the solver fails.
        """
        n = check_count(n, "n", least=0)
        asked = make(
            Sample,
            {
                "run": "",
                "n": max(n, 1),  # of none the same mistakes are refused
                "condition": None if condition is None else text_of(condition),
                "guidance": guidance,
                "guidance_method": guidance_method,
                "at_time": at_time,
                "seed": seed,
                "solver": solver,
                "rtol": rtol,
                "atol": atol,
                "step_size": step_size,
                "grid": grid,
            },
        )
        values = np.concatenate([*self.drawn(asked)])[:n]
        return in_form(self.space.form, self.columns, values)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of rows."""
        return self.space.transform.columns

    def drawn(self, asked: Sample) -> Iterator[np.ndarray]:
        """Iterate over the rows of `sample` in blocks (n, columns) of float64, computed lazily."""
        check(asked)
        solver = self._solver(asked)
        cond = self.space.conditioning.parse(asked.condition)
        field = self._guided(cond, asked.guidance, asked.guidance_method)
        key, ts = fold_in(mx.random.key(asked.seed), "sample"), (0.0, self._end(asked.at_time))
        for start, size in row_blocks(asked.n):
            x0 = self.source.start(size, cond, key=fold_in(key, start))
            noise = fold_in(key, "noise", start)
            points = self.dynamics.solve(field, x0, solver, ts=ts, key=noise).xs[-1]
            yield self.space.transform.inverse(as_numpy(points)[: asked.n - start])

    def _solver(self, asked: Sample) -> SolverOptions:
        """The solver of the training, but for what is asked."""
        given = {k: v for k, v in asdict(asked.integration).items() if v is not None}
        solver = replace(self.options.integration, **given)
        if "grid" not in given and not takes_grid(solver):
            solver = replace(solver, grid="uniform")  # the other was for the solver of the training
        check(replace(self.options, integration=solver), self.own)
        return solver

    def _guided(self, cond: mx.array | None, weight: float, method: str) -> Callable:
        field = self.dynamics.field(self.net)
        if cond is None or weight == 1:
            return under(field, cond)
        if self.options.flow.condition_dropout == 0:
            raise ValueError(
                "--guidance compares with the flow without condition, which this run has not "
                "learned: it was trained with --condition-dropout 0"
            )
        return under(field, cond, GUIDANCE[method], weight)

    def _end(self, at_time: float | None) -> float:
        """The time to sample at, from 0 to 1."""
        if at_time is None:
            return 1.0
        first, last = self.space.times[0], self.space.times[-1]
        if self.options.data.time_column is None:
            raise ValueError("--at-time needs a run that was trained with --time-column")
        if not first < at_time <= last:
            raise ValueError(
                f"--at-time is {at_time:g}; expected a time above {first:g} and up to {last:g}"
            )
        return self.space.unit_time(at_time)

    def log_prob(
        self, rows: Any, *, condition: Any = None, divergence: str = "exact", seed: int = 0
    ) -> np.ndarray:
        """Log-density of each row, (n,) float64, in nats, in the rows' own units.

        The density is that of the columns that are not constant. `condition`: one condition for all
        rows. With None, each row has its own condition if `rows` contain the condition columns;
        otherwise the density without condition is returned. `divergence`: "exact" needs one
        vector-Jacobian product per column; "hutchinson" needs one in total and is a random
        estimate, determined by `seed`. Raises ValueError if the source has no density, such as a
        file.
        """
        points, cond = self._points(rows, condition)
        scored = self.score(points, cond, divergence=divergence, key=mx.random.key(seed))
        return scored - self.log_scale

    @property
    def log_scale(self) -> float:
        """What the transform adds to the log-density of points over that of rows."""
        scale = self.space.transform.scale
        return float(np.log(scale[scale > 0]).sum())

    def score(
        self, points: np.ndarray, cond: np.ndarray | None, *, divergence: str, key: mx.array
    ) -> np.ndarray:
        """Log-density of points (n, dim) of the model, each under its condition: (n,) float64."""
        if self.source.log_prob is None:
            raise ValueError(
                "the source has no density to score with; train from one of: "
                + ", ".join(SOURCE_DENSITIES)
            )
        field, scores = self.dynamics.field(self.net), [np.zeros(0)]
        for k in range(0, len(points), BATCH):
            part = slice(k, k + BATCH)
            found = log_prob(
                under(field, _part(cond, part)),
                mx.array(points[part]),
                self.source.log_prob,
                key=fold_in(key, k),
                divergence=divergence,
            )
            scores.append(as_numpy(found.log_prob, dtype=np.float64))
        return np.concatenate(scores)

    def velocity(self, rows: Any, t: float, *, condition: Any = None) -> Any:
        """Velocity of each row at time `t`, in units of the rows per unit of time.

        Returned in the form of `rows`. `t`: from 0 (source) to 1 (data); for snapshots, a time in
        the units of the file, and the velocity is per such unit. `condition`: as in `log_prob`. The
        velocity of constant columns is 0.
        """
        points, cond = self._points(rows, condition)
        time, field = self._time(t, "t"), under(self.dynamics.field(self.net), _array(cond))
        moved = as_numpy(field(mx.array(time), mx.array(points)), dtype=np.float64)
        scale = self.space.transform.scale
        values = np.zeros((len(points), len(scale)))
        values[:, scale > 0] = moved * scale[scale > 0] / self.space.duration
        return in_form(form_of(rows), self.columns, values)

    def trajectory(self, rows: Any, times: Sequence[float], *, condition: Any = None) -> list:
        """Move rows along the flow from times[0] through `times`; return the rows at each time.

        A list with one entry per time, in the form of `rows`. `times`: increasing or decreasing, in
        the units of `velocity`. The flow is followed without noise, with the solver of the
        training. `condition`: as in `log_prob`.
        """
        points, cond = self._points(rows, condition)
        ts = [self._time(float(t), "times") for t in as_numpy(times, "times", np.float64).ravel()]
        carried = self._carried(points, cond, ts)
        form, inverse = form_of(rows), self.space.transform.inverse
        return [in_form(form, self.columns, inverse(x)) for x in carried]

    def encode(self, rows: Any, *, condition: Any = None) -> mx.array:
        """Source points (n, dim), in model units, from which the flow leads to `rows`."""
        points, cond = self._points(rows, condition)
        return mx.array(self._carried(points, cond, [1.0, 0.0])[-1])

    def decode(self, points: mx.array, *, condition: Any = None) -> Any:
        """Rows to which the flow leads from source points (n, dim), such as those of `encode`.

        `condition`: one for all points. Points do not keep the condition that they were encoded
        under: give it again.
        """
        cond = self.space.conditioning.parse(condition)
        x0 = as_numpy(points, "points")
        if x0.ndim != 2 or x0.shape[1] != self.space.dim:
            raise ValueError(f"points have shape {x0.shape}; expected (n, {self.space.dim})")
        told = None if cond is None else np.broadcast_to(as_numpy(cond), (len(x0), *cond.shape))
        values = self.space.transform.inverse(self._carried(x0, told, [0.0, 1.0])[-1])
        return in_form(self.space.form, self.columns, values)

    def _time(self, time: float, name: str) -> float:
        """A time as the user counts it, from 0 to 1."""
        first, last = self.space.times[0], self.space.times[-1]
        expected = f"a time from {first:g} to {last:g}, from the source to the data"
        known = check_number(time, name, expected, lambda t: first <= t <= last)
        return self.space.unit_time(known)

    def _carried(
        self, points: np.ndarray, cond: np.ndarray | None, ts: Sequence[float]
    ) -> np.ndarray:
        """Points (times, n, dim) on the way of the flow, without noise."""
        field, solver = self.dynamics.field(self.net), reversible(self.options.integration)
        parts = []
        for k in range(0, max(len(points), 1), BATCH):
            part = slice(k, k + BATCH)
            told, x = under(field, _array(_part(cond, part))), mx.array(points[part])
            solved = self.dynamics.solve(told, x, solver, ts=ts, key=mx.random.key(0))
            parts.append(as_numpy(solved.xs))
        return np.concatenate(parts, axis=1)

    def _points(self, rows: Any, condition: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows in model space, and the condition of each."""
        conditioning = self.space.conditioning
        table = table_for(self.columns, rows, "rows", optional=conditioning.names)
        points = as_numpy(self.space.transform.transform(table.values[:, : len(self.columns)]))
        cond = conditioning.parse(condition)
        if cond is not None:
            return points, np.broadcast_to(as_numpy(cond), (len(points), *cond.shape))
        return points, conditioning.of_table(table)

    def save(self, folder: str | Path) -> None:
        """Save the flow in `folder`, for `flowmlx.load` and `flowmlx sample`.

        Its training cannot be resumed from there. Raises ValueError if the folder exists and is not
        empty.
        """
        if not is_empty(Path(folder)):
            raise ValueError(f"{folder} is there already; choose another name")
        run = new_run(folder)
        about = About("", self.space, own=self.own.names, weights_only=True)
        with all_or_nothing(run):
            write_source(run, self.source.rows)
            # Without moments: there is nothing to go on with.
            state = TrainState(self.net, optim.SGD(0.0), step=self.step)
            checkpoint.save(run.checkpoints, state)
            write_about(run, about)
            write_options(run, self.options)


def _part(cond: np.ndarray | None, part: slice) -> np.ndarray | None:
    return None if cond is None else cond[part]


def _array(cond: np.ndarray | None) -> mx.array | None:
    return None if cond is None else mx.array(cond)

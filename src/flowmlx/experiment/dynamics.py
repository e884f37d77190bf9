"""What a trained network says, and how points follow it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.bridges import VelocityOf
from flowmlx.conversions import to_velocity
from flowmlx.experiment.options import SolverOptions
from flowmlx.paths import AffinePath
from flowmlx.sampling import sample, sample_sde
from flowmlx.solvers import ADAPTIVE, GRIDS, METHODS, SDE_METHODS, Solution
from flowmlx.spaces.kind import FORWARD, Bridge

# Step of the solvers that do not choose their own, where none is given.
FIXED_STEP = 0.01


@dataclass(frozen=True)
class Dynamics:
    """How the output of a network moves points.

    `path`: that it was trained on; `prediction`: what it outputs, a name in TARGETS; `score`:
    whether it gives a score beside the velocity; `bridge`: the way of points with that score.
    """

    path: AffinePath
    prediction: str = "velocity"
    score: bool = False
    bridge: Bridge = FORWARD

    def field(self, net: Callable) -> Callable:
        """The velocity field (t, x, cond=None) of a network."""
        if self.score:
            return VelocityOf(net)
        return to_velocity(net, self.prediction, self.path)

    def solve(
        self,
        field: Callable,
        x0: mx.array,
        solver: SolverOptions,
        *,
        key: mx.array,
        ts: Sequence[float] | np.ndarray = (0.0, 1.0),
    ) -> Solution:
        """Carry `x0` along `field`, one of `field()`, guided or not; `key`: for the noise.

        Raises SolverError where the solver fails.
        """
        if solver.solver not in SDE_METHODS:
            return self._follow(field, x0, solver, ts)
        noisy: dict[str, Any] = {"ts": ts, "key": key, "method": solver.solver}
        if not self.score:
            return sample_sde(field, x0, step_size=solver.step_size or FIXED_STEP, **noisy)
        step_size = solver.step_size or FIXED_STEP * self.bridge.shortest
        model, sigma = field.model, self.path.sigma
        return self.bridge.carry(model, x0, sigma=sigma, step_size=step_size, **noisy)

    def _follow(self, field, x0: mx.array, solver: SolverOptions, ts) -> Solution:
        step_size, grid = fixed_step(solver), None
        if step_size is not None and solver.grid != "uniform":
            whole = GRIDS[solver.grid](math.ceil(1 / step_size * (1 - 1e-12)))
            step_size, grid = None, _between(whole, ts[0], ts[-1])
        return sample(
            field,
            x0,
            ts=ts,
            method=solver.solver,
            path=self.path,
            rtol=solver.rtol,
            atol=solver.atol,
            step_size=step_size,
            grid=grid,
        )


def _between(grid: Sequence[float] | np.ndarray, start: float, end: float) -> np.ndarray:
    """The part of a grid on the way from `start` to `end`, backwards as well, with these ends."""
    low, high = sorted((start, end))
    times = np.asarray(grid)
    inside = times[(np.float32(times) > np.float32(low)) & (np.float32(times) < np.float32(high))]
    part = np.array([low, *inside, high])
    return part if start == low else part[::-1]


def fixed_step(solver: SolverOptions) -> float | None:
    """The step that is given, or that of a solver which does not choose its own."""
    return solver.step_size or (None if solver.solver in ADAPTIVE else FIXED_STEP)


def takes_grid(solver: SolverOptions) -> bool:
    """Whether a solver takes steps that a grid can shorten: it neither adds noise nor chooses."""
    return solver.solver not in SDE_METHODS and fixed_step(solver) is not None


def noiseless(solver: SolverOptions) -> SolverOptions:
    """The solver, or the default one in place of one that adds noise."""
    return replace(solver, solver=SolverOptions.solver) if solver.solver in SDE_METHODS else solver


def reversible(solver: SolverOptions) -> SolverOptions:
    """The solver, or the default one in place of one that cannot go from data to the source."""
    return solver if solver.solver in METHODS else replace(solver, solver=SolverOptions.solver)

"""ODE solvers for MLX, complete in themselves: nothing else of flowmlx is imported.

`odeint` solves dx/dt = field(t, x) with a method of `METHODS`, or an `Exponential` one that knows
the path; `odeint_per_sample` lets every sample of a batch take steps of its own. `Controller`,
`rms` and `per_sample_max` set how steps are chosen, the functions of `GRIDS` where fixed ones end.
Gradients go through a solve by `mx.grad`; through `odeint_adjoint` they take little memory.
`sdeint` solves dx = drift dt + diffusion dW with a method of `SDE_METHODS`, along a
`BrownianMotion` that a key fixes.
"""

from flowmlx.solvers.adjoint import odeint_adjoint
from flowmlx.solvers.brownian import BrownianMotion, Increment
from flowmlx.solvers.control import Controller, per_sample_max, rms
from flowmlx.solvers.exponential import Coefficients, Exponential
from flowmlx.solvers.failures import SolverError, Status
from flowmlx.solvers.gradients import ADJOINTS, Gradients, odeint_value_and_grad
from flowmlx.solvers.grids import GRIDS
from flowmlx.solvers.inputs import METHODS
from flowmlx.solvers.integrate import odeint
from flowmlx.solvers.per_sample import odeint_per_sample
from flowmlx.solvers.sde import SDE_METHODS, sdeint
from flowmlx.solvers.solution import Solution, Stats

__all__ = [
    "ADJOINTS",
    "GRIDS",
    "METHODS",
    "SDE_METHODS",
    "BrownianMotion",
    "Coefficients",
    "Controller",
    "Exponential",
    "Gradients",
    "Increment",
    "Solution",
    "SolverError",
    "Stats",
    "Status",
    "odeint",
    "odeint_adjoint",
    "odeint_per_sample",
    "odeint_value_and_grad",
    "per_sample_max",
    "rms",
    "sdeint",
]

"""ODE solvers for MLX, complete in themselves: nothing else of flowmlx is imported.

`odeint` solves dx/dt = field(t, x) with a method of `METHODS`, with an `Exponential` one that knows
the path, or with a `Stepper` of your own, which makes a `Step` from `Point` to `Point`.
`odeint_per_sample` lets every sample of a batch take steps of its own. `Controller`, `rms` and
`per_sample_max` set how steps are chosen, the functions of `GRIDS` where fixed ones end. Gradients
go through a solve by `mx.grad`; through `odeint_adjoint` they take little memory. `sdeint` solves
dx = drift dt + diffusion dW with a method of `SDE_METHODS`, along a `BrownianMotion` that a key
fixes.
"""

from flowmlx.solvers.adjoint import odeint_adjoint
from flowmlx.solvers.brownian import BrownianMotion, Increment
from flowmlx.solvers.control import Controller, per_sample_max, rms
from flowmlx.solvers.exponential import Coefficients, Exponential
from flowmlx.solvers.failures import SolverError, Status
from flowmlx.solvers.gradients import Gradients, odeint_value_and_grad
from flowmlx.solvers.grids import GRIDS
from flowmlx.solvers.integrate import odeint
from flowmlx.solvers.methods import ADAPTIVE, METHODS
from flowmlx.solvers.per_sample import odeint_per_sample
from flowmlx.solvers.runge_kutta import Tableau
from flowmlx.solvers.sde import SDE_METHODS, sdeint
from flowmlx.solvers.solution import Solution, Stats
from flowmlx.solvers.stepper import Point, Step, Stepper
from flowmlx.solvers.ways_back import ADJOINTS

__all__ = [
    "ADAPTIVE",
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
    "Point",
    "Solution",
    "SolverError",
    "Stats",
    "Status",
    "Step",
    "Stepper",
    "Tableau",
    "odeint",
    "odeint_adjoint",
    "odeint_per_sample",
    "odeint_value_and_grad",
    "per_sample_max",
    "rms",
    "sdeint",
]

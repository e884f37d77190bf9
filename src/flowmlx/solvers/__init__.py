"""ODE solvers for MLX: `odeint` and the methods in `METHODS`. Imports nothing else of flowmlx."""

from flowmlx.solvers.integrate import METHODS, Solution, SolverError, Stats, Status, odeint

__all__ = ["METHODS", "Solution", "SolverError", "Stats", "Status", "odeint"]

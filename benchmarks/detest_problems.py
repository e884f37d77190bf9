"""The 25 non-stiff DETEST problems, and their solution by SciPy and by flowmlx.

Hull, Enright, Fellen & Sedgwick 1972 (SIAM J. Numer. Anal. 9, 603-637): classes A (one equation),
B (small systems), C (moderate systems), D (orbits) and E (higher order), each on 0 <= t <= 20. The
constants are those of Enright & Pryce 1987 (ACM TOMS 13, Algorithm 648); so are the end states.

A field `(t, x, *constants)` takes t as a float, x as a NumPy array or an MLX one, and returns dx/dt
in one or more parts of either kind. sin and cos are of t only and taken on the host, because MLX's
are float32-accurate whatever their type.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np
from scipy.integrate import solve_ivp

from flowmlx.solvers import Status, odeint

SPAN = (0.0, 20.0)
SCIPY = {"RK23": 3, "RK45": 5, "DOP853": 8}  # with their orders


@dataclass(frozen=True)
class Problem:
    """dx/dt = field(t, x, *constants) from x0 at t = 0.

    `end`: first and last number of the state at t = 20, as published.
    """

    field: Callable[..., tuple]
    x0: list[float]
    end: tuple[float, float]
    constants: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Run:
    """One solve: the last state, evaluations of the field, and whether it got to t = 20."""

    x: np.ndarray
    nfe: int
    done: bool


def by_scipy(problem: Problem, method: str, rtol: float, atol: float) -> Run:
    """Solve with scipy.integrate.solve_ivp."""

    def field(t, x, *constants):
        return np.concatenate([v.reshape(-1) for v in problem.field(t, x, *constants)])

    options = {"method": method, "rtol": rtol, "atol": atol}
    # It passes on args only if there are some.
    solution = solve_ivp(field, SPAN, problem.x0, args=problem.constants or None, **options)
    return Run(solution.y[:, -1], solution.nfev, solution.success)


def by_flowmlx(problem: Problem, method: str, rtol: float, atol: float) -> Run:
    """Solve with flowmlx.solvers.odeint, in float64: on the CPU only."""

    def field(t, x, *constants):
        return mx.concatenate([v.reshape(-1) for v in problem.field(t.item(), x, *constants)])

    solution = odeint(
        field,
        mx.array(problem.x0, dtype=mx.float64),
        SPAN,
        method=method,
        rtol=rtol,
        atol=atol,
        max_steps=100_000,
        throw=False,
        args=tuple(mx.array(c, dtype=mx.float64) for c in problem.constants),
    )
    done = solution.status is Status.SUCCESS
    return Run(np.array(solution.xs[-1]), solution.stats.nfe, done)


def solve(problem: Problem, method: str, tolerance: float) -> Run:
    """Solve with a method of either library at rtol = atol = tolerance."""
    by = by_scipy if method in SCIPY else by_flowmlx
    return by(problem, method, tolerance, tolerance)


@cache
def reference(name: str) -> np.ndarray:
    """The state at t = 20, to some twelve digits."""
    return by_scipy(PROBLEMS[name], "DOP853", 1e-13, 1e-15).x


def error(x: np.ndarray, exact: np.ndarray) -> float:
    """Largest error of a component, relative to it where it is above 1."""
    return float(np.max(np.abs(x - exact) / np.maximum(1, np.abs(exact))))


def geometric_mean(numbers: Iterable[float]) -> float:
    return math.exp(np.mean(np.log(list(numbers))))


def chain(*rates: float) -> np.ndarray:
    """Matrix of a radioactive chain: what leaves a state enters the next."""
    return np.diag(rates, k=-1) - np.diag([*rates, 0.0])


def diffusion(n: int) -> np.ndarray:
    """Second differences of n numbers between two zeros."""
    return np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1)


def unit(n: int) -> list[float]:
    return [1.0] + [0.0] * (n - 1)


# Mass that two neighbours of a middle state exchange with it.
EXCHANGE = np.array([[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -1.0]])


def decay(t, x):
    return (-x,)


def riccati(t, x):
    return (-(x**3) / 2,)


def oscillation(t, x):
    return (x * math.cos(t),)


def logistic(t, x):
    return (x / 4 * (1 - x / 20),)


def spiral(t, x):
    return ((x - t) / (x + t),)


def conflict(t, x):
    x1, x2 = x
    return 2 * (x1 - x1 * x2), x1 * x2 - x2


def linear(t, x, matrix):
    return (matrix @ x,)


def reaction(t, x):
    x1, x2, _ = x
    return -x1, x1 - x2**2, x2**2


def torus(t, x):
    x1, x2, x3 = x
    r = (x1**2 + x2**2) ** 0.5
    return -x2 - x1 * x3 / r, x1 - x2 * x3 / r, x1 / r


def rigid_body(t, x):
    x1, x2, x3 = x
    return x2 * x3, -x1 * x3, -0.51 * x1 * x2


def planets(t, x, masses, identity):
    """Five bodies around a sun of mass 1.00000597682 at the origin; masses (5, 1)."""
    y, velocity = x[:15].reshape(5, 3), x[15:]
    pull = y / (y * y).sum(1, keepdims=True) ** 1.5
    apart = y[None] - y[:, None]
    # The identity keeps 0 / 0 away; apart is 0 there.
    cubed = ((apart * apart).sum(2, keepdims=True) + identity[:, :, None]) ** 1.5
    others = (masses * (apart / cubed)).sum(1) - (masses * pull).sum(0)
    return velocity, 2.95912208286 * (others - 1.00000597682 * pull)


def orbit(t, x):
    position, velocity = x[:2], x[2:]
    return velocity, -position / (position @ position) ** 1.5


def bessel(t, x):
    y, dy = x
    return dy, -(dy / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y)


def van_der_pol(t, x):
    y, dy = x
    return dy, (1 - y**2) * dy - y


def duffing(t, x):
    y, dy = x
    return dy, y**3 / 6 - y + 2 * math.sin(2.78535 * t)


def falling_body(t, x):
    _, dy = x
    return dy, 0.032 - 0.4 * dy**2


def pursuit(t, x):
    _, dy = x
    return dy, (1 + dy**2) ** 0.5 / (25 - t)


# Jupiter, Saturn, Uranus, Neptune, Pluto: positions, then velocities, in astronomical units and
# hundreds of days; masses in suns. The inner planets' are in that of the sun, 1.00000597682.
MASSES = [
    [0.954786104043e-3],
    [0.285583733151e-3],
    [0.437273164546e-4],
    [0.517759138449e-4],
    [0.277777777778e-5],
]
PLANETS = [
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
]


def kepler(eccentricity: float, *end: float) -> Problem:
    e = eccentricity
    return Problem(orbit, [1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))], end)


def system(matrix: np.ndarray, x0: list[float], *end: float) -> Problem:
    return Problem(linear, x0, end, (matrix,))


PROBLEMS = {
    "A1": Problem(decay, [1.0], (2.061153353012535e-9,) * 2),
    "A2": Problem(riccati, [1.0], (0.2182178902359887,) * 2),
    "A3": Problem(oscillation, [1.0], (2.491650271850414,) * 2),
    "A4": Problem(logistic, [1.0], (17.73016648131483,) * 2),
    "A5": Problem(spiral, [4.0], (-0.7887826688964196,) * 2),
    "B1": Problem(conflict, [1.0, 3.0], (0.6761876008576667, 0.1860816099640036)),
    "B2": system(EXCHANGE, [2.0, 0.0, 1.0], 1.000000001030576, 0.9999999989694235),
    "B3": Problem(reaction, unit(3), (2.061153488557776e-9, 0.9474277177183630)),
    "B4": Problem(torus, [3.0, 0.0, 0.0], (0.9826950928005993, 0.9129452507276399)),
    "B5": Problem(rigid_body, [0.0, 1.0, 1.0], (-0.9396570798729192, 0.7414126596199957)),
    "C1": system(chain(*[1.0] * 9), unit(10), 2.061153622240064e-9, 0.9979127409508656),
    "C2": system(chain(*range(1, 10)), unit(10), 2.061153577984930e-9, 0.9999999814496180),
    "C3": system(diffusion(10), unit(10), 2.948119211022058e-3, 2.762434379029886e-3),
    "C4": system(diffusion(51), unit(51), 3.124111453721466e-3, 1.891330702629865e-14),
    "C5": Problem(
        planets,
        PLANETS,
        (-4.792730224323733, -0.03189687411323877),
        (np.array(MASSES), np.eye(5)),
    ),
    "D1": kepler(0.1, 0.2198835352008397, 0.3287977990962036),
    "D2": kepler(0.3, -0.1777027357140412, 0.1211074890053952),
    "D3": kepler(0.5, -0.5780432953035361, -0.06504915126712089),
    "D4": kepler(0.7, -0.9538990293416394, -0.1539574259125825),
    "D5": kepler(0.9, -1.295266250987574, -0.1270838154278686),
    # The Bessel function J_1/2 of t + 1.
    "E1": Problem(
        bessel,
        [0.6713967071418030, 0.09540051444747446],
        (0.1456723600728308, -0.09883500195574063),
    ),
    "E2": Problem(van_der_pol, [2.0, 0.0], (2.008149762174948, -0.04250887527320057)),
    "E3": Problem(duffing, [0.0, 0.0], (-0.1004178858647128, 0.2411400132095954)),
    "E4": Problem(falling_body, [30.0, 0.0], (33.95091444646555, 0.2767822659672869)),
    "E5": Problem(pursuit, [0.0, 0.0], (14.11797390542629, 2.4)),
}

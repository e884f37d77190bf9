"""Toy distributions in the plane, drawn on the device.

Each is a function `name(n, *, key, **parameters) -> mx.array` of shape (n, 2), float32: n
independent draws, made of MLX operations only, so that it runs inside `mx.compile` (with the key as
an argument) and under `mx.vmap` over keys. `n` is a Python int. In the formulas eps is N(0, I),
independent between coordinates, and u is uniform on [0, 1). Every `std` is a standard deviation,
not a variance. Where a function has `scale`, noise is added before scaling, as when the output of
scikit-learn is scaled. The defaults put nearly all points within 6 units of the origin.
"""

import functools
import math
from collections.abc import Callable

import mlx.core as mx

from flowmlx.solvers.arrays import as_batch, draws


@draws
def normal(n: int, *, key: mx.array, dim: int = 2) -> mx.array:
    """Standard normal in `dim` dimensions: (n, dim)."""
    return mx.random.normal((n, dim), key=key)


@draws
def eight_gaussians(
    n: int, *, key: mx.array, radius: float = 5.0, std: float = math.sqrt(0.1)
) -> mx.array:
    """Eight equally likely Gaussians on a circle: radius (cos k pi/4, sin k pi/4) + std eps.

    k is uniform on 0..7. The default std, the root of a variance of 0.1, keeps the eight apart; the
    published 2D numbers use 1 (Tong et al. 2024, arXiv 2302.00482 and 2307.03672).
    """
    which, noise = mx.random.split(key)
    k = mx.random.randint(0, 8, (n,), key=which)
    return radius * _circle(k * (math.pi / 4)) + std * mx.random.normal((n, 2), key=noise)


def eight_gaussians_log_prob(
    x: mx.array, *, radius: float = 5.0, std: float = math.sqrt(0.1)
) -> mx.array:
    """Log-density of `eight_gaussians` at `x` (n, 2): (n,), nats."""
    x = as_batch(x, "x")
    if x.shape[1:] != (2,):
        raise ValueError(f"x has shape {x.shape}; expected (n, 2)")
    centres = radius * _circle(mx.arange(8) * (math.pi / 4))
    squares = mx.square(x[:, None] - centres).sum(-1)
    # Not by mx.logsumexp, which takes no empty array.
    log_mixture = functools.reduce(mx.logaddexp, (-squares / (2 * std**2)).T)
    return log_mixture - math.log(8 * 2 * math.pi * std**2)


@draws
def moons(
    n: int, *, key: mx.array, std: float = 0.05, scale: float = 2.0, shift: float = -1.0
) -> mx.array:
    """Two interleaved half circles: scale (m + std eps) + shift, the shift on both coordinates.

    With a uniform on [0, 2 pi), m = (cos a, sin a) where a < pi, else (1 + cos a, 1/2 + sin a): the
    curve of scikit-learn's `make_moons`, at random angles. The defaults are those of the published
    2D numbers (Tong et al. 2024, arXiv 2302.00482) and lie inside the ring of `eight_gaussians`.
    """
    which, noise = mx.random.split(key)
    angle = 2 * math.pi * mx.random.uniform(shape=(n,), key=which)
    lower = (angle >= math.pi).astype(mx.float32)[:, None]
    curve = _circle(angle) + lower * mx.array([1.0, 0.5])
    return scale * (curve + std * mx.random.normal((n, 2), key=noise)) + shift


@draws
def checkerboard(n: int, *, key: mx.array, half_width: float = 4.0, squares: int = 4) -> mx.array:
    """Uniform on every other square of a board [-half_width, half_width)^2 of squares x squares.

    Column i and row j, counted from the lower left, hold points where i + j is even. The default is
    the board of FFJORD (Grathwohl et al. 2019). Raises ValueError where `squares` is odd or < 2.
    """
    if squares < 2 or squares % 2:
        raise ValueError(f"squares is {squares}; expected an even number of squares, such as 4")
    u = mx.random.uniform(shape=(n, 2), key=key)
    column = squares * u[:, 0]
    row = squares / 2 * u[:, 1]
    # Stretch the rows of one parity over all: floor(row) counts occupied squares of this column.
    row = row + mx.floor(row) + mx.floor(column) % 2
    return half_width * (2 / squares * mx.stack([column, row], axis=1) - 1)


@draws
def two_spirals(
    n: int, *, key: mx.array, radius: float = math.pi, turns: float = 1.5, std: float = 0.1
) -> mx.array:
    """Two Archimedean spirals, one the other turned by half: +-radius r (-cos a, sin a) + std eps.

    r = sqrt(u) and a = 2 pi turns r, with an independent fair sign. The default is the curve of
    FFJORD (Grathwohl et al. 2019), with Gaussian noise only.
    """
    along, which, noise = mx.random.split(key, 3)
    r = mx.sqrt(mx.random.uniform(shape=(n,), key=along))
    angle = 2 * math.pi * turns * r
    signed = mx.where(mx.random.bernoulli(0.5, (n,), key=which), r, -r)
    curve = signed[:, None] * mx.stack([-mx.cos(angle), mx.sin(angle)], axis=1)
    return radius * curve + std * mx.random.normal((n, 2), key=noise)


@draws
def s_curve(n: int, *, key: mx.array, std: float = 0.05, scale: float = 1.5) -> mx.array:
    """The letter S: scale ((sin a, sign(a) (cos a - 1)) + std eps).

    a is uniform on [-3 pi/2, 3 pi/2). These are the x and z of scikit-learn's `make_s_curve`; noise
    and scale are those of the published 2D numbers (Tong et al. 2024, arXiv 2307.03672).
    """
    along, noise = mx.random.split(key)
    angle = 3 * math.pi * (mx.random.uniform(shape=(n,), key=along) - 0.5)
    curve = mx.stack([mx.sin(angle), mx.sign(angle) * (mx.cos(angle) - 1)], axis=1)
    return scale * (curve + std * mx.random.normal((n, 2), key=noise))


@draws
def pinwheel(
    n: int,
    *,
    key: mx.array,
    arms: int = 5,
    radial_std: float = 0.3,
    tangential_std: float = 0.1,
    rate: float = 0.25,
    scale: float = 2.0,
) -> mx.array:
    """Equally likely curved arms: scale R(-a) f, where R(-a) turns clockwise by a.

    f = (1 + radial_std eps1, tangential_std eps2) and a = 2 pi k / arms + rate exp(f1), with k
    uniform on 0..arms-1. From Johnson et al. 2016 (arXiv 1603.06277), with the constants of FFJORD
    (Grathwohl et al. 2019).
    """
    which, noise = mx.random.split(key)
    k = mx.random.randint(0, arms, (n,), key=which)
    eps = mx.random.normal((n, 2), key=noise)
    f1, f2 = 1 + radial_std * eps[:, 0], tangential_std * eps[:, 1]
    angle = 2 * math.pi / arms * k + rate * mx.exp(f1)
    cos, sin = mx.cos(angle), mx.sin(angle)
    return scale * mx.stack([f1 * cos + f2 * sin, f2 * cos - f1 * sin], axis=1)


@draws
def circles(
    n: int, *, key: mx.array, factor: float = 0.5, std: float = 0.08, scale: float = 3.0
) -> mx.array:
    """Two concentric circles, equally likely: scale (rho (cos a, sin a) + std eps).

    rho is 1 or `factor` and a uniform on [0, 2 pi): scikit-learn's `make_circles` at random angles,
    with the constants of FFJORD (Grathwohl et al. 2019).
    """
    which, along, noise = mx.random.split(key, 3)
    rho = mx.where(mx.random.bernoulli(0.5, (n,), key=which), 1.0, factor)
    angle = 2 * math.pi * mx.random.uniform(shape=(n,), key=along)
    curve = rho[:, None] * _circle(angle)
    return scale * (curve + std * mx.random.normal((n, 2), key=noise))


@draws
def swiss_roll(n: int, *, key: mx.array, std: float = 0.5, scale: float = 0.3) -> mx.array:
    """A rolled sheet seen from the end: scale (a (cos a, sin a) + std eps).

    a is uniform on [3 pi/2, 9 pi/2). These are the x and z of scikit-learn's `make_swiss_roll`.
    """
    along, noise = mx.random.split(key)
    angle = 1.5 * math.pi * (1 + 2 * mx.random.uniform(shape=(n,), key=along))
    curve = angle[:, None] * _circle(angle)
    return scale * (curve + std * mx.random.normal((n, 2), key=noise))


def _circle(angle: mx.array) -> mx.array:
    """Points of the unit circle: (n,) -> (n, 2)."""
    return mx.stack([mx.cos(angle), mx.sin(angle)], axis=1)


TOY: dict[str, Callable[..., mx.array]] = {
    "normal": normal,
    "8gaussians": eight_gaussians,
    "moons": moons,
    "checkerboard": checkerboard,
    "2spirals": two_spirals,
    "scurve": s_curve,
    "pinwheel": pinwheel,
    "circles": circles,
    "swissroll": swiss_roll,
}

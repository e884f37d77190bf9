"""Closed forms in NumPy's float64 that the tests of paths, conversions and losses compare with."""

import math

import numpy as np

from flowmlx import paths

HALF_PI = math.pi / 2

# Alpha, beta, gamma as the papers write them; t may be complex.
COEFFICIENTS = {
    paths.Linear: lambda p, t: (t, 1 - t, p.sigma),
    paths.Trigonometric: lambda p, t: (np.sin(HALF_PI * t), np.sin(HALF_PI * (1 - t)), p.sigma),
    paths.Polynomial: lambda p, t: (t**p.n, 1 - t**p.n, p.sigma),
    paths.LinearVP: lambda p, t: (t, np.sqrt(1 - t**2), p.sigma),
    paths.VPDiffusion: lambda p, t: (
        np.exp(-diffused(p, t) / 2),
        np.sqrt(1 - np.exp(-diffused(p, t))),
        p.sigma,
    ),
    paths.Target: lambda p, t: (t, 0.0, 1 - (1 - p.sigma) * t),
    paths.OneSidedTrigonometric: lambda p, t: (
        np.sin(HALF_PI * t),
        0.0,
        p.sigma + (1 - p.sigma) * np.sin(HALF_PI * (1 - t)),
    ),
    paths.Bridge: lambda p, t: (t, 1 - t, p.sigma * np.sqrt(t * (1 - t))),
    paths.TrigonometricBridge: lambda p, t: (
        np.sin(HALF_PI * t),
        np.sin(HALF_PI * (1 - t)),
        p.sigma * np.sqrt(t * (1 - t)),
    ),
    paths.Mirror: lambda p, t: (1.0, 0.0, p.sigma * np.sqrt(t * (1 - t))),
    paths.EncodingDecoding: lambda p, t: (
        np.where(t.real > 0.5, np.cos(math.pi * t) ** 2, 0),
        np.where(t.real > 0.5, 0, np.cos(math.pi * t) ** 2),
        p.sigma * np.sin(math.pi * t) ** 2,
    ),
}


def diffused(path, t):
    """Integral of the diffusion's rate beta(s) from the data, s = 0, to s = 1 - t."""
    s = 1 - t
    return s * path.beta_min + s**2 * (path.beta_max - path.beta_min) / 2


def coefficients(path, t):
    """Alpha, beta, gamma and their derivatives at t, six arrays of its shape.

    The derivatives are complex steps: Im f(t + ih) / h has no difference to cancel.
    """
    t, h = np.asarray(t, np.float64), 1e-30
    values = COEFFICIENTS[type(path)](path, t + 0j)
    ahead = COEFFICIENTS[type(path)](path, t + 1j * h)
    return [
        *(np.broadcast_to(np.real(k), t.shape) for k in values),
        *(np.broadcast_to(np.imag(k) / h, t.shape) for k in ahead),
    ]


def times(path, n=257):
    """Times on the whole interval of a path, float32: both ends, and many close to them."""
    low, high = path.interval
    gaps = 2.0 ** -np.arange(3, 23)
    inside = np.linspace(low, high, n)[1:-1]
    all_times = np.concatenate([[low], low + gaps, inside, high - gaps, [high]])
    return np.unique(all_times.astype(np.float32).clip(low, high))


# The Gaussian data of the tests: mean and variance of each number; the source is N(0, 1).
MEAN, VARIANCE = 1.5, 0.25


def one_noise(path, t):
    """Alpha, the one noise's coefficient, and their derivatives."""
    alpha, beta, gamma, dalpha, dbeta, dgamma = coefficients(path, t)
    assert not (beta.any() and gamma.any())
    return alpha, beta + gamma, dalpha, dbeta + dgamma


def gaussian(path, t, x):
    """What a perfect network would predict at (t, x), by name; t has the shape of x or () ."""
    alpha, beta, dalpha, dbeta = one_noise(path, t)
    x = np.asarray(x, np.float64)
    residual = (x - alpha * MEAN) / (alpha**2 * VARIANCE + beta**2)
    x1, x0 = MEAN + alpha * VARIANCE * residual, beta * residual
    return {"velocity": dalpha * x1 + dbeta * x0, "x1": x1, "x0": x0, "score": -residual}


def gaussian_flow(path, t, z):
    """Where the flow carries the point whose z-score, constant along it, is z."""
    alpha, beta, *_ = one_noise(path, t)
    return alpha * MEAN + np.sqrt(alpha**2 * VARIANCE + beta**2) * np.asarray(z, np.float64)


def conversion(path, given, wanted, t):
    """P and q of wanted = p given + q x at one time, by linear algebra; None where singular."""
    alpha, beta, dalpha, dbeta = one_noise(path, t)
    rows = {"velocity": (dalpha, dbeta), "x1": (1, 0), "x0": (0, 1)}
    rows["score"] = (0, -1 / beta) if beta else None
    if rows[given] is None or rows[wanted] is None:
        return None
    system = np.array([rows[given], (alpha, beta)], np.float64).T
    if abs(np.linalg.det(system)) < 1e-30:
        return None
    return np.linalg.solve(system, np.array(rows[wanted], np.float64))

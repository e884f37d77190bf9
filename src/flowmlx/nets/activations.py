"""Activation functions by name, cheap on the CPU backend.

MLX's CPU backend takes 16 to 35 ns per element for exp, tanh and what is built on them. Here they
are rational functions, which `mx.compile` turns into SIMD loops: 1 to 3 ns. These serve float32
arrays while the default device is the CPU; all else gets MLX's own functions. The two differ by
rounding: values are within 3e-7 max(1, |x|) of the exact ones, and saturate exactly.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from flowmlx.solvers import backend

Function = Callable[[mx.array], mx.array]

# tanh(x) = x (1/16 + (16^2 - x^2) P(x^2) / Q(x^2)) for |x| <= LIMIT = 16: exactly 1 at the limit in
# any rounding, so that what is clamped there saturates exactly. Coefficients from the lowest power
# up, minimax in relative error (1.9e-8), fitted for this file by Lawson's iteration.
LIMIT = 16.0
P = (0.0036621093, 0.000438384936, 1.06995048e-05, 6.63329477e-08, 7.61354203e-11)
Q = (1.0, 0.471357461, 0.0278258195, 0.000428824494, 1.80625134e-06, 1.44756994e-09)
# artanh(z) = z A(z^2) for |z| <= 1/3, fitted in the same way (4e-9).
A = (1.0, 0.333331573, 0.200124551, 0.139803014, 0.140891674)


def cheap_on_cpu(builtin: Function, slope: Callable[[mx.array, mx.array], mx.array]):
    """Decorate a float32 formula: use it on the CPU, and `builtin` for anything else.

    `slope(x, y)` is the derivative, x the argument and y the result; it must itself be
    differentiable, so that the second derivative is right as well.
    """

    def decorate(formula: Function) -> Function:
        # Compiled here, so that a field which is not compiled has the fused loops as well.
        cheap: Any = mx.custom_function(mx.compile(formula))
        cheap.vjp(lambda x, cotangent, y: cotangent * slope(x, y))
        cheap.jvp(lambda x, tangent: tangent * slope(x, cheap(x)))

        @wraps(formula)
        def activation(x: mx.array) -> mx.array:
            backend.ready()
            on_cpu = mx.default_device().type == mx.cpu
            return cheap(x) if on_cpu and x.dtype == mx.float32 else builtin(x)

        return activation

    return decorate


@cheap_on_cpu(mx.sigmoid, slope=lambda x, y: y * (1 - y))
def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x))."""
    return 0.5 + 0.5 * _tanh(0.5 * x)


@cheap_on_cpu(mx.tanh, slope=lambda x, y: 1 - y * y)
def tanh(x: mx.array) -> mx.array:
    """Hyperbolic tangent."""
    return _tanh(x)


@cheap_on_cpu(
    lambda x: mx.expm1(mx.minimum(x, 0)),
    slope=lambda x, y: (1 + y) * _alone((x <= 0).astype(x.dtype)),
)
def expm1_negative(x: mx.array) -> mx.array:
    """exp(x) - 1 where x < 0, else 0."""
    # exp(2 h) - 1 = 2 tanh(h) / (1 - tanh(h))
    t = _tanh(0.5 * x, high=0.0)
    return 2 * t / (1 - t)


@cheap_on_cpu(nn.softplus, slope=lambda x, y: sigmoid(x))
def softplus(x: mx.array) -> mx.array:
    """log(1 + exp(x))."""
    # log(1 + exp(-2 h)) = 2 artanh(z) with z = (1 - tanh(h)) / (3 + tanh(h))
    t = _tanh(0.5 * mx.abs(x))
    z = _alone((1 - t) / (3 + t))
    return _alone(mx.maximum(_alone(x), 0)) + 2 * z * _polynomial(A, z * z)


def silu(x: mx.array) -> mx.array:
    """x sigmoid(x), also called swish."""
    # One loop for all of it takes 8 % off a solve, and doubles the time of a gradient that is not
    # compiled: that needs the sigmoid.
    return x * sigmoid(x)


def gelu(x: mx.array) -> mx.array:
    """x Phi(x) in its usual approximation with tanh, within 5e-4 (Hendrycks and Gimpel 2016)."""
    # (1 + tanh(z)) / 2 = sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3)
    return x * sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))


def elu(x: mx.array) -> mx.array:
    """x where x > 0, else exp(x) - 1 (Clevert et al. 2016)."""
    return _alone(nn.relu(x)) + expm1_negative(x)


def selu(x: mx.array) -> mx.array:
    """ELU scaled to keep mean 0 and variance 1 through layers (Klambauer et al. 2017)."""
    return 1.0507009873554805 * _alone(nn.relu(x)) + 1.7580993408473766 * expm1_negative(x)


ACTIVATIONS: dict[str, Function] = {
    "silu": silu,
    "selu": selu,
    "gelu": gelu,
    "tanh": tanh,
    "relu": nn.relu,
    "elu": elu,
    "softplus": softplus,
}


def _tanh(x: mx.array, high: float = LIMIT) -> mx.array:
    """tanh of x clamped to [-LIMIT, high]."""
    x = _alone(mx.where(x > high, high, mx.where(x < -LIMIT, -LIMIT, x)))  # keeps NaN
    u = x * x
    return _alone(x * (1 / LIMIT + (LIMIT**2 - u) * (_polynomial(P, u) / _polynomial(Q, u))))


def _polynomial(coefficients: tuple[float, ...], x: mx.array) -> mx.array | float:
    # In pairs (Estrin's scheme): mx.compile cuts chains of more than 11 operations, which Horner's
    # rule would exceed, and may cut them before a constant: then a slow strided loop results.
    terms: list = list(coefficients)
    while len(terms) > 1:
        pairs = [low + high * x for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
        x = x * x
    return terms[0]


def _alone(x: mx.array) -> mx.array:
    """Keep what comes after out of the loop that computes x.

    GCC does not vectorise a loop with a comparison and more arithmetic after it, for fear of
    floating-point traps; two loops are two to five times faster than one.
    """
    return mx.contiguous(x)

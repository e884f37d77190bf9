"""Activations against their formulas in float64, with first and second derivatives."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from flowmlx.nets.activations import ACTIVATIONS

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805


def expm1_negative(x):
    return np.expm1(np.minimum(x, 0))


FORMULAS = {
    "silu": lambda x: x * np.exp(-np.logaddexp(0, -x)),
    "selu": lambda x: SCALE * (np.maximum(x, 0) + ALPHA * expm1_negative(x)),
    "gelu": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.maximum(x, 0) + expm1_negative(x),
    "softplus": lambda x: np.logaddexp(0, x),
}
BUILTINS = {
    "silu": nn.silu,
    "selu": nn.selu,
    "gelu": nn.gelu_approx,
    "tanh": mx.tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "softplus": nn.softplus,
}
CORNERS = [np.inf, -np.inf, np.nan, 1e30, -1e30, 1e4, -1e4, 0.0, -0.0, 1e-40]


@pytest.fixture(autouse=True)
def on_cpu():
    with mx.stream(mx.cpu):
        yield


@pytest.fixture(params=ACTIVATIONS)
def name(request):
    return request.param


def points():
    """Floats of all sizes, dense where the functions bend; no zero, where some have a kink."""
    positive = np.concatenate([np.linspace(0.001, 40, 20_000), np.geomspace(1e-30, 1e5, 2_000)])
    return np.concatenate([-positive[::-1], positive]).astype(np.float32)


def test_values_are_exact_to_rounding(name):
    x = points()
    exact = FORMULAS[name](x.astype(np.float64))
    error = np.abs(np.array(ACTIVATIONS[name](mx.array(x))).astype(np.float64) - exact)
    assert np.max(error / np.maximum(1, np.abs(x))) < 3e-7


def test_small_values_keep_their_relative_accuracy():
    x = np.geomspace(1e-30, 1, 10_000).astype(np.float32)
    for name in ("tanh", "elu", "selu"):
        exact = FORMULAS[name](-x.astype(np.float64))
        found = np.array(ACTIVATIONS[name](mx.array(-x))).astype(np.float64)
        np.testing.assert_allclose(found, exact, rtol=8e-7, err_msg=name)


def test_corner_cases_are_those_of_mlx(name):
    x = mx.array(CORNERS)
    found, expected = (np.array(f(x)) for f in (ACTIVATIONS[name], BUILTINS[name]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0)


def test_first_and_second_derivative(name):
    f = ACTIVATIONS[name]

    def slope(x):
        return mx.vjp(f, [x], [mx.ones_like(x)])[1][0]

    def curvature(x):
        return mx.vjp(slope, [x], [mx.ones_like(x)])[1][0]

    x = np.concatenate([np.linspace(-30, -0.01, 2_000), np.linspace(0.01, 30, 2_000)])
    x = x.astype(np.float32)
    y, h = x.astype(np.float64), 5e-4
    low, middle, high = (FORMULAS[name](y + d) for d in (-h, 0, h))
    size = np.maximum(1, np.abs(x))
    assert np.all(np.abs(np.array(slope(mx.array(x))) - (high - low) / (2 * h)) < 1e-6 * size)
    second = (high - 2 * middle + low) / h**2
    assert np.all(np.abs(np.array(curvature(mx.array(x))) - second) < 1e-5 * size)


@pytest.mark.parametrize("at", [100.0, -100.0, 1e10, -1e10])
def test_derivatives_far_out(name, at):
    # MLX's own ELU and SELU have NaN here.
    scale = {"selu": SCALE, "tanh": 0.0}.get(name, 1.0)
    found = mx.grad(ACTIVATIONS[name])(mx.array(at)).item()
    assert found == pytest.approx(scale if at > 0 else 0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "slope"), [("relu", 0.0), ("elu", 1.0), ("selu", SCALE * ALPHA)], ids=str
)
def test_derivatives_at_a_kink_are_those_from_the_left(name, slope):
    assert mx.grad(ACTIVATIONS[name])(mx.array(0.0)).item() == pytest.approx(slope)


def test_gradient_with_respect_to_weights(name):
    w, x = (mx.random.normal((6, 6), key=mx.random.key(k)) for k in range(2))
    found, expected = (
        mx.grad(lambda w, f=f: mx.sum(f(x @ w) ** 2))(w)
        for f in (ACTIVATIONS[name], BUILTINS[name])
    )
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-4)


def test_jvp_and_vmap(name):
    x, v = (mx.random.normal((5, 4), key=mx.random.key(k)) for k in range(2))
    f = ACTIVATIONS[name]
    (along,) = mx.jvp(f, [x], [v])[1]
    (slope,) = mx.vjp(f, [x], [mx.ones_like(x)])[1]
    np.testing.assert_allclose(np.array(along), np.array(slope * v), rtol=1e-5, atol=1e-6)
    at_kink = [mx.zeros(1)], [mx.ones(1)]
    assert mx.jvp(f, *at_kink)[1][0].item() == pytest.approx(mx.vjp(f, *at_kink)[1][0].item())
    each = mx.vmap(mx.grad(lambda row: mx.sum(f(row))))(x)
    np.testing.assert_allclose(np.array(each), np.array(slope), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(mx.float64, 1e-6), (mx.float16, 2**-10), (mx.bfloat16, 2**-7)],
    ids=["float64", "float16", "bfloat16"],
)
def test_other_dtypes_are_kept_and_right(name, dtype, rounding):
    x = mx.linspace(-6, 6, 101).astype(dtype)
    exact = FORMULAS[name](np.array(x.astype(mx.float32), np.float64))
    y = ACTIVATIONS[name](x)
    assert y.dtype == dtype
    error = np.abs(np.array(y.astype(mx.float32), np.float64) - exact)
    assert np.all(error <= 3 * rounding * np.maximum(1, np.abs(exact)))


def test_float64_tanh_is_exact_in_float64():
    x = np.linspace(-3, 3, 101)
    found = np.array(ACTIVATIONS["tanh"](mx.array(x, dtype=mx.float64)))
    np.testing.assert_allclose(found, np.tanh(x), rtol=1e-14)


def test_other_devices_get_mlx_own_functions(name, monkeypatch):
    x = mx.array(points())
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.gpu))
    found, expected = (np.array(f(x)) for f in (ACTIVATIONS[name], BUILTINS[name]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-7)
    if name == "tanh":
        np.testing.assert_array_equal(found, expected)


def test_compiled_equals_plain():
    f = mx.value_and_grad(lambda x: mx.sum(ACTIVATIONS["silu"](x) ** 2))
    x = mx.random.normal((64, 64), key=mx.random.key(0))
    for plain, compiled in zip(f(x), mx.compile(f)(x), strict=True):
        np.testing.assert_allclose(np.array(compiled), np.array(plain), rtol=1e-6, atol=1e-6)


def test_every_activation_has_a_formula():
    assert FORMULAS.keys() == BUILTINS.keys() == ACTIVATIONS.keys()

"""log_prob against closed forms; divergences against differences; bits; refusals."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from flowmlx import likelihood
from flowmlx.likelihood import (
    DIVERGENCES,
    PROBES,
    bits_per_dim,
    exact_divergence,
    log_prob,
    standard_normal_log_prob,
)
from flowmlx.nets.activations import ACTIVATIONS
from flowmlx.nets.mlp import MLP

SHAPES = [(2,), (3, 2, 2)]


class Oracle:
    """The exact field from N(0, I) to N(m, S), and samples of its data with their log-density."""

    def __init__(self, shape, batch=32, seed=0):
        rng = np.random.default_rng(seed)
        d = math.prod(shape)
        a = rng.normal(size=(d, d)) / math.sqrt(d)
        self.mean, cov = rng.normal(size=d), a @ a.T + 0.3 * np.eye(d)
        self.w, self.u = np.linalg.eigh(cov)
        x1 = rng.multivariate_normal(self.mean, cov, size=batch)
        z = (x1 - self.mean) @ self.u
        self.log_p1 = -0.5 * np.sum(z * z / self.w + np.log(2 * math.pi * self.w), axis=1)
        self.x1 = mx.array(x1.astype(np.float32)).reshape(batch, *shape)

    def field(self, t, x):
        mean, u, w = (mx.array(a, dtype=x.dtype) for a in (self.mean, self.u, self.w))
        z = (x.reshape(len(x), -1) - t * mean) @ u
        slope = (t * w - (1 - t)) / ((1 - t) ** 2 + t**2 * w)
        return (mean + (z * slope) @ u.T).reshape(x.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [2, 32])  # 2: as many samples as dimensions
def test_exact_log_density_of_the_gaussian_oracle(shape, batch):
    oracle = Oracle(shape, batch)
    result = log_prob(oracle.field, oracle.x1, standard_normal_log_prob, divergence="exact")
    np.testing.assert_allclose(result.log_prob, oracle.log_p1, atol=1e-4)
    assert result.standard_error is None
    # The source points of a Gaussian are its whitened samples.
    x1 = np.array(oracle.x1, np.float64).reshape(batch, -1)
    x0 = (x1 - oracle.mean) @ oracle.u / np.sqrt(oracle.w) @ oracle.u.T
    np.testing.assert_allclose(np.array(result.x0).reshape(batch, -1), x0, atol=1e-4)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("shape", SHAPES)
def test_hutchinson_is_right_within_its_standard_error(shape, probe, key):
    oracle = Oracle(shape, 128)
    result = log_prob(
        oracle.field, oracle.x1, standard_normal_log_prob, key=key, samples=256, probe=probe
    )
    z = (np.array(result.log_prob) - oracle.log_p1) / np.array(result.standard_error)
    assert np.mean(np.abs(z) < 3) >= 0.98
    # Of 128 independent samples the mean of z^2 is 1 with a standard deviation of 0.13.
    assert 0.6 < np.mean(z**2) < 1.5


def test_one_probe_is_unbiased_and_set_by_the_key():
    oracle = Oracle((2,), 512)

    def error(seed):
        key = mx.random.key(seed)
        result = log_prob(oracle.field, oracle.x1, standard_normal_log_prob, key=key)
        assert result.standard_error is None
        return np.array(result.log_prob) - oracle.log_p1

    one, again, other = error(1), error(1), error(2)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    assert abs(one.mean()) < 4 * one.std() / math.sqrt(len(one))


def test_float64_is_as_exact_as_its_tolerance():
    oracle = Oracle((2,))
    x1 = oracle.x1.astype(mx.float64)
    with mx.stream(mx.cpu):
        result = log_prob(
            oracle.field,
            x1,
            standard_normal_log_prob,
            divergence="exact",
            rtol=1e-9,
            atol=1e-9,
        )
        z = (np.array(x1) - oracle.mean) @ oracle.u
    expected = -0.5 * np.sum(z * z / oracle.w + np.log(2 * math.pi * oracle.w), axis=1)
    np.testing.assert_allclose(np.array(result.log_prob), expected, atol=2e-8)


@pytest.mark.parametrize("options", [{"divergence": "exact"}, {"samples": 256}])
def test_a_tree_is_scored_as_its_parts_together(options, key):
    a, b = Oracle((2,), seed=1), Oracle((2, 2, 1), seed=2)

    def field(t, x):
        return {"a": a.field(t, x["a"]), "b": b.field(t, x["b"])}

    x1 = {"a": a.x1, "b": b.x1}
    result = log_prob(field, x1, standard_normal_log_prob, key=key, **options)
    error = np.array(result.log_prob) - a.log_p1 - b.log_p1
    scale = 1e-4 if "divergence" in options else 4 * np.array(result.standard_error)
    assert (np.abs(error) < scale).all()
    assert result.x0["b"].shape == b.x1.shape


@pytest.mark.parametrize("options", [{"divergence": "exact"}, {"method": "rk4", "step_size": 0.02}])
def test_density_integrates_to_one(options, key):
    """In one dimension every Rademacher probe gives the exact divergence."""
    x = mx.linspace(-9, 9, 1201)[:, None]
    result = log_prob(
        lambda t, x: 2 * mx.tanh(2 * x) + mx.sin(3 * t) * x * x / (1 + x * x),
        x,
        standard_normal_log_prob,
        key=key,
        **options,
    )
    density = np.exp(np.array(result.log_prob, np.float64))
    assert density.sum() * 18 / 1200 == pytest.approx(1, abs=1e-4)


def test_the_integral_is_controlled_where_the_state_rests(key):
    """v = sin(20 t) x at x = 0: nothing moves, and the divergence swings by 1600 nats."""
    x1 = mx.zeros((2, 40, 40, 1))
    # The Jacobian is diagonal, so that any signs give its trace.
    result = log_prob(lambda t, x: mx.sin(20 * t) * x, x1, standard_normal_log_prob, key=key)
    expected = -800 * math.log(2 * math.pi) - 1600 * (1 - math.cos(20)) / 20
    np.testing.assert_allclose(np.array(result.log_prob), expected, atol=1e-2)


def test_no_sample_is_hidden_by_its_batch():
    """One sample that swings among 999 that rest is as exact as it would be alone."""
    swing = (1 - math.cos(20)) / 20
    x1 = mx.concatenate([mx.zeros((999, 2)), mx.full((1, 2), 2.0)])
    result = log_prob(
        lambda t, x: mx.where(x > 1e-6, mx.sin(20 * t) * x, 0),
        x1,
        standard_normal_log_prob,
        divergence="exact",
    )
    expected = -((2 * math.exp(-swing)) ** 2) - math.log(2 * math.pi) - 2 * swing
    assert result.log_prob[-1].item() == pytest.approx(expected, abs=1e-4)


def trace_by_differences(f, x, h):
    """Trace of the Jacobian of f at x (batch, ...), number by number."""
    flat = x.reshape(len(x), -1)
    total = np.zeros(len(x))
    for k, unit in enumerate(h * mx.eye(flat.shape[1])):
        up, down = (np.array(f((flat + s * unit).reshape(x.shape))) for s in (1, -1))
        total += (up - down).reshape(len(x), -1)[:, k] / (2 * h)
    return total


class ConvField(nn.Module):
    """Convolutions around a square: differences of a quadratic are exact."""

    def __init__(self, **options):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, **options)
        self.last = nn.Conv2d(6, 2, 3, padding=1)

    def __call__(self, t, x):
        h = mx.square(self.first(x) + t)
        return self.last(h if h.shape[1] == x.shape[1] else mx.repeat(mx.repeat(h, 2, 1), 2, 2))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}])
@pytest.mark.parametrize("chunk", [likelihood.CHUNK, 500])  # all at once; in three parts
def test_divergence_of_convolutions_is_the_trace_of_the_jacobian(options, chunk, monkeypatch, key):
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    mx.random.seed(3)
    field, t = ConvField(**options), mx.array(0.4)
    x = mx.random.normal((5, 4, 4, 2), key=key)
    v, divergence = exact_divergence(field, t, x)
    np.testing.assert_allclose(np.array(v), np.array(field(t, x)), rtol=1e-6, atol=1e-6)
    expected = trace_by_differences(lambda x: field(t, x), x, 0.5)
    np.testing.assert_allclose(np.array(divergence)[:, 0], expected, atol=2e-5)


def test_divergence_of_a_tree_whose_leaves_interact(key):
    matrix = mx.random.normal((6, 6), key=key)

    def field(t, x):
        y = mx.concatenate([leaf.reshape(len(leaf), -1) for leaf in x], axis=1) @ matrix
        return y[:, :2], y[:, 2:].reshape(-1, 2, 2, 1)

    _, divergence = exact_divergence(field, mx.array(0.0), (mx.ones((3, 2)), mx.ones((3, 2, 2, 1))))
    np.testing.assert_allclose(np.array(divergence)[:, 0], np.trace(np.array(matrix)), rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_divergence_through_every_activation(activation, key, without_compile):
    net, t = MLP(3, key=key, width=16, activation=activation), mx.array(0.4)
    x = mx.random.normal((16, 3), key=key)
    expected = trace_by_differences(lambda x: net(t, x), x, 0.02)
    error = np.array(exact_divergence(net, t, x)[1])[:, 0] - expected
    assert np.median(np.abs(error)) < 3e-4  # a difference across a kink is off


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_compiled_pullback_scores_like_the_plain_one(divergence, key):
    net = MLP(2, key=key, width=8, depth=1, activation="silu")
    x = mx.random.normal((8, 2), key=key)

    def score(field):
        found = log_prob(field, x, standard_normal_log_prob, key=key, divergence=divergence)
        return np.array(found.log_prob)

    compiled, twice = score(net), score(mx.compile(net))
    mx.disable_compile()
    try:
        plain = score(net)
    finally:
        mx.enable_compile()
    np.testing.assert_allclose(compiled, plain, atol=1e-5)
    np.testing.assert_allclose(twice, plain, atol=1e-5)


def test_a_field_that_reads_the_time_on_the_host_is_not_compiled(key):
    """v = 2 t x, read as a number: x(0) = x1 exp(-1), and the divergence integrates to 2."""
    x = mx.random.normal((8, 2), key=key)
    found = log_prob(lambda t, x: 2 * t.item() * x, x, standard_normal_log_prob, divergence="exact")
    expected = standard_normal_log_prob(x / math.e) - 2
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-4)


def test_operations_without_vmap_are_taken_one_by_one(key):
    """Quantised matrix products cannot be vectorised over probes."""
    weight = mx.random.normal((64, 64), key=key)
    packed = mx.quantize(weight, bits=8)
    _, divergence = exact_divergence(
        lambda t, x: mx.quantized_matmul(x, *packed, bits=8), mx.array(0.0), mx.ones((2, 64))
    )
    expected = np.trace(np.array(mx.dequantize(*packed, bits=8)))
    np.testing.assert_allclose(np.array(divergence)[:, 0], expected, atol=1e-4)


def test_bits_per_dim_of_a_fair_byte_is_eight():
    """Uniform on [-1, 1]^d, dequantised from 256 equally likely values."""
    log_density = mx.array([-5 * math.log(2)])
    np.testing.assert_allclose(bits_per_dim(log_density, 5, bin_width=2 / 256), 8.0, rtol=1e-6)


def test_standard_normal_sums_over_all_but_the_batch():
    x = {"a": mx.array([[1.0, 2.0]]), "b": mx.full((1, 2, 2, 1), 3.0)}
    expected = -0.5 * (1 + 4 + 4 * 9) - 3 * math.log(2 * math.pi)
    np.testing.assert_allclose(standard_normal_log_prob(x), [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "key=mx.random.key"),
        ({"divergence": "trace"}, ", ".join(DIVERGENCES)),
        ({"key": mx.random.key(0), "probe": "uniform"}, ", ".join(PROBES)),
        ({"key": mx.random.key(0), "samples": 0}, "samples is 0"),
        ({"log_p0": lambda x: -0.5 * x * x}, r"log_p0 returned shape \(4, 3\).*\(4,\)"),
        ({"field": lambda t, x: x[:, :2]}, "expected those of x1"),
        ({"x1": {"a": mx.zeros((4, 3)), "b": mx.zeros((5, 3))}}, "one batch for all"),
    ],
)
def test_refusals_say_what_to_do(options, message):
    call = {"field": lambda t, x: x, "x1": mx.zeros((4, 3)), "log_p0": standard_normal_log_prob}
    if options.keys() & call.keys():
        call["divergence"] = "exact"
    with pytest.raises(ValueError, match=message):
        log_prob(**{**call, **options})


@pytest.mark.parametrize(("dim", "width", "name"), [(0, 1.0, "dim"), (3, 0.0, "bin_width")])
def test_bits_need_a_size_and_a_width(dim, width, name):
    with pytest.raises(ValueError, match=name):
        bits_per_dim(mx.zeros(3), dim, bin_width=width)

"""States in float16 and bfloat16: norms that do not overflow, tolerances that can be met."""

import math

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.solvers import (
    Controller,
    SolverError,
    Status,
    odeint,
    odeint_per_sample,
    per_sample_max,
    sdeint,
)
from flowmlx.solvers.control import error_ratios, rms

HALVES = [mx.float16, mx.bfloat16]
SOLVERS = [odeint, odeint_per_sample]
# Tolerances that are met, and errors that the type's own rounding leaves after some ten steps.
RTOL = {mx.float16: 1e-3, mx.bfloat16: 5e-3}
ROUNDING = {mx.float16: 5e-3, mx.bfloat16: 4e-2}


def decay(t, x):
    return -x


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_adaptive_solves_reach_the_closed_form(solver, dtype):
    """Squares of ratios above 256 overflow in float16."""
    for scale in (1.0, 300.0, 3e4):
        x0 = scale * mx.array([[1.0, -0.5], [0.25, 0.75]])
        xs = solver(decay, x0.astype(dtype), [0.0, 1.0], rtol=RTOL[dtype], atol=1e-4).xs
        assert xs.dtype == dtype
        end, expected = np.array(xs[-1].astype(mx.float32)), math.exp(-1) * np.array(x0)
        np.testing.assert_allclose(end, expected, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("control", [Controller(), Controller(first_step=0.1)])
def test_a_tolerance_below_the_resolution_is_refused_with_that_reason(solver, dtype, control):
    x0 = mx.ones((2, 3), dtype=dtype)
    with pytest.raises(SolverError, match=r"rtol and atol .* resolution is .*float32") as caught:
        solver(decay, x0, [0.0, 1.0], control=control)
    assert caught.value.status is Status.STAGNATION
    name = str(dtype).rpartition(".")[2]
    assert name in str(caught.value)
    # The remedies that it names.
    rtol = float(str(caught.value).rpartition("rtol=")[2].partition(",")[0])
    assert solver(decay, x0, [0.0, 1.0], rtol=rtol, atol=rtol, control=control).stats.nfe > 6
    assert solver(decay, x0.astype(mx.float32), [0.0, 1.0], control=control).stats.nfe > 6


def test_only_the_samples_that_a_tolerance_is_below_the_resolution_of_fail():
    x0 = mx.array([[1.0], [0.0]], dtype=mx.float16)
    solution = odeint_per_sample(decay, x0, [0.0, 1.0], throw=False)
    assert solution.status == [Status.STAGNATION, Status.SUCCESS]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_tolerances_that_a_wider_type_resolves_are_met(dtype):
    """Those of torchdiffeq, in float32 as well."""
    with mx.stream(mx.cpu):
        x0 = mx.ones(3, dtype=dtype)
        xs = odeint(decay, x0, [0.0, 1.0], rtol=1e-7, atol=1e-9).xs
        np.testing.assert_allclose(np.array(xs[-1]), math.exp(-1), rtol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_and_ratios_are_in_float32(dtype):
    x = mx.full((2, 4), 300.0, dtype=dtype)
    for norm in (rms, per_sample_max):
        assert norm(x).item() == pytest.approx(300, rel=1e-2)
    # An atol of 1e-37 is 0 in float16, and 0 / 0 not a number.
    zero = mx.zeros(3, dtype=dtype)
    assert rms(error_ratios(zero, zero, zero, (0.0, 1e-37))).item() == 0.0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", ["euler_maruyama", "milstein", "stochastic_heun", "sra1"])
def test_noise_has_the_type_of_the_state(dtype, method):
    key, x0 = mx.random.key(1), mx.zeros((2000, 1), dtype=dtype)
    xs = sdeint(decay, lambda t, x: 0.5, x0, [0.0, 1.0], key=key, step_size=0.125, method=method).xs
    assert xs.dtype == dtype
    # Ornstein-Uhlenbeck: variance g^2 (1 - exp(-2)) / 2.
    std = np.array(xs[-1].astype(mx.float32)).std()
    assert std == pytest.approx(math.sqrt(0.125 * (1 - math.exp(-2))), rel=0.08)


@pytest.mark.parametrize("dtype", HALVES)
def test_output_times_and_tolerances_of_any_type(dtype):
    ts = mx.array([0.0, 0.5, 1.0], dtype=dtype)
    solution = odeint(decay, mx.ones(2), ts, rtol=mx.array(1e-3, dtype=dtype))
    np.testing.assert_array_equal(solution.ts, [0.0, 0.5, 1.0])

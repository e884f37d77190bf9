"""Time samplers against the distributions they are named after."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from flowmlx.times import TIME_SAMPLERS, beta, logit_normal, shift, shifted, stratified, uniform

# Name, with the parameters of the case -> sampler and its distribution on [0, 1].
CASES = {
    "uniform": (uniform, stats.uniform.cdf),
    "stratified": (stratified, stats.uniform.cdf),
    "logit_normal": (logit_normal, lambda t: stats.norm.cdf(logit(t))),
    "logit_normal(-0.8, 0.5)": (
        partial(logit_normal, mean=-0.8, std=0.5),
        lambda t: stats.norm.cdf(logit(t), -0.8, 0.5),
    ),
    "beta": (beta, stats.beta(1.0, 1.5).cdf),
    "beta(0.5, 0.5)": (partial(beta, a=0.5, b=0.5), stats.beta(0.5, 0.5).cdf),
    "beta(2, 5)": (partial(beta, a=2, b=5), stats.beta(2, 5).cdf),
    "beta(8, 0.6)": (partial(beta, a=8, b=0.6), stats.beta(8, 0.6).cdf),
    "shifted": (TIME_SAMPLERS["shifted"], lambda t: t / (3 - 2 * t)),
    "shifted, 1/3": (shifted, lambda t: 3 * t / (1 + 2 * t)),
    "shifted(logit_normal)": (
        partial(shifted, factor=3.0, base=logit_normal),
        lambda t: stats.norm.cdf(logit(t / (3 - 2 * t))),
    ),
}


def logit(t):
    with np.errstate(divide="ignore"):
        return np.log(t) - np.log1p(-t)


def test_every_sampler_has_a_case():
    assert set(TIME_SAMPLERS) <= set(CASES)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (1e-3, 0.9), (0.0, 1 - 1e-5)])
@pytest.mark.parametrize("name", CASES)
def test_times_have_the_distribution_on_the_interval(name, interval, key):
    """Kolmogorov-Smirnov; and neighbours in a batch are not correlated."""
    sampler, cdf = CASES[name]
    low, high = interval
    n = 50_000
    t = np.array(sampler(n, key=key, interval=interval))
    assert t.dtype == np.float32
    assert np.float32(low) <= t.min()
    assert t.max() <= np.float32(high)
    u = ((t.astype(np.float64) - low) / (high - low)).clip(0, 1)
    assert stats.kstest(u, cdf).pvalue > 1e-3
    assert abs(np.corrcoef(t[1:], t[:-1])[0, 1]) < 4.5 / np.sqrt(n)


@pytest.mark.parametrize(
    "name", sorted(set(CASES) - {"uniform", "stratified"} - {"shifted(logit_normal)"})
)
def test_stratified_times_are_bent_exactly(name, key):
    """One time in each part of equal probability: the empirical distribution is within 1 / n."""
    sampler, cdf = CASES[name]
    n = 4000
    t = np.sort(np.array(sampler(n, key=key, base=stratified), np.float64))
    excess = 1e-4  # of the table of beta
    assert (np.abs(cdf(t) - (np.arange(n) + 0.5) / n) <= 0.5 / n + excess).all()


def test_stratified_has_one_time_in_each_part_in_random_order(key):
    t = np.array(stratified(64, key=key, interval=(0.2, 0.6)))
    parts = ((t - 0.2) / 0.4 * 64).astype(int)
    np.testing.assert_array_equal(np.sort(parts), np.arange(64))
    assert (parts != np.arange(64)).mean() > 0.9
    means = [np.array(stratified(64, key=mx.random.key(k))).mean() for k in range(50)]
    assert np.std(means) < 0.1 * np.sqrt(1 / 12 / 64)  # of independent times


@pytest.mark.parametrize("name", CASES)
def test_same_key_same_times(name):
    sampler, _ = CASES[name]
    a, b, c = (np.array(sampler(100, key=mx.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.9


def test_shift_moves_times_to_the_data():
    """SD3's shift of 3 in its own direction is a factor of 1/3 in this one."""
    ts = np.linspace(0, 1, 11)
    assert (shift(ts, 3.0)[1:-1] > ts[1:-1]).all()
    np.testing.assert_array_equal(shift(ts, 3.0)[[0, -1]], [0, 1])
    sd3 = 3 * (1 - ts) / (1 + 2 * (1 - ts))
    np.testing.assert_allclose(shift(ts, 1 / 3), 1 - sd3)
    np.testing.assert_allclose(shift(mx.array([0.5]), 3.0), [0.75])
    assert shift(0.5, 1.0) == 0.5


def test_samplers_draw_anew_inside_a_compiled_step():
    """The table of beta is a constant of the graph, the key is not."""
    draw = mx.compile(lambda key: beta(64, key=key, base=stratified))
    a, b, c = (np.array(draw(mx.random.key(k))) for k in (1, 2, 1))
    np.testing.assert_array_equal(a, c)
    assert (a != b).all()
    np.testing.assert_allclose(a, beta(64, key=mx.random.key(1), base=stratified), atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "parameters"),
    [(logit_normal, {"std": 0.0}), (beta, {"a": -1.0}), (beta, {"b": 0}), (shifted, {"factor": 0})],
)
def test_parameters_that_are_no_distribution_are_refused(sampler, parameters, key):
    (name,) = parameters
    with pytest.raises(ValueError, match=f"{name} is .*; expected a number above 0"):
        sampler(4, key=key, **parameters)

"""Guidance on fields with closed forms: Gaussian mixtures on the linear path."""

import math
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

from flowmlx.conditions import conditional, conditioned
from flowmlx.conversions import convert, to_velocity
from flowmlx.data.toy import eight_gaussians
from flowmlx.guidance import GUIDANCE, autoguidance, cfg, cfg_zero_star, interval, zero_init
from flowmlx.keys import fold_in
from flowmlx.losses import flow_matching_loss
from flowmlx.metrics import energy_distance
from flowmlx.nets import MLP
from flowmlx.paths import Linear
from flowmlx.sampling import sample
from flowmlx.solvers import odeint_per_sample
from flowmlx.training import TrainState, fit

CENTRES = np.array([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]])
VARIANCE = 0.05


def mixture(t, x, cond=None):
    """Velocity from N(0, I) to N(CENTRES[cond], VARIANCE I), or to their mixture: the mean of the
    three velocities, weighted by how likely each is to have led to x."""
    t = t.reshape(-1, 1) if t.ndim else t
    centres = mx.array(CENTRES, mx.float32)
    variance = t * t * VARIANCE + (1 - t) ** 2
    slope = (t * VARIANCE - (1 - t)) / variance
    each = centres[:, None] + slope * (x - t * centres[:, None])
    if cond is not None:
        return each[cond] if isinstance(cond, int) else each[cond, mx.arange(len(x))]
    squares = mx.square(x - t * centres[:, None]).sum(-1, keepdims=True)
    return (mx.softmax(-squares / (2 * variance), axis=0) * each).sum(0)


def scaled(t, x, cond=None):
    """A field for states of any shape, which mixes their numbers up; no condition is -0.5."""
    t = t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t
    return (1 - t) * x[..., ::-1] + (-0.5 if cond is None else cond) * (x * x + 1)


class Counted:
    """A field that counts its evaluations with and without condition."""

    def __init__(self, field):
        self.field, self.with_cond, self.without = field, 0, 0

    def __call__(self, t, x, cond=None):
        self.with_cond += cond is not None
        self.without += cond is None
        return self.field(t, x, cond)


def weak(t, x, cond=None):
    return 0.9 * scaled(t, x, cond) - 0.2


# Methods with all they need but (field, cond, weight), by name.
METHODS = {
    "cfg": cfg,
    "cfg_zero_star": partial(cfg_zero_star, zero_before=0.0),
    "autoguidance": partial(autoguidance, weak=weak),
}


def test_every_method_is_tested():
    assert METHODS.keys() == GUIDANCE.keys()


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def in_numpy(name, t, x, cond, w):
    """The formulas in maths' order, sample by sample."""
    v = []
    for k, xk in enumerate(x):
        tk, wk = np.broadcast_to(t, len(x))[k], np.broadcast_to(w, len(x))[k]

        def field(cond, xk=xk, tk=tk):
            return (1 - tk) * xk[..., ::-1] + cond * (xk * xk + 1)

        vc, vu = field(cond), field(-0.5)
        if name == "cfg_zero_star":
            s = (vc * vu).sum() / (vu**2).sum()
            v.append((1 - wk) * s * vu + wk * vc)
        elif name == "autoguidance":
            base = 0.9 * vc - 0.2
            v.append(base + wk * (vc - base))
        else:
            v.append(vu + wk * (vc - vu))
    return np.stack(v)


TS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("shape", [(5, 2), (5, 5), (5, 3, 2, 1)])
def test_formula(name, shape):
    """For one time or each its own; for a weight that is a number, one for each, a function."""
    x = np.random.default_rng(0).normal(size=shape)
    for t in (0.25, TS):
        for weight, value in ((2.5, 2.5), (0, 0), (mx.array(TS), TS), (lambda t: 1 + t, 1 + t)):
            v = METHODS[name](scaled, 1.5, weight)(mx.array(t, mx.float32), mx.array(x, mx.float32))
            expected = in_numpy(name, t, x, 1.5, value)
            np.testing.assert_allclose(v, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("t", [mx.array(0.5), mx.full((9,), 0.5)], ids=["scalar", "batch"])
def test_weight_1_is_the_conditional_field_at_its_cost(name, t, key):
    x = mx.random.normal((9, 2), key=key)
    field, worse = Counted(mixture), Counted(mixture)
    options = {"weak": worse} if name == "autoguidance" else {}
    guided = GUIDANCE[name](field, 2, 1.0, **options)
    np.testing.assert_array_equal(guided(t, x), mixture(t, x, 2))
    assert (field.with_cond, field.without, worse.with_cond) == (1, 0, 0)


def test_weight_0_is_the_field_without_condition(key):
    x = mx.random.normal((9, 2), key=key)
    for t in (mx.array(0.5), mx.full((9,), 0.5)):
        np.testing.assert_array_equal(cfg(mixture, 2, 0)(t, x), mixture(t, x))


def test_dtype_is_that_of_x(name):
    x = mx.random.normal((5, 2), key=mx.random.key(0)).astype(mx.float16)
    for weight in (2.0, mx.array(TS), interval(2.0, 0.2, 0.6)):
        for t in (mx.array(0.25, mx.float16), mx.array(TS, mx.float16)):
            guided = METHODS[name](scaled, 1.5, weight)(t, x)
            assert guided.dtype == mx.float16
            exact = METHODS[name](scaled, 1.5, weight)(*(a.astype(mx.float32) for a in (t, x)))
            np.testing.assert_allclose(guided, exact, rtol=0.02, atol=0.02)


def test_guidance_of_a_prediction_is_that_of_the_velocity(key):
    """Conversions are affine, and the weights of guidance add up to 1."""
    path, x, t = Linear(), mx.random.normal((9, 2), key=key), mx.full((9,), 0.6)

    def predicted(t, x, cond=None):
        v = mixture(t, x, cond)
        return convert(v, given="velocity", wanted="x1", path=path, t=t, x=x)

    guided = to_velocity(cfg(predicted, 2, 3.0), "x1", path)(t, x)
    np.testing.assert_allclose(guided, cfg(mixture, 2, 3.0)(t, x), rtol=1e-5, atol=1e-5)


# CFG-Zero*


def test_scale_of_a_velocity_that_vanishes_or_is_huge():
    """No division by zero, and no overflow in the squares of float16."""
    vc = mx.array([[3.0, 4.0], [300.0, 400.0]], mx.float16)
    vu = mx.array([[0.0, 0.0], [800.0, 0.0]], mx.float16)

    def field(t, x, cond=None):
        return vu if cond is None else vc

    v = cfg_zero_star(field, 1, 2.0)(mx.array(0.5), mx.zeros((2, 2), mx.float16))
    # From 0 to twice (3, 4), and from (300, 0), nearest to (300, 400), as far again.
    np.testing.assert_array_equal(v, [[6, 8], [300, 800]])


def test_zero_init_moves_nothing_in_the_first_steps(key):
    """And all the rest as without it: Euler steps of 1 / 8, of which the first two do nothing."""
    x0 = mx.random.normal((6, 2), key=key)
    guided = cfg_zero_star(mixture, 1, 2.0, zero_before=2 / 8)
    xs = sample(guided, x0, method="euler", ts=np.arange(9) / 8).xs
    np.testing.assert_array_equal(xs[2], x0)
    plain = cfg_zero_star(mixture, 1, 2.0, zero_before=0)
    late = sample(plain, x0, method="euler", ts=np.arange(2, 9) / 8).xs
    np.testing.assert_allclose(xs[2:], late, atol=1e-6)


@pytest.mark.parametrize("t", [[0.1, 0.2, 0.3, 0.4], 0.1, 0.2, 0.3])
def test_zero_init_is_before_the_threshold_only(t):
    v = zero_init(lambda t, x: mx.ones_like(x), 0.3)(mx.array(t), mx.ones((4, 3)))
    expected = np.broadcast_to(np.array(t, np.float32) >= np.float32(0.3), (4,))
    np.testing.assert_array_equal(v, np.repeat(expected[:, None], 3, 1))


@pytest.mark.parametrize("t", [0.02, TS], ids=["early", "batch"])
def test_velocity_and_score_are_guided_each_by_itself(name, t, key):
    """A model of two fields gives what guiding either alone does."""
    x, t, weight = mx.random.normal((5, 2), key=key), mx.array(t, mx.float32), mx.array(TS)
    fields = (scaled, lambda t, x, cond=None: 2 - 3 * scaled(t, x, cond))

    def together(t, x, cond=None):
        return tuple(field(t, x, cond) for field in fields)

    def worse(field):
        return lambda t, x, cond=None: tree_map(lambda v: 0.9 * v - 0.2, field(t, x, cond))

    def guide(field):
        options = {"weak": worse(field)} if name == "autoguidance" else {}
        options |= {"zero_before": 0.04} if name == "cfg_zero_star" else {}
        return GUIDANCE[name](field, 1.5, weight, **options)(t, x)

    both = guide(together)
    assert isinstance(both, tuple)
    for part, field in zip(both, fields, strict=True):
        np.testing.assert_array_equal(part, guide(field))


# Intervals


def around(t):
    """The float32 at `t`, and its neighbours."""
    t = np.float32(t)
    return [np.nextafter(t, np.float32(-1)), t, np.nextafter(t, np.float32(2))]


@pytest.mark.parametrize("weight", [3.0, lambda t: 3.0])
def test_interval_holds_its_ends_and_nothing_beyond(weight, key):
    x = mx.random.normal((6, 2), key=key)
    times = [*around(0.7), *around(0.8)]
    inside = [False, True, True, True, True, False]
    ts = mx.array(np.array(times))
    strong, weak = np.array(scaled(ts, x, 1.5)), np.array(scaled(ts, x))
    expected = np.where(np.array(inside)[:, None], weak + 3 * (strong - weak), strong)
    guided = cfg(scaled, 1.5, interval(weight, 0.7, 0.8))
    np.testing.assert_allclose(guided(ts, x), expected, rtol=1e-5, atol=1e-5)
    for k in range(6):
        field = Counted(scaled)
        v = cfg(field, 1.5, interval(weight, 0.7, 0.8))(ts[k], x)
        np.testing.assert_allclose(v[k], expected[k], rtol=1e-5, atol=1e-5)
        assert field.without == inside[k]  # outside nothing is evaluated for nothing


def test_an_interval_over_all_times_is_no_interval(key):
    x0 = mx.random.normal((6, 2), key=key)
    whole = sample(cfg(mixture, 1, interval(2.0, 0.0, 1.0)), x0)
    plain = sample(cfg(mixture, 1, 2.0), x0)
    np.testing.assert_array_equal(whole.xs, plain.xs)


@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.8, 0.2), (float("nan"), 1)])
def test_an_interval_that_is_none_is_refused(ends):
    with pytest.raises(ValueError, match="expected low < high, such as"):
        interval(2.0, *ends)


# Sampling


def test_samples_under_each_condition_follow_the_closed_form(key):
    """Each of a batch under its own label; solved with shared and with own steps."""
    x0 = mx.random.normal((60, 2), key=key)
    labels = mx.arange(60) % 3
    expected = CENTRES[np.array(labels)] + math.sqrt(VARIANCE) * np.array(x0)
    field = conditioned(mixture, labels)
    for solution in (
        sample(field, x0, rtol=1e-6, atol=1e-6),
        odeint_per_sample(field, x0, (0.0, 1.0), rtol=1e-6, atol=1e-6),
    ):
        np.testing.assert_allclose(solution.xs[-1], expected, atol=1e-4)


def test_guided_samples_land_in_the_mode_and_closer_than_the_data(name, key):
    x0 = mx.random.normal((300, 2), key=key)
    options = {"weak": lambda t, x, cond: mixture(t, x)} if name == "autoguidance" else {}

    def distances(weight):
        guided = GUIDANCE[name](mixture, 1, weight, **options)
        for end in (
            sample(guided, x0).xs[-1],
            odeint_per_sample(guided, x0, (0.0, 1.0), rtol=1e-4, atol=1e-4).xs[-1],
        ):
            yield np.linalg.norm(np.array(end)[:, None] - CENTRES, axis=-1)

    for distance in distances(3.0):
        assert (distance.argmin(1) == 1).all()
    spread = np.sqrt(VARIANCE * 2)
    (shared, own), (strong, _) = distances(1.0), distances(3.0)
    assert np.sqrt((shared[:, 1] ** 2).mean()) == pytest.approx(spread, rel=0.1)
    np.testing.assert_allclose(shared, own, atol=0.05)
    # Away from the others: further out on the ray from the origin through the mode.
    assert (strong[:, 0] > shared[:, 0].mean() - 3 * spread).all()
    assert strong[:, [0, 2]].mean() > shared[:, [0, 2]].mean() + 0.05


def test_without_guidance_the_samples_are_the_mixture(key):
    x0 = mx.random.normal((600, 2), key=key)
    end = np.array(sample(cfg(mixture, 1, 0.0), x0).xs[-1])
    mode = np.linalg.norm(end[:, None] - CENTRES, axis=-1).argmin(1)
    shares = np.bincount(mode, minlength=3) / 600
    np.testing.assert_allclose(shares, 1 / 3, atol=4.5 * np.sqrt(2 / 9 / 600))


# A trained network


def angle_label(x):
    """Which of the eight Gaussians: 0 to 7."""
    eighths = mx.arctan2(x[:, 1], x[:, 0]) / (math.pi / 4)
    return mx.round(eighths).astype(mx.int32) % 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", "vector"])
def test_trained_network_knows_its_condition_and_the_whole(kind, key, without_compile):
    corners = mx.stack([mx.cos(mx.arange(8) * math.pi / 4), mx.sin(mx.arange(8) * math.pi / 4)], 1)

    def condition(label):
        return label if kind == "label" else corners[label]

    def batches(step):
        data_key, source_key = mx.random.split(fold_in(key, step))
        x1 = eight_gaussians(256, key=data_key)
        return mx.random.normal(x1.shape, key=source_key), x1, condition(angle_label(x1))

    model = MLP(2, key=key, cond_dim=8 if kind == "label" else 2)
    state = TrainState(model, optim.AdamW(5e-3, bias_correction=True))
    loss = conditional(flow_matching_loss(Linear()), dropout=0.2)
    fit(state, batches, loss=loss, steps=700, key=key)
    model.update(state.ema)

    x0 = mx.random.normal((800, 2), key=mx.random.key(1))
    labels = mx.arange(800) % 8
    for weight in (1.0, 2.0):
        end = sample(cfg(model, condition(labels), weight), x0, rtol=1e-3, atol=1e-3).xs[-1]
        assert (np.array(angle_label(end)) == np.array(labels)).mean() > 0.98
        assert np.abs(np.linalg.norm(end, axis=1) - 5).mean() < 0.5
    alone = sample(conditioned(model, condition(3)), x0[:50]).xs[-1]
    assert (np.array(angle_label(alone)) == 3).mean() > 0.98

    whole = np.array(sample(model, x0).xs[-1])
    data, more = (np.array(eight_gaussians(800, key=mx.random.key(k))) for k in (2, 3))
    one_mode = data[np.array(angle_label(mx.array(data))) == 3]
    assert energy_distance(whole, data) < 0.1 < energy_distance(one_mode, data)
    assert energy_distance(more, data) < 0.02

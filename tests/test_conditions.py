import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from flowmlx.conditions import Condition, conditional, conditioned, drop
from flowmlx.losses import flow_matching_loss
from flowmlx.paths import Linear
from flowmlx.training import TrainState, fit, make_step


def field(t, x, cond=None):
    return x if cond is None else x + 10 * cond[:, None]


def test_a_conditioned_field_is_a_field():
    v = conditioned(field, mx.array([1.0, 2.0]))(0.5, mx.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(v, [[11, 12], [23, 24]])
    assert conditioned(field, None) is field


def test_each_condition_is_dropped_on_its_own_at_the_stated_rate(key):
    n = 40_000
    value = mx.arange(n)
    once = drop(value, 0.2, key=key)
    dropped = ~np.array(once.given)
    np.testing.assert_array_equal(once.value, value)
    assert dropped.mean() == pytest.approx(0.2, abs=4.5 * np.sqrt(0.2 * 0.8 / n))
    # Neighbours are independent, and what was dropped once stays dropped.
    assert (dropped[1:] & dropped[:-1]).mean() == pytest.approx(0.04, abs=0.005)
    twice = drop(once, 0.5, key=mx.random.key(1))
    assert not (np.array(twice.given) & dropped).any()
    assert np.array(twice.given).mean() == pytest.approx(0.4, abs=0.015)


class Record:
    """A field that notes what it is shown."""

    def __call__(self, t, x, cond=None):
        self.t, self.x, self.cond = t, x, cond
        return x


def test_the_loss_is_the_plain_loss_of_the_conditioned_field(key):
    n = 2000
    x0, x1 = (mx.random.normal((n, 2), key=mx.random.key(k)) for k in (1, 2))
    labels = mx.arange(n)
    seen = Record()
    conditional(flow_matching_loss(Linear()), dropout=0.5)(seen, x0, x1, labels, key=key)
    assert isinstance(seen.cond, Condition)
    np.testing.assert_array_equal(seen.cond.value, labels)
    assert np.array(seen.cond.given).mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(seen.x, (1 - seen.t[:, None]) * x0 + seen.t[:, None] * x1, atol=1e-6)
    # Which samples lose their condition has nothing to do with the times drawn for them.
    assert abs(np.corrcoef(seen.t, seen.cond.given)[0, 1]) < 4.5 / np.sqrt(n)


def test_without_dropout_the_condition_arrives_as_it_is(key):
    x, labels, seen = mx.zeros((4, 2)), mx.array([3, 1, 2, 0]), Record()
    conditional(flow_matching_loss(Linear()), dropout=0)(seen, x, x, labels, key=key)
    assert seen.cond is labels


@pytest.mark.parametrize("dropout", [-0.1, 1, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ValueError, match=f"dropout is {dropout}; expected a probability below 1"):
        conditional(flow_matching_loss(Linear()), dropout=dropout)


class Offsets(nn.Module):
    """A field that is one number for each of two labels, and one for none."""

    def __init__(self):
        super().__init__()
        self.velocities = mx.zeros((3,))

    def __call__(self, t, x, cond=None):
        value, given = cond if isinstance(cond, Condition) else (cond, True)
        index = 2 if cond is None else mx.where(given, value, 2)
        return mx.broadcast_to(self.velocities[index].reshape(-1, 1), x.shape)


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_training_finds_the_mean_velocity_of_each_label_and_of_all(dropout, key, without_compile):
    """From 0 to 1 under label 0 and to 4 under label 1, which comes three times as often."""
    labels = mx.array([0, 1, 1, 1] * 8)
    x1 = mx.where(labels == 0, 1.0, 4.0)[:, None]
    state = TrainState(Offsets(), optim.AdamW(0.05, weight_decay=0.0, bias_correction=True))
    loss = conditional(flow_matching_loss(Linear()), dropout=dropout)
    fit(state, lambda step: (mx.zeros_like(x1), x1, labels), loss=loss, steps=400, key=key)
    expected = [1, 4, 0.25 * 1 + 0.75 * 4 if dropout else 0]
    np.testing.assert_allclose(state.ema["velocities"], expected, atol=0.15)


def test_compiled_steps_drop_anew_each_time():
    """A dropout mask frozen into the compiled step would repeat its loss."""
    x0, x1, labels = mx.zeros((64, 1)), mx.full((64, 1), 1.0), mx.zeros((64,), mx.int32)
    model = Offsets()
    model.velocities = mx.array([0.0, 0.0, 5.0])
    loss = conditional(flow_matching_loss(Linear()), dropout=0.5)
    step = make_step(TrainState(model, optim.SGD(0.0)), loss)
    losses = [step(mx.random.key(k), x0, x1, labels).item() for k in (1, 2, 1)]
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
    # Batches that come with samples lacking a condition pass through the step as they are.
    none = Condition(labels, mx.zeros((64,), mx.bool_))
    assert step(mx.random.key(1), x0, x1, none).item() == 16

import math

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.nets.activations import ACTIVATIONS
from flowmlx.nets.mlp import MLP, TIME_EMBEDDINGS


def in_numpy(model, features, x):
    """A plain multilayer perceptron on concatenated (x, time features), ReLU, float64."""
    first, *rest = model.layers
    weight = np.concatenate([np.array(first.weight), np.array(model.time.weight)], axis=1)
    h = np.concatenate([x, features], axis=1) @ weight.T + np.array(first.bias)
    for layer in rest:
        h = np.maximum(h, 0) @ np.array(layer.weight).T + np.array(layer.bias)
    return h


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
@pytest.mark.parametrize("depth", [1, 3])
def test_field_is_a_perceptron_on_x_and_time(name, depth, key):
    model = MLP(3, key=key, width=8, depth=depth, activation="relu", time_embedding=name)
    x = mx.random.normal((5, 3), key=mx.random.key(1))
    t = mx.array([0.0, 0.25, 0.5, 0.75, 1.0])
    tt = np.array(t, np.float64)[:, None]
    if name == "raw":
        features = tt
    else:
        angles = tt * np.exp(np.linspace(0, math.log(100), 4))
        features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(model(t, x), in_numpy(model, features, np.array(x)), atol=2e-6)


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
def test_scalar_time_is_the_same_time_for_all(name, key):
    model = MLP(2, key=key, time_embedding=name)
    x = mx.random.normal((7, 2), key=key)
    each = model(mx.full((7,), 0.3), x)
    for t in (0.3, mx.array(0.3)):
        np.testing.assert_allclose(model(t, x), each, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_learns(name, key):
    """One step down the gradient lowers the loss."""
    model = MLP(2, key=key, width=16, activation=name)
    x = mx.random.normal((64, 2), key=mx.random.key(1))
    t = mx.random.uniform(shape=(64,), key=mx.random.key(2))

    def loss(parameters):
        model.update(parameters)
        return mx.square(model(t, x) - x).mean()

    start = model.trainable_parameters()
    value, gradient = mx.value_and_grad(loss)(start)
    from mlx.utils import tree_map

    after = loss(tree_map(lambda p, g: p - 0.1 * g, start, gradient))
    assert after.item() < value.item()


def test_initial_weights_are_uniform_in_the_stated_bound(key):
    model = MLP(3, key=key, width=64, depth=2)
    first, second, last = model.layers
    weights = np.concatenate([np.array(first.weight), np.array(model.time.weight)], axis=1)
    for weight, fan_in in (
        (weights, 4),
        (np.array(second.weight), 64),
        (np.array(last.weight), 64),
    ):
        bound = 1 / math.sqrt(fan_in)
        assert np.abs(weight).max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_key_fixes_the_weights():
    a, b, c = (MLP(2, key=mx.random.key(k)).layers[1].weight for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (np.array(a) != np.array(c)).mean() > 0.99


def test_output_dimension_can_differ(key):
    assert MLP(3, key=key, out_dim=1)(0.5, mx.zeros((4, 3))).shape == (4, 1)


def test_mistakes_are_refused(key):
    with pytest.raises(ValueError, match=r"unknown activation 'silo' \(did you mean 'silu'\?\)"):
        MLP(2, key=key, activation="silo")
    with pytest.raises(
        ValueError, match="unknown time embedding 'fourier'; known: raw, sinusoidal"
    ):
        MLP(2, key=key, time_embedding="fourier")
    for name in ("width", "depth", "dim"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected an integer >= 1"):
            MLP(**{"dim": 2, name: 0}, key=key)


# Conditions


def test_condition_enters_the_first_layer(key):
    """As if its embedding were a bias of the first layer, for each sample or for all."""
    plain = MLP(3, key=key, width=8, activation="relu")
    model = MLP(3, key=key, width=8, activation="relu", cond_dim=5)
    x = np.array(mx.random.normal((4, 3), key=mx.random.key(1)))
    bias = np.array(plain.layers[0].bias)

    def expected(x, shift):
        plain.layers[0].bias = mx.array(bias + np.array(shift))
        return in_numpy(plain, np.full((len(x), 1), 0.3), x)

    for cond in (2, None):
        shift = model.condition(cond)[0]
        np.testing.assert_allclose(model(0.3, mx.array(x), cond), expected(x, shift), atol=2e-6)
    labels = mx.array([0, 4, 2, 2])
    each = [
        expected(x[k : k + 1], row)[0] for k, row in enumerate(np.array(model.condition(labels)))
    ]
    np.testing.assert_allclose(model(0.3, mx.array(x), labels), each, atol=2e-6)


def test_without_condition_the_network_is_the_unconditional_one(key):
    x = mx.random.normal((4, 2), key=key)
    model = MLP(2, key=key, cond_dim=3)
    np.testing.assert_array_equal(model(0.5, x), model(0.5, x, None))
    model.condition.none = mx.zeros((64,))
    np.testing.assert_array_equal(model(0.5, x), MLP(2, key=key)(0.5, x))


def test_conditions_that_do_not_fit_are_refused(key):
    x = mx.zeros((4, 2))
    with pytest.raises(ValueError, match="takes no condition; make it with MLP"):
        MLP(2, key=key)(0.5, x, 1)
    with pytest.raises(ValueError, match="cond holds 3 conditions and x 4 samples"):
        MLP(2, key=key, cond_dim=3)(0.5, x, [0, 1, 2])
    with pytest.raises(ValueError, match="cond_dim is 0"):
        MLP(2, key=key, cond_dim=0)

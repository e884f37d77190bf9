import math

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.conditions import Condition
from flowmlx.nets import ConditionEmbedding


@pytest.fixture
def embedding(key):
    return ConditionEmbedding(4, 6, key=key)


def test_a_label_is_its_one_hot_vector(embedding):
    labels = np.array([2, 0, 3, 2])
    rows = np.array(embedding(labels))
    np.testing.assert_array_equal(rows, np.array(embedding.weight)[labels])
    np.testing.assert_allclose(embedding(np.eye(4, dtype=np.float32)[labels]), rows, atol=1e-6)


def test_vectors_are_multiplied_by_the_weights(embedding):
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = vectors @ np.array(embedding.weight)
    np.testing.assert_allclose(embedding(vectors), expected, atol=1e-6)


@pytest.mark.parametrize(
    "one", [3, np.int64(3), [0.5, -1.0, 0.0, 2.0]], ids=["label", "numpy", "vector"]
)
def test_one_value_is_one_row(embedding, one):
    np.testing.assert_array_equal(embedding(one), embedding([one, one])[:1])


@pytest.mark.parametrize("value", [[1, 1, 3], np.eye(4, dtype=np.float32)[[1, 1, 3]]])
def test_samples_without_condition_get_the_vector_for_none(embedding, value):
    given = mx.array([True, False, True])
    rows = np.array(embedding(Condition(mx.array(value), given)))
    weight = np.array(embedding.weight)
    np.testing.assert_allclose(rows, [weight[1], embedding.none, weight[3]], atol=1e-6)
    np.testing.assert_array_equal(embedding(None), embedding.none[None])


def test_gradients_reach_what_was_used_alone(embedding):
    def total(parameters, value, given):
        embedding.update(parameters)
        return embedding(Condition(value, given)).sum()

    value, given = mx.array([1, 1, 2, -7]), mx.array([True, True, False, False])
    gradient = mx.grad(total)(embedding.trainable_parameters(), value, given)
    np.testing.assert_array_equal(gradient["weight"][:, 0], [0, 2, 0, 0])
    np.testing.assert_array_equal(gradient["none"], [2] * 6)


def test_unknown_labels_are_loud(embedding):
    rows = np.array(embedding(mx.array([0, 4, -1])))
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1:]).all()
    for label in (4, [0, -1], np.array([4])):
        with pytest.raises(ValueError, match=r"cond holds the label -?\d; expected 0 to 3"):
            embedding(label)


def test_initial_weights_are_fixed_by_the_key_and_uniform_in_the_stated_bound():
    a, b, c = (ConditionEmbedding(25, 400, key=mx.random.key(k)) for k in (0, 0, 1))
    for name in ("weight", "none"):
        np.testing.assert_array_equal(a[name], b[name])
        assert (np.array(a[name]) != np.array(c[name])).mean() > 0.99
        weights = np.array(a[name])
        assert np.abs(weights).max() <= 1 / 5
        assert weights.std() == pytest.approx(1 / 5 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(
    "value", [[0.0, 1.0, 2.0], [[1, 2, 3, 4]], np.zeros((2, 5), np.float32), 1.0, [True]]
)
def test_conditions_of_another_form_are_refused(embedding, value):
    with pytest.raises(ValueError, match=r"expected labels 0 to 3 as integers.*\(batch, 4\)"):
        embedding(value)


def test_a_size_below_one_is_refused(key):
    with pytest.raises(ValueError, match="cond_dim is 0; expected an integer >= 1"):
        ConditionEmbedding(0, 6, key=key)

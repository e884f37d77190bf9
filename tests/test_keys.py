import mlx.core as mx
import numpy as np

from flowmlx.keys import fold_in, generator


def test_same_labels_same_key_and_other_labels_other_keys():
    base = mx.random.key(0)
    labels = [(), ("a",), ("b",), ("a", 1), ("a", 2), ("a", 12), ("a", 1, 2), (0,), (1,)]
    keys = {tuple(np.array(fold_in(base, *label)).tolist()) for label in labels}
    assert len(keys) == len(labels)
    np.testing.assert_array_equal(fold_in(base, "a", 1), fold_in(base, "a", 1))
    assert tuple(np.array(fold_in(mx.random.key(1), "a")).tolist()) not in keys


def test_draws_from_consecutive_steps_are_uncorrelated():
    base = mx.random.key(0)
    draws = np.stack([np.array(mx.random.normal((4096,), key=fold_in(base, k))) for k in range(8)])
    off_diagonal = np.corrcoef(draws)[~np.eye(8, dtype=bool)]
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(4096)


def test_generators_are_fixed_by_their_key():
    a, b, c = (generator(fold_in(mx.random.key(0), k)).random(4).tolist() for k in (1, 1, 2))
    assert a == b
    assert not set(a) & set(c)

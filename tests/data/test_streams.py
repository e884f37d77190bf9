import mlx.core as mx
import numpy as np
import pytest

from flowmlx.data.streams import generated, resampled, shuffled
from flowmlx.data.toy import TOY


def rows(n):
    return np.arange(n, dtype=np.float32)[:, None]


@pytest.mark.parametrize(("count", "n"), [(10, 5), (10, 3), (7, 16), (1, 4)])
def test_each_epoch_holds_every_row_once(count, n, key):
    stream = shuffled(rows(count))
    steps = 3 * count  # n epochs of 3 counts each
    drawn = np.concatenate([np.array(stream(n, k, key=key))[:, 0] for k in range(steps)])
    for epoch in drawn[: len(drawn) // count * count].reshape(-1, count):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


def test_epochs_have_different_orders(key):
    stream = shuffled(rows(50))
    first, second = (np.array(stream(50, k, key=key))[:, 0] for k in range(2))
    assert (first != second).mean() > 0.8
    assert (first != np.arange(50)).mean() > 0.8


@pytest.mark.parametrize(
    "stream", [shuffled(rows(40)), generated(TOY["moons"])], ids=["shuffled", "generated"]
)
def test_a_step_draws_the_same_whenever_it_is_asked(stream, key):
    first = [np.array(stream(8, k, key=key)) for k in range(12)]
    again = [np.array(stream(8, k, key=key)) for k in reversed(range(12))][::-1]
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()


def test_resampled_draws_every_row_equally_often(key):
    counts = np.bincount(np.array(resampled(rows(10))(20_000, key=key))[:, 0].astype(int))
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-square, 9 degrees, p = 0.001
    assert mx.array_equal(*(resampled(rows(10))(9, key=key) for _ in range(2)))


def test_what_goes_with_the_rows_follows_them(key):
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    labels = rows[:, 0].astype(np.int32) * 10
    batch, following = shuffled(rows, labels)(9, 2, key=key)
    np.testing.assert_array_equal(np.array(following), 10 * np.array(batch)[:, 0])
    np.testing.assert_array_equal(batch, shuffled(rows)(9, 2, key=key))
    with pytest.raises(ValueError, match=r"rows has 6 and others\[0\] 5"):
        shuffled(rows, labels[:5])

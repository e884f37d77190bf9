import mlx.core as mx
import numpy as np
import pytest

from flowmlx.data.streams import generated, resampled, shuffled
from flowmlx.data.toy import TOY
from flowmlx.keys import fold_in


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
    named = shuffled(x1=rows, cond=labels)(9, 2, key=key)
    assert [*named] == ["x1", "cond"]
    np.testing.assert_array_equal(named["x1"], batch)
    np.testing.assert_array_equal(named["cond"], following)
    with pytest.raises(ValueError, match=r"rows has 6 rows and others\[0\] 5"):
        shuffled(rows, labels[:5])
    with pytest.raises(ValueError, match="x1 has 6 rows and cond 5"):
        shuffled(x1=rows, cond=labels[:5])
    for arrays, named in (((), {}), ((rows,), {"cond": labels})):
        with pytest.raises(TypeError, match=r"x1=rows, cond=labels"):
            shuffled(*arrays, **named)


class OfGlobalState:
    """Generators that do not draw from their key, or not all."""

    def numpy(n, *, key):
        return np.random.normal(size=(n, 2))  # noqa: NPY002

    def mlx(n, *, key):
        return mx.random.normal((n, 2))

    def in_part(n, *, key):
        return mx.random.normal((n, 2), key=key), mx.random.randint(0, 2, (n,))


class OfNoState:
    def fixed_seed(n, *, key):
        return np.random.default_rng(0).normal(size=(n, 2))

    def fixed_key(n, *, key):
        return mx.random.normal((n, 2), key=mx.random.key(0))

    def grid(n, *, key):
        return mx.linspace(0, 1, n)[:, None]

    def with_labels(n, *, key):
        return mx.linspace(0, 1, n), mx.arange(n)


def members(cls):
    return [member for name, member in vars(cls).items() if not name.startswith("__")]


@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("generator", members(OfGlobalState), ids=lambda g: g.__name__)
def test_generators_of_a_global_state_are_refused(generator, n, key):
    with pytest.raises(ValueError, match=r"other points for the same key.*key=key"):
        generated(generator)(n, 0, key=key)


@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("generator", members(OfNoState), ids=lambda g: g.__name__)
def test_generators_without_a_state_are_refused(generator, n, key):
    with pytest.raises(ValueError, match=r"same points for every key.*key=key.*streams.whole"):
        generated(generator)(n, 0, key=key)


def test_generators_of_numpy_s_are_streams_too(key):
    def draw(n, *, key):
        rng = np.random.default_rng(np.array(key))
        return rng.normal(size=(n, 2)), rng.integers(0, 2, n)

    stream = generated(draw)
    x, labels = stream(4, 3, key=key)
    expected = draw(4, key=fold_in(key, 3))
    np.testing.assert_allclose(x, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(labels, expected[1])
    assert not np.array_equal(stream(4, 4, key=key)[0], x)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32])
def test_a_single_point_and_few_values_are_no_fault(dtype, key):
    """All draws of a point are alike, and often those of few classes."""
    point = generated(lambda n, *, key: mx.full((n, 2), 3.0).astype(dtype))
    np.testing.assert_array_equal(point(5, 0, key=key).astype(mx.float32), np.full((5, 2), 3.0))
    coin = generated(lambda n, *, key: mx.random.bernoulli(0.5, (n,), key=key).astype(dtype))
    for k in range(20):
        assert coin(1, 0, key=mx.random.key(k)).shape == (1,)


def test_generators_may_need_a_number_of_points(key):
    """As one with as many of each of ten classes: they are asked for multiples of a batch."""
    draw = generated(lambda n, *, key: mx.random.normal((n // 5, 5), key=key).reshape(n, 1))
    assert draw(10, 0, key=key).shape == (10, 1)


def test_what_a_generator_raises_comes_at_the_first_batch(key):
    with pytest.raises(KeyError, match="mine"):
        generated(lambda n, *, key: {}["mine"])(4, 0, key=key)

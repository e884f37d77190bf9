"""What is said of a training that cannot go on, and when."""

import warnings

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from flowmlx.conditions import conditional
from flowmlx.losses import flow_matching_loss
from flowmlx.nets import MLP
from flowmlx.paths import Linear
from flowmlx.snapshots import snapshots_loss
from flowmlx.training import NonFiniteLoss, TrainState, fit

pytestmark = pytest.mark.usefixtures("without_compile")

MATCHING = flow_matching_loss(Linear())
N = 12


def new_state(rate=1e-3, **options):
    model = MLP(2, key=mx.random.key(0), width=8, activation="relu", **options)
    return TrainState(model, optim.AdamW(rate))


def points(step):
    return tuple(mx.random.normal((N, 2), key=mx.random.key(2 * step + k)) for k in (0, 1))


def labelled(step):
    return (*points(step), mx.arange(N) % 3)


def spoilt(batches, place, value, rows=3, from_step=0):
    """Batches of which, from a step on, some rows of one array hold a value."""

    def batch(step):
        arrays = [np.array(x) for x in batches(step)]
        if step >= from_step:
            arrays[place][2 : 2 + rows] = value
        return tuple(map(mx.array, arrays))

    return batch


def message(state, batches, loss=MATCHING, **options):
    with pytest.raises(NonFiniteLoss) as error:
        fit(state, batches, loss=loss, **{"steps": 6, "key": mx.random.key(0), **options})
    return error.value


@pytest.mark.parametrize(
    ("value", "place", "step", "log_every"),
    [(np.nan, 0, 0, 1), (np.inf, 1, 0, 100), (-np.inf, 1, 3, 1), (np.nan, 0, 3, 100)],
)
def test_numbers_of_the_batch_are_named(value, place, step, log_every):
    error = message(new_state(), spoilt(points, place, value, 3, step), log_every=log_every)
    assert error.step == step + 1
    assert f"x{place} holds NaN or infinity in 3 of {N} rows" in str(error)
    assert "learning rate" not in str(error)


def test_several_causes_and_numbers_too_large():
    batches = spoilt(spoilt(points, 0, np.nan, 1), 1, 1e25, 2)
    assert "x0 holds NaN or infinity in 1 of 12" in str(message(new_state(), batches))
    assert "x1 holds numbers up to 1e+25" in str(message(new_state(), batches))


def test_arrays_have_the_names_that_the_loss_gives_them():
    def own(model, source, data, *, key):
        return MATCHING(model, source, data, key=key)

    assert "data holds NaN" in str(message(new_state(), spoilt(points, 1, np.nan), own))

    def vectors(step):
        return (*points(step), mx.ones((N, 4)))

    state, loss = new_state(cond_dim=4), conditional(MATCHING, dropout=0)
    assert "cond holds NaN" in str(message(state, spoilt(vectors, 2, np.nan), loss))

    def intervals(step):
        return (*points(step), mx.zeros((N,)), mx.ones((N,)))

    loss = snapshots_loss(MATCHING)
    assert "length holds NaN" in str(message(new_state(), spoilt(intervals, 3, np.nan), loss))


@pytest.mark.parametrize("label", [3, 99, -1])
def test_labels_out_of_range_are_named(label):
    loss = conditional(MATCHING, dropout=0)
    error = message(new_state(cond_dim=3), spoilt(labelled, 2, label, 4), loss)
    for part in (f"cond holds the label {label}", f"4 of {N} rows", "labels 0 to 2"):
        assert part in str(error)


class Looked(nn.Module):
    """A network of a user's own, with MLX's table."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(3, 2), nn.Linear(2, 2)

    def __call__(self, t, x, cond=None):
        return self.linear(x) + self.table(cond)


def looking_up(indices):
    def loss(model, x0, x1, y, *, key):
        return MATCHING(lambda t, x: model(t, x, indices(y)), x0, x1, key=key)

    return loss


@pytest.mark.parametrize(
    ("form", "step", "label"),
    [("n", 0, 3), ("n", 3, 10**6), ("(n, 1)", 0, -1), ("numbers", 3, -1)],
)
def test_labels_past_a_table_are_not_read(step, label, form):
    """MLX reads what lies behind it, which is finite, or no memory of the process."""
    shape = (N, 1) if form == "(n, 1)" else (N,)
    dtype = mx.float32 if form == "numbers" else mx.int32

    def batches(k):
        x0, x1, y = spoilt(labelled, 2, label, from_step=step)(k)
        return x0, x1, y.reshape(shape).astype(dtype)

    loss = looking_up(lambda y: y.reshape(N).astype(mx.int32))
    error = message(TrainState(Looked(), optim.Adam(1e-3)), batches, loss)
    assert error.step == step + 1
    assert ("y" if form != "numbers" else "Embedding") in str(error)
    for part in (f"holds the label {label}", f"3 of {N} rows", "labels 0 to 2"):
        assert part in str(error)


def test_integers_that_no_table_is_given_are_left_alone():
    """Labels that the loss brings into range, images of bytes, and several arrays of integers."""

    def images(model, x0, x1, *others, key):
        return mx.square(model(None, x0 / 255, mx.zeros((N,), mx.int32))).mean()

    points_of_bytes = (mx.full((N, 2), 200, mx.uint8),) * 2
    for loss, batch in [
        (looking_up(lambda y: y - 100), (*points(0), 100 + mx.arange(N) % 3)),
        (images, (*points_of_bytes, mx.arange(N), mx.arange(N) + 100)),
        (images, (*points_of_bytes, mx.arange(N) + 100)),
    ]:
        state = TrainState(Looked(), optim.Adam(1e-3))
        fit(state, lambda step, batch=batch: batch, loss=loss, steps=1, key=mx.random.key(0))
        assert type(state.model.table) is nn.Embedding


def test_tables_train_bit_for_bit_as_by_mlx():
    """A table of one's own, which is left alone, beside MLX's."""

    class Own(nn.Embedding):
        def __call__(self, x):
            return super().__call__(x)

    def trained(kind):
        mx.random.seed(0)
        model = Looked()
        model.table = kind(3, 2)
        state = TrainState(model, optim.Adam(1e-3))
        fit(state, labelled, loss=looking_up(lambda y: y), steps=3, key=mx.random.key(0))
        return model.table.weight

    assert mx.array_equal(trained(nn.Embedding), trained(Own))


def test_batches_of_numpy_are_those_of_mlx():
    def in_numpy(step):
        return [np.array(x) for x in labelled(step)]

    def trained(batches):
        mx.random.seed(0)
        state = TrainState(Looked(), optim.Adam(1e-3))
        return fit(state, batches, loss=looking_up(lambda y: y), steps=2, key=mx.random.key(0))

    assert mx.array_equal(
        trained(in_numpy).model.table.weight, trained(labelled).model.table.weight
    )


@pytest.mark.parametrize("batch", [None, mx.zeros((N, 2)), 1.0])
def test_what_is_no_batch_is_refused(batch):
    with pytest.raises(TypeError, match="expected a dict"):
        fit(new_state(), lambda step: batch, loss=MATCHING, steps=1, key=mx.random.key(0))


class Broken(nn.Module):
    """Not finite from the start, or once it has been trained."""

    def __init__(self, function):
        super().__init__()
        self.weight = mx.zeros((2,))
        self.function = function

    def __call__(self, t, x):
        return self.function(self.weight) + 0 * x


def broken(function, rate=1e-2):
    return TrainState(Broken(function), optim.SGD(rate))


def test_a_network_that_is_not_finite_from_the_start():
    error = message(broken(lambda w: mx.log(w - 1)), points)
    assert error.step == 1
    assert "network or the loss" in str(error)
    assert "learning rate" not in str(error)
    assert "network or the loss" in str(message(new_state(), points, lambda *a, key: mx.log(-1.0)))


def test_a_gradient_that_is_not_finite_and_a_rate_far_too_high():
    error = message(broken(mx.sqrt), points, log_every=1)
    assert "weights are not finite at step 1" in str(error)
    assert "gradient" in str(error)
    assert "weight" in str(error).split("(")[-1]
    error = message(broken(mx.sqrt), points, log_every=100)  # seen in the next loss
    assert error.step == 2
    assert "gradient was not" in str(error)
    assert "learning rate" in str(message(new_state(1e30), points))


def test_batches_that_cannot_be_drawn_again_do_not_hide_the_error():
    """As of an iterator, which gives another batch or none."""
    batches = iter([points(0), points(1), spoilt(points, 0, np.nan)(2)])
    error = message(new_state(), lambda step: next(batches), steps=3, log_every=3)
    assert error.step == 3
    assert "x0 holds NaN" in str(error)
    batches = iter([points(0), spoilt(points, 0, np.nan)(1), points(2)])
    error = message(new_state(), lambda step: next(batches), steps=3, log_every=3)
    assert error.step == 2
    batches = iter([spoilt(points, 1, np.nan)(0), points(1), points(2), points(3)])
    error = message(new_state(), lambda step: next(batches), steps=3, log_every=3)
    assert "x1 holds NaN" in str(error)


# Before the first step


class Hidden(nn.Module):
    """Its layer is in a tuple, where MLX does not look."""

    def __init__(self):
        super().__init__()
        self.layers = (nn.Linear(2, 2),)

    def __call__(self, t, x):
        return self.layers[0](x)


def start(model, loss=MATCHING, steps=1, optimizer=None, **options):
    state = TrainState(model, optimizer or optim.AdamW(1e-3))
    return fit(state, points, loss=loss, steps=steps, key=mx.random.key(0), **options)


def test_a_network_without_anything_to_train_is_refused():
    frozen = MLP(2, key=mx.random.key(0), width=4)
    frozen.freeze()
    with pytest.raises(ValueError, match="all 7 arrays of MLP are frozen"):
        start(frozen)
    with pytest.raises(ValueError, match="Hidden has no parameters"):
        start(Hidden())
    with pytest.raises(TypeError, match="model is function"):
        start(lambda t, x: x)


def test_weights_that_are_not_finite_are_refused():
    state = new_state()
    state.model.layers[1].bias = mx.array([0.0, np.nan])
    with pytest.raises(ValueError, match=r"not finite before training \(layers.1.bias\)"):
        start(state.model)


def test_a_constant_that_is_infinite_is_no_fault():
    model = new_state().model
    model.mask = mx.array([0.0, -np.inf])
    model.freeze(keys=["mask"], recurse=False)
    state = start(model, steps=3, log_every=1)
    np.testing.assert_array_equal(state.ema["mask"], [0.0, -np.inf])


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (lambda x: x, ValueError, f"({N}, 2)"),
        (lambda x: x.sum(1), ValueError, f"({N},)"),
        (lambda x: x.sum(keepdims=True), ValueError, "(1, 1)"),
        (lambda x: (x.sum(), x), TypeError, "tuple"),
        (lambda x: None, TypeError, "NoneType"),
        (lambda x: 1.0, TypeError, "float"),
    ],
)
def test_a_loss_is_one_number(value, error, words):
    with pytest.raises(error, match="the loss returned") as found:
        start(new_state().model, lambda model, x0, x1, *, key: value(model(mx.array(0.5), x0)))
    assert words in str(found.value)


def test_a_loss_of_another_network_is_warned_of():
    other = new_state().model

    def mistaken(model, x0, x1, *, key):
        return MATCHING(other, x0, x1, key=key)

    model = MLP(2, key=mx.random.key(1), width=4, activation="relu")
    with pytest.warns(UserWarning, match="gradients of the first 3 steps are 0"):
        start(model, mistaken, steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(model, steps=3)
        start(model, mistaken, steps=3, optimizer=optim.SGD(0.1))  # which notes no gradients

"""The loss on held-out data, early stopping, and the averaged model."""

import functools
import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from flowmlx.losses import flow_matching_loss
from flowmlx.nets import MLP
from flowmlx.paths import Linear
from flowmlx.training import NonFiniteLoss, TrainState, checkpoint, fit
from flowmlx.training.heldout import held_out_loss

KEY = mx.random.key(0)
MATCHING = flow_matching_loss(Linear())


def pairs(seed, n=12, d=2):
    x0, x1 = mx.random.normal((2, n, d), key=mx.random.key(seed))
    return {"x0": x0, "x1": x1}


def squared(model, x0, x1, *, key):
    return mx.square(model(mx.array(0.5), x0) - x1).mean()


class Noting(nn.Module):
    """It draws, has statistics, and counts its calls in any mode."""

    def __init__(self, seed=0):
        super().__init__()
        mx.random.seed(seed)
        self.layers = [nn.Linear(2, 16), nn.Dropout(0.5), nn.BatchNorm(16), nn.Linear(16, 2)]
        self.calls = mx.array(0)
        self.freeze(keys=["calls"], recurse=False)

    def __call__(self, t, x):
        self.calls = self.calls + 1
        for layer in self.layers:
            x = layer(x)
        return x


def noting(rate=1e-2):
    return TrainState(Noting(), optim.AdamW(rate))


def flat(state):
    best = state.early_stopping
    trees = [state.model.parameters(), state.optimizer.state, state.ema, state.average]
    numbers = [] if best is None else [best.test_loss, best.step, best.waited]
    return {k: np.array(a) for k, a in tree_flatten([*trees, *numbers, state.step])}


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def train(state, steps, loss=squared, log_every=10, **options):
    """The state, and its reports."""
    reports = []
    options = {"callbacks": [reports.append], "log_every": log_every, **options}
    fit(state, lambda step: pairs(step), loss=loss, steps=steps, key=KEY, **options)
    return state, reports


@pytest.mark.parametrize("compiled", [True, False])
def test_it_is_the_mean_over_rows_of_the_averaged_model_in_eval_mode(compiled, request):
    if not compiled:
        request.getfixturevalue("without_compile")
    test = [pairs(100, 5), pairs(101, 20)]
    state, reports = train(noting(), 20, test_batches=test)
    model = state.averaged()
    errors = [mx.square(model(None, batch["x0"]) - batch["x1"]) for batch in test]
    expected = np.concatenate(errors).mean()
    assert [report.step for report in reports] == [10, 20]
    assert reports[-1].test_loss == pytest.approx(expected, rel=1e-5)
    newest = [mx.square(state.model.eval()(None, b["x0"]) - b["x1"]) for b in test]
    assert abs(np.concatenate(newest).mean() - expected) > 1e-3


def noisy(model, x0, x1, *, key):
    return MATCHING(model, x0, x1, key=key) + 10 * mx.random.uniform()


def test_times_and_noise_are_the_same_at_every_report(without_compile):
    """Also what is drawn without the key; another key of the run gives others."""
    test = [pairs(100), pairs(101)]
    state = TrainState(MLP(2, key=KEY, width=4), optim.SGD(0.0))
    _, reports = train(state, 40, noisy, test_batches=test)
    found = {report.test_loss for report in reports}
    assert len(found) == 1
    assert len({report.loss for report in reports}) == 4
    other = held_out_loss(state, noisy, test, key=mx.random.key(1))()
    assert {other} != found
    single = {held_out_loss(state, noisy, [test[0]] * 2, key=mx.random.key(k))() for k in (0, 0, 1)}
    assert len(single) == 2


@pytest.mark.parametrize("compiled", [True, False])
def test_training_is_bit_for_bit_the_same_without_it(compiled, request):
    """Weights, statistics, counters and modes, though the network notes what it is called with."""
    if not compiled:
        request.getfixturevalue("without_compile")
    tested, _ = train(noting(), 20, test_batches=[pairs(100)])
    plain, reports = train(noting(), 20)
    assert_same(tested, plain)
    assert tested.model.training
    assert [report.test_loss for report in reports] == [None, None]


# Early stopping


def noisy_pairs(seed, n):
    """x1 is 3 x0 and noise."""
    batch = pairs(seed, n)
    return {**batch, "x1": 3 * batch["x0"] + batch["x1"]}


def overfitting(steps, state=None, patience=4, **options):
    """Twelve pairs, which a wide network learns by heart."""
    if state is None:
        state = TrainState(MLP(2, key=KEY, width=64, activation="relu"), optim.Adam(1e-2))
    reports = []
    fit(
        state,
        lambda step: noisy_pairs(0, 12),
        loss=squared,
        steps=steps,
        key=KEY,
        log_every=5,
        test_batches=[noisy_pairs(1, 64)],
        patience=patience,
        callbacks=[reports.append],
        **options,
    )
    return state, reports


@pytest.fixture(scope="module")
def overfitted():
    mx.disable_compile()
    yield overfitting(400)
    mx.enable_compile()


def test_it_stops_and_keeps_the_weights_of_the_least_test_loss(overfitted):
    state, reports = overfitted
    losses = [report.test_loss for report in reports]
    best = int(np.argmin(losses))
    assert state.step == 5 * (best + 1 + 4) < 200
    assert losses[0] > losses[best] < losses[-1]
    kept = held_out_loss(
        TrainState(state.averaged(), optim.SGD(0.0)), squared, [noisy_pairs(1, 64)], key=KEY
    )
    assert kept() == losses[best] == state.early_stopping.test_loss
    assert state.early_stopping.step == 5 * (best + 1)
    assert reports[-1].loss < 0.7 * reports[best].loss  # it went on to learn them by heart


@pytest.mark.parametrize("stops", [[3], [17, 52], [200]], ids=str)
def test_a_resumed_run_is_bit_for_bit_the_run_in_one_go(
    stops, overfitted, tmp_path, without_compile
):
    """Stopped between reports, which an own report then tells of; and after its end."""
    state = None
    for at in [*stops, None]:
        state, _ = overfitting(400, state, stop=lambda step, at=at: step == at)
        checkpoint.save(tmp_path, state)
        new = TrainState(
            MLP(2, key=mx.random.key(9), width=64, activation="relu"), optim.Adam(1e-2)
        )
        state = checkpoint.load(tmp_path, new)
    assert_same(state, overfitted[0])


def test_checkpoints_sample_from_the_best_and_old_ones_begin_anew(
    overfitted, tmp_path, without_compile
):
    state, _ = overfitted
    folder = checkpoint.save(tmp_path, state)
    model = MLP(2, key=mx.random.key(9), width=64, activation="relu")
    checkpoint.load_ema(tmp_path, model)
    t, x = mx.array(0.5), pairs(1)["x0"]
    np.testing.assert_array_equal(model(t, x), state.averaged()(t, x))
    about = json.loads((folder / "state.json").read_text())
    del about["early_stopping"]
    (folder / "state.json").write_text(json.dumps(about))
    old = checkpoint.load(tmp_path, TrainState(model, optim.Adam(1e-2)))
    assert old.early_stopping is None
    _, reports = overfitting(old.step + 15, old)
    assert old.early_stopping.test_loss == min(report.test_loss for report in reports)


def test_a_damaged_count_is_refused_with_the_file_named(overfitted, tmp_path):
    folder = checkpoint.save(tmp_path, overfitted[0])
    about = json.loads((folder / "state.json").read_text())
    about["early_stopping"]["waited"] = "x"
    (folder / "state.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"state.json is missing or damaged: waited is 'x'"):
        checkpoint.load(tmp_path, overfitted[0])


def test_without_patience_a_state_goes_on_from_the_moving_average(without_compile):
    """As if there had been none from the start; and before a report counts, `ema` is that."""
    state, _ = overfitting(12, patience=50)
    state, _ = overfitting(18, state, patience=None)
    plain, _ = overfitting(18, patience=None)
    assert state.early_stopping is None
    assert_same(state, plain)
    short, _ = overfitting(4)
    plain, _ = overfitting(4, patience=None)
    a, b = (s.averaged()(mx.array(0.5), pairs(1)["x0"]) for s in (short, plain))
    np.testing.assert_array_equal(a, b)
    assert short.early_stopping.test_loss is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patience": 3}, ValueError, "no test_batches"),
        ({"patience": 0, "test_batches": [pairs(1)]}, ValueError, "patience is 0"),
        ({"test_batches": pairs(1)}, TypeError, "expected a list of batches"),
        ({"test_batches": lambda step: pairs(1)}, TypeError, "expected a list of batches"),
        ({"test_batches": []}, TypeError, "expected a list of batches"),
        ({"test_batches": [pairs(1), 3]}, TypeError, r"test_batches\[1\] is 3"),
        ({"test_batches": [{"x0": pairs(1)["x0"]}]}, TypeError, "the loss takes"),
    ],
)
def test_what_cannot_be_is_refused(options, error, words, without_compile):
    with pytest.raises(error, match=words):
        train(noting(), 10, **options)


def test_test_data_that_is_not_finite_is_named(without_compile):
    bad = {**pairs(2), "x1": mx.full((12, 2), np.nan)}
    with pytest.raises(NonFiniteLoss, match=r"test batch 1 is nan.*x1 holds NaN") as error:
        train(noting(), 20, test_batches=[pairs(1), bad])
    assert error.value.step == 10


# The averaged model


class Parts(nn.Module):
    """Tied layers, a frozen one, an array that MLX does not list, a method kept as an attribute."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.layers = [self.first, nn.BatchNorm(2)]
        self.frozen = nn.Linear(2, 2)
        self.frozen.freeze()
        self._scale = mx.array(2.0)
        self.function = self.first.__call__

    def __call__(self, t, x):
        for layer in (self.function, *self.layers, self.frozen):
            x = layer(x)
        return self._scale * x


def trained_parts():
    mx.random.seed(3)
    return train(TrainState(Parts(), optim.AdamW(1e-2)), 10)[0]


def test_the_averaged_model_is_the_model_with_the_averages(without_compile):
    state = trained_parts()
    model = state.averaged()
    assert type(model) is Parts
    assert model.first is model.layers[0]
    assert not any(part.training for part in model.modules())
    assert state.model.training
    x = pairs(1)["x0"]
    found = np.array(model(None, x))
    before = flat(state)
    original = state.model
    original.update(state.ema)
    np.testing.assert_array_equal(found, original.eval()(None, x))
    for (name, own), (_, kept) in zip(
        tree_flatten(model.parameters()), tree_flatten(state.ema), strict=True
    ):
        np.testing.assert_array_equal(own, kept, err_msg=name)
        assert own is not kept
    assert len(before) > 10


def test_training_does_not_change_an_averaged_model_nor_the_other_way(without_compile):
    state = trained_parts()
    model, x = state.averaged(), pairs(1)["x0"]
    before, arrays = np.array(model(None, x)), flat(state)
    model.first.weight[0] = 0.0  # in place
    model.layers[1].running_mean = mx.ones((2,))
    after = flat(state)
    for name in arrays:
        np.testing.assert_array_equal(after[name], arrays[name], err_msg=name)
    model = state.averaged()
    train(state, 20)
    np.testing.assert_array_equal(model(None, x), before)
    assert (np.array(state.averaged()(None, x)) != before).any()


class Holder:
    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return self.model.first(x)


HOLDERS = {
    "closure": lambda model: lambda x: model.first(x),
    "compiled": lambda model: mx.compile(lambda x: model.first(x)),
    "compiled method": lambda model: mx.compile(model.first.__call__),
    "partial": lambda model: functools.partial(nn.Linear.__call__, model.first),
    "object": Holder,
    "in a list": lambda model: [nn.relu, lambda x: model.first(x)],
}


@pytest.mark.parametrize("keep", HOLDERS.values(), ids=HOLDERS)
def test_a_model_that_a_copy_would_lead_back_to_is_refused(keep):
    model = Parts()
    model.function = keep(model)
    with pytest.raises(TypeError, match=r"Parts has function.* holds the network itself") as error:
        TrainState(model, optim.Adam(1e-3)).averaged()
    assert "update(state.ema)" in str(error.value)


def test_functions_of_others_are_shared():
    """Such as MLX's compiled activations, by themselves and in lists."""
    model = Parts()
    model.activations, model.function = [nn.gelu, np.tanh], nn.relu
    copy = TrainState(model, optim.Adam(1e-3)).averaged()
    assert copy.function is nn.relu
    assert copy.activations == [nn.gelu, np.tanh]
    copy.first.freeze()
    assert len(tree_flatten(model.first.trainable_parameters())) == 2

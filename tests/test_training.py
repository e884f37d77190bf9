import json
import math
import threading

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from flowmlx.couplings import HostCoupling, conditional, exact_ot, independent, partial, sinkhorn
from flowmlx.couplings.semidiscrete import fit_semidiscrete, semidiscrete
from flowmlx.data.streams import generated, shuffled, whole
from flowmlx.data.toy import TOY
from flowmlx.keys import fold_in
from flowmlx.losses import flow_matching_loss
from flowmlx.nets.mlp import MLP
from flowmlx.paths import Bridge, Linear, Target, Trigonometric
from flowmlx.training import (
    SCHEDULES,
    NonFiniteLoss,
    TrainState,
    checkpoint,
    fit,
    learning_rate,
    make_step,
    paired_batches,
)


def new_state(lr=1e-3, seed=0, width=8):
    model = MLP(2, key=mx.random.key(seed), width=width, activation="relu")
    return TrainState(model, optim.AdamW(lr, bias_correction=True))


def toy_batches(key, coupling=independent, n=16):
    source, target = generated(TOY["8gaussians"]), generated(TOY["moons"])
    return paired_batches(source, target, n, key=key, coupling=coupling)


def train(state, steps, key, **options):
    return fit(
        state,
        toy_batches(key),
        loss=flow_matching_loss(Linear(0.1)),
        steps=steps,
        key=key,
        **options,
    )


def flat(state):
    return {name: np.array(a) for name, a in tree_flatten([state.model.parameters(), state.ema])}


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


class Constant(nn.Module):
    """A field that is one number; its regression on (0, x1) batches has a closed form."""

    def __init__(self):
        super().__init__()
        self.value = mx.zeros((1,))

    def __call__(self, t, x):
        return mx.broadcast_to(self.value, x.shape)


def test_training_finds_the_mean_velocity(key, without_compile):
    """The best constant field for x0 = 0, x1 = 3 is 3 everywhere."""
    state = TrainState(Constant(), optim.AdamW(0.1, weight_decay=0.0, bias_correction=True))
    x0, x1 = mx.zeros((32, 1)), mx.full((32, 1), 3.0)
    fit(state, lambda step: (x0, x1), loss=flow_matching_loss(Linear()), steps=300, key=key)
    assert state.model.value.item() == pytest.approx(3.0, abs=1e-3)
    assert state.ema["value"].item() == pytest.approx(3.0, abs=0.3)


def test_compiled_steps_draw_anew_each_time():
    """A compiled step that froze its times or its noise would repeat its loss."""
    x0 = x1 = mx.zeros((4, 1))
    for path in (Target(), Linear(1.0), Trigonometric()):  # noise, noise, times alone
        model = MLP(1, key=mx.random.key(0), width=4, activation="relu")
        step = make_step(TrainState(model, optim.SGD(0.0)), flow_matching_loss(path))
        losses = [step(mx.random.key(k), x0, x1).item() for k in (1, 2, 1)]
        assert losses[0] == losses[2]
        assert losses[0] != losses[1]


def test_loss_draws_times_on_the_path_interval_and_unrelated_noise(key):
    seen = {}

    def field(t, x):
        seen["t"], seen["x"] = np.array(t), np.array(x)[:, 0]
        return x

    zeros = mx.zeros((20_000, 1))
    flow_matching_loss(Bridge(1.0, margin=0.2))(field, zeros, zeros, key=key)
    t, noise = seen["t"], seen["x"] / np.sqrt(seen["t"] * (1 - seen["t"]))
    assert 0.2 <= t.min() < 0.201
    assert 0.799 < t.max() <= 0.8
    assert t.mean() == pytest.approx(0.5, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(t, noise)[0, 1]) < 4.5 / np.sqrt(20_000)


def test_fit_draws_other_times_and_noise_at_every_step(key, without_compile):
    seen = []

    def record(field, x0, x1, *, key):
        seen.append(tuple(np.array(key).tolist()))
        return (field.value**2).sum()

    fit(TrainState(Constant(), optim.SGD(0.1)), toy_batches(key), loss=record, steps=20, key=key)
    assert len(set(seen)) == 20


def test_resumed_run_is_bit_for_bit_the_run_in_one_go(tmp_path, key):
    whole = train(new_state(), 30, key)
    first = train(new_state(), 17, key)
    checkpoint.save(tmp_path, first)
    second = checkpoint.load(tmp_path, new_state(seed=9))
    assert second.step == 17
    assert_same(train(second, 30, key), whole)


def test_log_interval_does_not_change_the_weights(key, without_compile):
    assert_same(train(new_state(), 12, key, log_every=1), train(new_state(), 12, key, log_every=5))


def test_seed_changes_the_run(key, without_compile):
    a, b = train(new_state(), 3, key), train(new_state(), 3, mx.random.key(1))
    assert (flat(a)["0.layers.0.weight"] != flat(b)["0.layers.0.weight"]).any()


def test_moving_average_is_the_stated_recursion(key, without_compile):
    state = new_state()
    step = make_step(state, flow_matching_loss(Linear()), ema_decay=0.5)
    expected = np.array(state.model.layers[0].weight)
    batches = toy_batches(key)
    for k in range(1, 7):
        step(mx.random.key(k), **batches(k))
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * np.array(state.model.layers[0].weight)
    np.testing.assert_allclose(state.ema["layers"][0]["weight"], expected, atol=1e-6)


def test_clipping_bounds_the_update(key, without_compile):
    """SGD with rate 1 moves by the clipped gradient."""
    state = TrainState(Constant(), optim.SGD(1.0))
    step = make_step(state, flow_matching_loss(Linear()), clip_norm=0.25)
    step(key, mx.zeros((8, 1)), mx.full((8, 1), 100.0))
    assert state.model.value.item() == pytest.approx(0.25, abs=1e-4)


def test_reports_come_at_log_steps_and_the_end(key, without_compile):
    reports = []
    train(new_state(), 25, key, log_every=10, callbacks=[reports.append])
    assert [r.step for r in reports] == [10, 20, 25]
    assert all(math.isfinite(r.loss) and r.steps_per_second > 0 for r in reports)
    assert reports[0].learning_rate == pytest.approx(1e-3)


def test_stop_ends_training_with_a_report(key, without_compile):
    reports = []
    state = train(new_state(), 25, key, callbacks=[reports.append], stop=lambda step: step == 7)
    assert state.step == 7
    assert [r.step for r in reports] == [7]


def test_non_finite_loss_names_the_step(key, without_compile):
    batches = toy_batches(key)

    def poisoned(step):
        batch = batches(step)
        return {**batch, "x1": batch["x1"] * (math.nan if step == 6 else 1.0)}

    with pytest.raises(NonFiniteLoss, match="loss is nan at step 7") as error:
        fit(new_state(), poisoned, loss=flow_matching_loss(Linear()), steps=20, key=key)
    assert error.value.step == 7


def test_weights_that_break_in_the_last_update_are_noticed(key, without_compile):
    """The loss of a step is computed before its update, and is finite here."""
    with pytest.raises(NonFiniteLoss, match="weights are not finite at step 1"):
        train(new_state(lr=1e39), 1, key)


@pytest.mark.parametrize("name", ["steps", "log_every"])
def test_counts_below_one_are_refused(name, key):
    options = {"steps": 5, "log_every": 5, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; expected an integer >= 1"):
        train(new_state(), key=key, **options)


def test_batches_are_coupled(key):
    x0, x1 = toy_batches(key, exact_ot)(3).values()
    y0, y1 = toy_batches(key, independent)(3).values()
    np.testing.assert_array_equal(np.sort(x1, axis=0), np.sort(y1, axis=0))
    assert mx.square(x1 - x0).sum().item() < mx.square(y1 - y0).sum().item()
    i, j = exact_ot(y0, y1)
    np.testing.assert_array_equal(x1, y1[j])
    np.testing.assert_array_equal(x0, y0[i])


OT = [exact_ot, sinkhorn(), conditional(exact_ot)]
OT_IDS = ["exact_ot", "sinkhorn", "conditional"]


def rows_with_labels(n=200):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)).astype(np.float32), rng.integers(0, 3, n)


def labelled_batches(key, coupling, n=16, **options):
    return paired_batches(
        generated(TOY["8gaussians"]),
        shuffled(*rows_with_labels()),
        n,
        key=key,
        coupling=coupling,
        **options,
    )


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("coupling", OT, ids=OT_IDS)
def test_pairs_are_the_same_however_far_ahead_and_in_any_order(key, coupling, block):
    steps = [0, 1, 2, 3, 9, 4, 0]
    runs = []
    for ahead in (0, 1, 4):
        batches = labelled_batches(key, coupling, block=block, ahead=ahead)
        runs.append([batches(step) for step in steps])
    fresh = [labelled_batches(key, coupling, block=block, ahead=0)(step) for step in steps]
    for run in runs:
        for batch, alone in zip(run, fresh, strict=True):
            assert [*batch] == [*alone] == ["x0", "x1", "cond"]
            for name in batch:
                np.testing.assert_array_equal(batch[name], alone[name])


def test_labels_follow_their_points_and_enter_a_conditional_coupling(key):
    rows, labels = rows_with_labels()
    label_of = {tuple(row): label for row, label in zip(rows.tolist(), labels, strict=True)}
    for coupling in (exact_ot, conditional(exact_ot)):
        _, x1, y = labelled_batches(key, coupling)(0).values()
        assert [label_of[tuple(row)] for row in x1.tolist()] == y.tolist()
    x0, x1, y = labelled_batches(key, independent)(0).values()
    _, j = conditional(exact_ot)(x0, x1, y)
    np.testing.assert_array_equal(labelled_batches(key, conditional(exact_ot))(0)["x1"], x1[j])
    with pytest.raises(ValueError, match="takes conditions, and the target gives none"):
        toy_batches(key, conditional(exact_ot))(0)


def test_a_block_is_one_plan_dealt_out(key):
    """Four batches of 16 together are the assignment of the 64 points drawn for them."""
    batches = labelled_batches(key, exact_ot, block=4)
    dealt = [np.concatenate([batches(k)[name] for k in range(4)]) for name in ("x0", "x1")]
    x0, x1, _ = labelled_batches(key, independent, n=64)(0).values()
    i, j = exact_ot(x0, x1)
    expected = np.concatenate([np.array(x0[i]), np.array(x1[j])], axis=1)
    ours = np.concatenate(dealt, axis=1)
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], expected[np.lexsort(expected.T)])
    assert (ours != expected).any()  # in an order of their own
    assert [len(x) for x in batches(0).values()] == [16, 16, 16]


def test_a_pointwise_coupling_pairs_many_steps_at_once_in_the_order_drawn(key):
    rows, sizes = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32), []

    def nearest(x0, x1, *, rng):
        sizes.append(len(x0))
        return np.arange(len(x0)), ((x0[:, None] - x1) ** 2).sum(2).argmin(1)

    source, coupling = generated(TOY["normal"]), HostCoupling(nearest, pointwise=True)
    options = {"key": key, "coupling": coupling, "ahead": 0}
    batches = paired_batches(source, whole(rows), 8, **options)
    dealt = [np.concatenate([batches(k)[name] for k in range(32)]) for name in ("x0", "x1")]
    assert sizes == [32 * 8]
    x0 = np.array(source(32 * 8, 0, key=fold_in(key, "source")))
    np.testing.assert_array_equal(dealt[0], x0)
    np.testing.assert_array_equal(dealt[1], rows[nearest(x0, rows, rng=None)[1]])


def test_a_block_of_fewer_pairs_gives_equal_batches(key):
    batches = labelled_batches(key, partial(0.7), block=3)  # 34 pairs of 48
    assert [len(batches(step)["x0"]) for step in range(4)] == [11] * 4


def test_what_a_plan_raises_ends_training_at_its_step(key, without_compile):
    def target(n, step, *, key):
        return mx.full((n, 2), math.nan if step == 5 else 1.0)

    batches = paired_batches(
        generated(TOY["normal"]), target, 8, key=key, coupling=exact_ot, ahead=3
    )
    state = new_state()
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit(state, batches, loss=flow_matching_loss(Linear()), steps=20, key=key)
    assert state.step == 5


def test_a_run_with_transport_resumes_bit_for_bit(tmp_path, key, without_compile):
    def run(state, steps):
        batches = toy_batches(key, sinkhorn())
        return fit(state, batches, loss=flow_matching_loss(Linear()), steps=steps, key=key)

    whole = run(new_state(), 9)
    checkpoint.save(tmp_path, run(new_state(), 4))
    assert_same(run(checkpoint.load(tmp_path, new_state(seed=9)), 9), whole)


def test_semidiscrete_pairs_train_on_their_rows(key):
    rows, labels = rows_with_labels(40)
    fitted = fit_semidiscrete(rows, TOY["normal"], key=key)
    batches = paired_batches(
        generated(TOY["normal"]),
        whole(rows, labels),
        64,
        key=key,
        coupling=semidiscrete(fitted, rows),
        block=2,
    )
    x0, x1, y = batches(3).values()
    _, j = semidiscrete(fitted, rows)(x0, rows)
    np.testing.assert_array_equal(x1, rows[np.array(j)])
    np.testing.assert_array_equal(y, labels[np.array(j)])


def test_impossible_blocks_are_refused(key):
    with pytest.raises(ValueError, match="block is 0; expected an integer >= 1"):
        labelled_batches(key, exact_ot, block=0)


def rate_at(schedule, step):
    return schedule(mx.array(step)).item() if callable(schedule) else schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_is_linear_and_reaches_the_peak(name):
    schedule = learning_rate(2.0, steps=100, warmup_steps=10, schedule=name)
    assert rate_at(schedule, 0) == pytest.approx(0, abs=1e-6)
    assert rate_at(schedule, 5) == pytest.approx(1.0, rel=1e-5)
    assert rate_at(schedule, 10) == pytest.approx(2.0, rel=1e-5)


def test_cosine_falls_to_zero_and_constant_stays():
    cosine = learning_rate(2.0, steps=110, warmup_steps=10, schedule="cosine")
    assert rate_at(cosine, 60) == pytest.approx(1.0, abs=1e-3)
    assert rate_at(cosine, 110) == pytest.approx(0.0, abs=1e-3)
    assert rate_at(learning_rate(2.0, steps=100), 99) == 2.0


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'.*did you mean 'cosine'"):
        learning_rate(1.0, steps=10, schedule="cosin")
    with pytest.raises(ValueError, match="warmup_steps is 11; expected 0 to 10"):
        learning_rate(1.0, steps=10, warmup_steps=11)


# Checkpoints


def test_checkpoint_holds_everything(tmp_path, key, without_compile):
    state = train(new_state(), 5, key)
    path = checkpoint.save(tmp_path, state)
    assert json.loads((path / "state.json").read_text())["step"] == 5
    loaded = checkpoint.load(tmp_path, new_state(seed=1))
    assert_same(loaded, state)
    saved, read = (dict(tree_flatten(s.optimizer.state)) for s in (state, loaded))
    assert saved.keys() == read.keys()
    for name in saved:
        np.testing.assert_array_equal(saved[name], read[name], err_msg=name)


def test_averaged_weights_load_alone(tmp_path, key, without_compile):
    state = train(new_state(), 5, key)
    checkpoint.save(tmp_path, state)
    model = new_state(seed=1).model
    assert checkpoint.load_ema(tmp_path, model) == 5
    np.testing.assert_array_equal(model.layers[0].weight, state.ema["layers"][0]["weight"])
    assert (np.array(model.layers[0].weight) != np.array(state.model.layers[0].weight)).any()


def test_frozen_layers_come_with_the_averaged_weights(tmp_path, key, without_compile):
    def frozen(seed):
        state = new_state(seed=seed)
        state.model.layers[1].freeze()
        return TrainState(state.model, optim.AdamW(1e-3))

    state = train(frozen(0), 3, key)
    checkpoint.save(tmp_path, state)
    model = frozen(1).model
    checkpoint.load_ema(tmp_path, model)
    np.testing.assert_array_equal(model.layers[1].weight, state.model.layers[1].weight)


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep is 0; expected at least 1"):
        checkpoint.save(tmp_path, new_state(), keep=0)


def test_newest_is_loaded_and_old_ones_go(tmp_path, key, without_compile):
    state = new_state()
    for steps in (1, 2, 10, 11):
        checkpoint.save(tmp_path, train(state, steps, key), keep=2)
    assert checkpoint.steps_saved(tmp_path) == [10, 11]
    assert checkpoint.load(tmp_path, new_state()).step == 11
    assert checkpoint.load(tmp_path, new_state(), step=10).step == 10


def test_learning_rate_is_a_setting_not_a_state(tmp_path, key, without_compile):
    checkpoint.save(tmp_path, train(new_state(lr=1e-3), 2, key))
    state = checkpoint.load(tmp_path, new_state(lr=5e-4))
    assert state.optimizer.learning_rate.item() == pytest.approx(5e-4)


def test_half_written_checkpoint_is_never_loaded(tmp_path, key, without_compile, monkeypatch):
    checkpoint.save(tmp_path, train(new_state(), 1, key))

    def power_cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_flush", power_cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, train(new_state(), 2, key))
    monkeypatch.undo()
    assert checkpoint.steps_saved(tmp_path) == [1]
    assert checkpoint.load(tmp_path, new_state()).step == 1
    checkpoint.save(tmp_path, train(new_state(), 3, key))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000003"]


def test_loading_says_what_is_wrong(tmp_path, key, without_compile):
    with pytest.raises(ValueError, match=r"no checkpoint in .*; there: none"):
        checkpoint.load(tmp_path, new_state())
    path = checkpoint.save(tmp_path, train(new_state(), 1, key))
    with pytest.raises(ValueError, match=r"no checkpoint of step 7 in .*; there: 1"):
        checkpoint.load(tmp_path, new_state(), step=7)
    with pytest.raises(
        ValueError, match=r"does not fit this model: layers.0.bias is \(8,\) in the file"
    ):
        checkpoint.load(tmp_path, new_state(width=16))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model.safetensors is missing or damaged"):
        checkpoint.load(tmp_path, new_state())


@pytest.mark.parametrize(("ahead", "elsewhere"), [(None, True), (2, True), (0, False)])
def test_host_couplings_are_computed_in_other_threads(key, ahead, elsewhere):
    seen = []

    def pair(x0, x1, *, rng):
        seen.append(threading.get_ident())
        return np.arange(len(x0)), np.arange(len(x1))

    normal = generated(TOY["normal"])
    batches = paired_batches(normal, normal, 8, key=key, coupling=HostCoupling(pair), ahead=ahead)
    for step in range(4):
        batches(step)
    assert len(seen) >= 4
    assert all((thread != threading.get_ident()) == elsewhere for thread in seen)


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_a_stream_raises_comes_at_its_step(key, ahead):
    def source(n, step, *, key):
        if step == 3:
            raise ValueError("no more points")
        return TOY["normal"](n, key=fold_in(key, step))

    batches = paired_batches(
        source, generated(TOY["moons"]), 8, key=key, coupling=exact_ot, ahead=ahead
    )
    for step in range(3):
        assert len(batches(step)["x0"]) == 8
    with pytest.raises(ValueError, match="no more points"):
        batches(3)

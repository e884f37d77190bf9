"""Training of networks that draw, remember or are frozen in part: Dropout, BatchNorm, buffers."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from flowmlx.couplings import exact_ot, independent
from flowmlx.data.streams import generated
from flowmlx.data.toy import TOY
from flowmlx.losses import flow_matching_loss
from flowmlx.paths import Linear
from flowmlx.training import TrainState, checkpoint, fit, make_step, paired_batches

X = mx.random.normal((16, 2), key=mx.random.key(5)) + 3


class Net(nn.Module):
    """Layers of every kind: trained, frozen, one that draws, one that remembers, a counter."""

    def __init__(self, seed=0):
        super().__init__()
        mx.random.seed(seed)
        self.layers = [nn.Linear(2, 8), nn.Dropout(0.5), nn.BatchNorm(8), nn.Linear(8, 2)]
        self.frozen = nn.Linear(2, 2)
        self.frozen.freeze()
        self.calls = mx.array(0)
        self.freeze(keys=["calls"], recurse=False)

    def __call__(self, t, x):
        if self.training:
            self.calls = self.calls + 1
        first, *rest = self.layers
        x = first(self.frozen(x))
        for layer in rest:
            x = layer(x)
        return x


def squared(model, x0, x1, *, key):
    return mx.square(model(mx.array(0.5), x0) - x1).mean()


def still(step):
    return X, X


def new_state(seed=0, rate=1e-2):
    return TrainState(Net(seed), optim.AdamW(rate, bias_correction=True))


def flat(*trees):
    return {name: np.array(a) for name, a in tree_flatten(list(trees))}


def assert_same(a, b):
    a, b = (flat(s.model.parameters(), s.ema, s.optimizer.state) for s in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def losses_of(state, *, loss=squared, batches=still, steps=6, seed=0):
    reports = []
    key = mx.random.key(seed)
    options = {"log_every": 1, "callbacks": [reports.append]}
    fit(state, batches, loss=loss, steps=steps, key=key, **options)
    return [report.loss for report in reports]


class Drawing(nn.Module):
    """Its output is a mask of Dropout, whatever it has learned."""

    def __init__(self):
        super().__init__()
        self.weight, self.dropout = mx.zeros((1,)), nn.Dropout(0.5)

    def __call__(self, t, x):
        return self.dropout(mx.ones_like(x)) + 0 * self.weight


def noisy(model, x0, x1, *, key):
    return mx.random.uniform() + 0 * model.weight.sum()


def drawing_batches(step):
    return mx.random.normal((4, 2)), X[:4]


def first_number(model, x0, x1, *, key):
    return x0[0, 0] + 0 * model.weight.sum()


def own_key(model, x0, x1, *, key):
    """What is drawn without a key, less what is drawn with it in the same way: not 0."""
    return (mx.random.uniform() - mx.random.uniform(key=mx.random.split(key)[1])) + (
        0 * model.weight.sum()
    )


DRAWS = {
    "network": (squared, still),
    "loss": (noisy, still),
    "batches": (first_number, drawing_batches),
    "beside": (own_key, still),
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("where", DRAWS)
def test_draws_without_a_key_are_those_of_the_step_s_key(where, compiled, request):
    """New at every step, the same in another run, others for another key; compiled or not."""
    if not compiled:
        request.getfixturevalue("without_compile")
    loss, batches = DRAWS[where]

    def run(seed, global_seed):
        mx.random.seed(global_seed)
        state = TrainState(Drawing(), optim.SGD(0.0))
        return losses_of(state, loss=loss, batches=batches, seed=seed)

    one, again, other = run(0, 1), run(0, 2), run(3, 1)
    assert len(set(one)) == 6
    assert one == again
    assert not set(one) & set(other)


@pytest.mark.parametrize("error", [False, True])
def test_the_global_generator_is_given_back_as_it_was(error, without_compile):
    state = new_state()
    mx.random.seed(11)
    mx.random.uniform()  # a state that no small seed gives
    before = np.array(mx.random.state[0])

    def stop(step):
        if error:
            raise KeyboardInterrupt
        return False

    try:
        fit(state, drawing_and_still, loss=squared, steps=3, key=mx.random.key(0), stop=stop)
    except KeyboardInterrupt:
        assert error
    np.testing.assert_array_equal(mx.random.state[0], before)


def drawing_and_still(step):
    mx.random.normal((3,))
    return X, X


@pytest.mark.parametrize("coupling", [independent, exact_ot])
def test_a_resumed_run_is_bit_for_bit_the_run_in_one_go(coupling, tmp_path, key, without_compile):
    """With masks, running statistics and a counter, batches computed ahead of their turn."""

    def run(state, steps, global_seed):
        mx.random.seed(global_seed)
        source, target = generated(TOY["8gaussians"]), generated(TOY["moons"])
        batches = paired_batches(source, target, 16, key=key, coupling=coupling)
        return fit(state, batches, loss=flow_matching_loss(Linear()), steps=steps, key=key)

    whole = run(new_state(), 9, 1)
    checkpoint.save(tmp_path, run(new_state(), 4, 2))
    resumed = checkpoint.load(tmp_path, new_state(seed=7))
    assert resumed.model.calls.item() == 4
    assert_same(run(resumed, 9, 3), whole)


def without_key(n, step, *, key):
    return mx.random.normal((n, 2))


def in_any_order(x0, x1, *, key):
    return mx.random.permutation(len(x0)), mx.arange(len(x1))


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("coupling", [independent, exact_ot, in_any_order])
def test_pairs_drawn_without_a_key_are_those_of_their_step(coupling, block, key):
    """Whenever it is that they are drawn: ahead of their turn, or first of all after a resume."""

    def batches():
        mx.random.seed(next(seeds))
        return paired_batches(without_key, without_key, 4, key=key, coupling=coupling, block=block)

    seeds = iter(range(99))

    def drawn(batches, step):
        return [np.array(x) for x in batches(step).values()]

    one, whole = batches(), [drawn(batches(), step) for step in range(8)]
    for step in (5, 6, 7):
        np.testing.assert_array_equal(drawn(one, step), whole[step])
    one_go = batches()
    for step in range(8):
        np.testing.assert_array_equal(drawn(one_go, step), whole[step])
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole[0][0], whole[0][1])
    before = np.array(mx.random.state[0])
    one_go(0)
    np.testing.assert_array_equal(mx.random.state[0], before)


# Modes


def modes(network):
    return [part.training for part in network.modules()]


def test_the_mode_of_each_part_is_given_back(key, without_compile):
    for change in (lambda n: n.train(), lambda n: n.eval(), lambda n: n.layers[2].eval()):
        state = new_state()
        change(state.model)
        before = modes(state.model)
        seen = []

        def note(report, seen=seen):
            seen.append(modes(report.state.model))

        fit(state, still, loss=squared, steps=2, key=key, callbacks=[note])
        assert modes(state.model) == before
        assert seen == [before]


def test_a_network_in_eval_mode_is_trained_in_training_mode(key, without_compile):
    a, b = new_state(), new_state()
    b.model.eval()
    for state in (a, b):
        fit(state, still, loss=squared, steps=3, key=key)
    assert_same(a, b)
    assert a.model.calls.item() == 3


def test_a_part_in_eval_mode_stays_so_in_training(key, without_compile):
    """As one that was trained before and keeps its statistics."""
    state = new_state()
    state.model.layers[2].eval()
    fit(state, still, loss=squared, steps=3, key=key)
    np.testing.assert_array_equal(state.model.layers[2].running_mean, mx.zeros((8,)))
    assert state.model.calls.item() == 3


@pytest.mark.parametrize("compiled", [True, False])
def test_all_is_as_it_was_where_the_loss_raises(compiled, key, request):
    """Also the arrays, of which a trace leaves none in its place."""
    if not compiled:
        request.getfixturevalue("without_compile")
    state = new_state()
    state.model.eval()
    before = flat(state.model.parameters(), state.ema, state.optimizer.state)
    with pytest.raises(ValueError, match=r"\(16, 2\)"):
        fit(state, still, loss=lambda m, a, b, *, key: m(b, a), steps=3, key=key)
    assert not any(modes(state.model))
    after = flat(state.model.parameters(), state.ema, state.optimizer.state)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


# Buffers


def test_running_statistics_are_averaged_as_weights_are_and_frozen_weights_stay(without_compile):
    """By hand: a <- a + (1 - d) (w - a), of every array that changes; else the array itself."""
    state = new_state()
    step = make_step(state, squared, ema_decay=0.9)
    frozen = np.array(state.model.frozen.weight)
    expected = flat(state.ema)
    for k in range(1, 5):
        step(mx.random.key(k), X, X)
        decay = min(0.9, (1 + k) / (10 + k))
        now = flat(state.model.parameters())
        for name in expected:
            if "calls" in name or "frozen" in name:
                expected[name] = now[name]
            else:
                expected[name] = expected[name] + (1 - decay) * (now[name] - expected[name])
    averages = flat(state.ema)
    assert averages.keys() == expected.keys() == now.keys()
    assert abs(averages["0.layers.2.running_mean"]).max() > 0.05
    for name in expected:
        np.testing.assert_allclose(averages[name], expected[name], atol=1e-6, err_msg=name)
        assert averages[name].dtype == now[name].dtype
    np.testing.assert_array_equal(state.model.frozen.weight, frozen)
    np.testing.assert_array_equal(averages["0.frozen.weight"], frozen)
    assert averages["0.calls"] == 4


def test_averages_load_whole_and_in_eval_mode(tmp_path, key, without_compile):
    state = fit(new_state(), still, loss=squared, steps=5, key=key)
    checkpoint.save(tmp_path, state)
    model = Net(seed=3)
    checkpoint.load_ema(tmp_path, model)
    assert not any(modes(model))
    loaded, kept = flat(model.parameters()), flat(state.ema)
    assert loaded.keys() == kept.keys()
    for name in kept:
        np.testing.assert_array_equal(loaded[name], kept[name], err_msg=name)
    state.model.update(state.ema)  # the same by hand
    np.testing.assert_array_equal(state.model.eval()(None, X), model(None, X))


def test_checkpoints_whose_averages_are_of_trained_weights_alone_load(
    tmp_path, key, without_compile
):
    """As older versions wrote them."""
    state = fit(new_state(), still, loss=squared, steps=5, key=key)
    file = checkpoint.save(tmp_path, state) / "ema.safetensors"
    trained = {name for name, _ in tree_flatten(state.model.trainable_parameters())}
    averages = {k: a for k, a in mx.load(str(file)).items() if k in trained}
    assert len(averages) == 6
    mx.save_safetensors(str(file), averages)
    state = checkpoint.load(tmp_path, new_state(seed=2))
    model = Net(seed=3)
    checkpoint.load_ema(tmp_path, model)
    newest = mx.load(str(file.with_name("model.safetensors")))
    for found in (flat(state.ema), flat(model.parameters())):
        for name, array in newest.items():
            expected = averages.get(name, array)
            np.testing.assert_array_equal(found[f"0.{name}"], expected, err_msg=name)


def test_parts_frozen_and_unfrozen_after_the_state_was_made(key, without_compile):
    state = new_state()
    state.model.layers[0].freeze()
    state.model.frozen.unfreeze()
    before = flat(state.model.parameters())
    fit(state, still, loss=squared, steps=3, key=key)
    after = flat(state.model.parameters())
    same = {name for name in after if (after[name] == before[name]).all()}
    assert same == {"0.layers.0.weight", "0.layers.0.bias"}


def test_what_does_not_fit_a_checkpoint_is_named(tmp_path, key, without_compile):
    checkpoint.save(tmp_path, fit(new_state(), still, loss=squared, steps=1, key=key))
    other = Net()
    other.layers[0] = nn.Linear(2, 4)
    other.more = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="does not fit this model") as error:
        checkpoint.load_ema(tmp_path, other)
    for name in ("layers.0.bias is (8,)", "(4,)", "layers.0.weight", "1 more"):
        assert name in str(error.value)

"""Networks inside fields: their mode while they are sampled and scored, and what they return."""

from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from flowmlx.bridges import TwoHeads, TwoNetworks, VelocityOf, sample_bridge, score_flow_loss
from flowmlx.conditions import conditional, conditioned
from flowmlx.conversions import to_velocity
from flowmlx.fields import networks
from flowmlx.guidance import autoguidance, cfg, cfg_zero_star, interval
from flowmlx.likelihood import log_prob, standard_normal_log_prob
from flowmlx.losses import TARGETS, flow_matching_loss, velocity_loss
from flowmlx.paths import Bridge, Linear
from flowmlx.sampling import reflow_pairs, sample, sample_sde
from flowmlx.snapshots import arrivals, sample_bridges, snapshots_loss

pytestmark = pytest.mark.usefixtures("without_compile")

KEY = mx.random.key(0)
X = mx.random.normal((8, 2), key=KEY)


class Net(nn.Module):
    """Writes down the mode of each of its evaluations; `width` numbers come out."""

    def __init__(self, width=2):
        super().__init__()
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm(2)
        self._width, self.seen = width, []

    def __call__(self, t, x, cond=None):
        self.seen.append((self.training, self.dropout.training, self.norm.training))
        x = self.norm(self.dropout(x))
        return mx.concatenate([x] * (self._width // 2), axis=-1)


NET, TWO = Net(), TwoHeads(Net(4))


def by_name(t, x):
    return tree_map(lambda x: NET(t, x), x)


def by_another(t, x):
    return -by_name(t, x)


class Wrapper:
    def __init__(self, fields):
        self.fields = fields

    def __call__(self, t, x):
        return self.fields["one"](t, x)

    def velocity(self, t, x):
        return self(t, x)


FIELDS = {
    "network": NET,
    "conditioned": conditioned(NET, mx.array(1)),
    "velocity of": VelocityOf(TWO),
    "guided velocity of": VelocityOf(cfg(TWO, mx.array(1), 2.0)),
    "cfg": cfg(NET, mx.array(1), interval(2.0, 0.2, 0.8)),
    "cfg zero": cfg_zero_star(NET, mx.array(1), 2.0),
    "autoguidance": autoguidance(NET, None, 2.0, weak=lambda t, x: x),
    "weak": autoguidance(lambda t, x: x, None, 2.0, weak=NET),
    "x1": to_velocity(NET, "x1", Linear()),
    "partial": partial(NET, cond=mx.array(1)),
    "lambda": (lambda net: lambda t, x: net(t, x))(NET),
    "function": by_name,
    "function of a function": by_another,
    "object": Wrapper({"one": NET}),
    "method": Wrapper({"one": NET}).velocity,
    "attribute": (lambda run: lambda t, x: run.net(t, x))(SimpleNamespace(net=NET)),
}
USES = {
    "sample": lambda field: sample(field, X, method="euler", step_size=0.5),
    "encode": lambda field: sample(field, X, ts=(1.0, 0.0), method="euler"),
    "sample_sde": lambda field: sample_sde(field, X, key=KEY, step_size=0.5),
    "score": lambda field: sample_sde(lambda t, x: x, X, key=KEY, step_size=0.5, score=field),
    "log_prob": lambda field: log_prob(
        field, X, standard_normal_log_prob, key=KEY, method="euler", step_size=0.5
    ),
    "reflow_pairs": lambda field: reflow_pairs(field, X),
    "arrivals": lambda field: arrivals(field, [np.array(X)] * 2, (0.0, 1.0), key=KEY),
}
BRIDGES = {
    "sample_bridge": lambda model: sample_bridge(model, X, sigma=1.0, key=KEY, step_size=0.5),
    "sample_bridges": lambda model: sample_bridges(
        model, X, sigma=1.0, times=(0.0, 0.5, 1.0), key=KEY, step_size=0.5
    ),
}


@pytest.fixture(autouse=True)
def in_training():
    for net in (NET, TWO, TWO.net):
        net.train()
    for net in (NET, TWO.net):
        net.seen.clear()


def in_eval(net):
    return bool(net.seen) and not any(any(modes) for modes in net.seen)


@pytest.mark.parametrize("name", FIELDS)
def test_networks_are_found_in_what_holds_them(name):
    sample(FIELDS[name], X, method="euler", step_size=0.5)
    assert in_eval(NET) or in_eval(TWO.net)
    assert NET.training
    assert TWO.net.dropout.training


@pytest.mark.parametrize("use", USES)
def test_all_that_samples_or_scores_does_so_in_eval_mode(use):
    NET.norm.eval()  # one part of it for good
    NET.norm.running_mean = mx.array([1.0, 2.0])
    USES[use](NET)
    assert in_eval(NET)
    assert [part.training for part in (NET, NET.dropout, NET.norm)] == [True, True, False]
    NET.norm.running_mean = mx.zeros((2,))


@pytest.mark.parametrize("use", BRIDGES)
def test_bridges_are_sampled_in_eval_mode(use):
    BRIDGES[use](TWO)
    assert in_eval(TWO.net)
    assert TWO.net.training


def test_modes_come_back_after_an_error():
    with pytest.raises(ValueError, match="unknown method"):
        sample(NET, X, method="eulr")
    assert NET.training


def test_what_holds_no_network_has_none():
    def recursive(t, x):
        return recursive(t, x) if t > 2 else np.add(x, late)

    del_me = recursive
    numbers = list(range(10**6))
    assert networks((recursive, del_me, numbers, mx, nn.Module, print, {"a": X, "b": np.sin})) == []
    late = 0


# What is returned


def of_shape(*shape):
    """A field whose output has that shape."""
    return lambda t, x, cond=None: mx.zeros(shape)


LOSSES = {
    "velocity_loss": flow_matching_loss(Linear(), regress=velocity_loss),
    **{
        f"{prediction} {regress}": flow_matching_loss(
            Linear(), prediction=prediction, regress=regress
        )
        for prediction in TARGETS
        for regress in TARGETS
    },
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_compare_shapes(loss):
    """What would broadcast, to the data's shape or to a larger one, and what would not."""
    for data in ((8, 2), (8,), (8, 2, 2)):
        x = mx.ones(data)
        LOSSES[loss](of_shape(*data), x, x, key=KEY)
        for shape in {(8, 1), (8,), (1, 2), (8, 8), (8, 3), (), (8, 2, 1)} - {data}:
            with pytest.raises(ValueError, match="returned shape") as error:
                LOSSES[loss](of_shape(*shape), x, x, key=KEY)
            assert str(shape) in str(error.value)
            assert str(data) in str(error.value)


@pytest.mark.parametrize("value", [None, np.zeros((8, 2)), (X, X)], ids=type)
def test_losses_want_an_array(value):
    with pytest.raises(TypeError, match=r"field\(t, x\) returned .* expected an mx.array"):
        LOSSES["velocity_loss"](lambda t, x: value, X, X, key=KEY)


def wrapped(loss, *more):
    return lambda field, key=KEY: loss(field, X, X, *more, key=key)


START, LENGTH = mx.zeros((8,)), mx.ones((8,))
SCORED = flow_matching_loss(Bridge(1.0), regress=score_flow_loss(Bridge(1.0)))
WRAPPED = {
    "snapshots": wrapped(snapshots_loss(LOSSES["velocity_loss"]), START, LENGTH),
    "conditional": wrapped(conditional(LOSSES["velocity_loss"]), mx.zeros((8,), mx.int32)),
}


@pytest.mark.parametrize("shape", [(8, 1), (8,), (1, 2)])
@pytest.mark.parametrize("name", WRAPPED)
def test_losses_around_losses_compare_shapes(name, shape):
    WRAPPED[name](of_shape(8, 2))
    with pytest.raises(ValueError, match="returned shape") as error:
        WRAPPED[name](of_shape(*shape))
    assert str(shape) in str(error.value)
    assert str((8, 2)) in str(error.value)


def scored_snapshots(model):
    return snapshots_loss(SCORED)(model, X, X, START, LENGTH, key=KEY)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("shape", [(8, 1), (8,), (1, 2)])
@pytest.mark.parametrize(
    "use", [wrapped(SCORED), scored_snapshots, *BRIDGES.values()], ids=["loss", "snaps", *BRIDGES]
)
def test_velocity_and_score_each_have_the_shape_of_the_points(use, shape, place):
    fields = [of_shape(8, 2), of_shape(8, 2)]
    use(TwoNetworks(*fields))
    fields[place] = of_shape(*shape)
    with pytest.raises(ValueError, match="returned shape") as error:
        use(TwoNetworks(*fields))
    assert str(shape) in str(error.value)


def test_a_field_in_place_of_a_model_of_velocity_and_score_is_named():
    with pytest.raises(TypeError, match="expected a velocity and a score"):
        SCORED(of_shape(8, 2), X, X, key=KEY)


def test_fields_that_are_combined_have_one_shape():
    with pytest.raises(ValueError, match=r"\(8, 1\)"):
        sample_sde(of_shape(8, 1), X, key=KEY)
    with pytest.raises(ValueError, match=r"\(8, 1\)"):
        sample_sde(of_shape(8, 2), X, key=KEY, score=of_shape(8, 1))
    with pytest.raises(ValueError, match=r"\(8, 1\)"):
        autoguidance(of_shape(8, 2), None, 2.0, weak=of_shape(8, 1))(mx.array(0.5), X)

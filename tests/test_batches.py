"""Batches as records: the names of the parts are the names of the loss's arguments."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from flowmlx.conditions import Condition, conditional
from flowmlx.couplings import exact_ot, independent
from flowmlx.data.streams import Labelled, shuffled, whole
from flowmlx.losses import flow_matching_loss
from flowmlx.paths import Linear
from flowmlx.snapshots import snapshots_loss
from flowmlx.training import TrainState, fit, make_step, paired_batches
from flowmlx.training.batches import count_rows, take_rows

ROWS = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
LABELS = np.arange(24) % 3
X0, X1 = mx.array(ROWS[:8]), mx.array(ROWS[8:16])
MATCHING = flow_matching_loss(Linear())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = mx.array([1.0, 2.0])

    def __call__(self, t, x, cond=None):
        return self.weight * x + (0 if cond is None else cond[:, None])


def new_state(rate=0.1):
    return TrainState(Scaled(), optim.SGD(rate))


def trained(batch, loss, steps=3):
    state = new_state()
    fit(state, lambda step: batch, loss=loss, steps=steps, key=mx.random.key(0))
    return state.model.weight.tolist()


def weighted(field, x0, x1, *, key, weight):
    return (weight[:, None] * mx.square(field(mx.array(0.5), x0) - x1)).mean()


def test_parts_are_given_by_name_in_any_order_and_tuples_by_position(without_compile):
    weight = mx.arange(8.0)
    by_name = trained({"weight": weight, "x1": X1, "x0": np.array(X0)}, weighted)
    by_place = trained(
        (X0, X1, weight), lambda m, a, b, w, *, key: weighted(m, a, b, key=key, weight=w)
    )
    assert by_name == by_place != trained({"x0": X1, "x1": X0, "weight": weight}, weighted)


def test_a_step_is_traced_once_whatever_the_order_of_the_parts():
    traced = []

    def loss(field, x0, x1, *, key):
        traced.append(0)
        return mx.square(field.weight * x0 - x1).mean()

    step = make_step(new_state(), loss)
    values = [
        step(mx.random.key(k), **batch).item()
        for k, batch in enumerate(2 * [{"x0": X0, "x1": X1}, {"x1": X1, "x0": X0}])
    ]
    assert len(traced) == 1
    assert len(set(values)) == 4  # each step has trained


@pytest.mark.parametrize(
    ("batch", "loss", "words"),
    [
        ({"x0": X0, "x1": X1, "cond": X1[:, 0]}, MATCHING, ["x0, x1, cond", "conditional"]),
        ({"x0": X0, "x1": X1}, conditional(MATCHING), ["'cond'"]),
        ({"x1": X1}, MATCHING, ["'x0'"]),
        ((X0, X1, X1), MATCHING, ["3 arrays, by position"]),
        ({"x0": X0, "x1": X1, "key": X1}, MATCHING, ["'key'"]),
    ],
    ids=["more", "less", "none", "tuple", "key"],
)
def test_a_loss_without_arguments_for_the_parts_is_refused(batch, loss, words, without_compile):
    with pytest.raises(TypeError, match="the loss takes") as error:
        trained(batch, loss)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("outer", ["conditional", "snapshots"])
def test_wrappers_use_their_parts_and_hand_on_the_others(outer, key):
    seen = {}

    def own(field, x0, x1, *, key, **others):
        seen.update(others)
        return field(mx.array(0.5), x0).sum()

    names = {"conditional": ["cond"], "snapshots": ["start", "length"]}[outer]
    wrapped = {"conditional": conditional(own, dropout=0), "snapshots": snapshots_loss(own)}[outer]
    parts = {name: mx.ones((8,)) for name in ("cond", "start", "length", "weight")}
    wrapped(Scaled(), X0, X1, key=key, **parts)
    assert {*seen} == parts.keys() - set(names)


def test_conditions_of_snapshots_are_the_same_by_wrapper_and_by_hand(key):
    parts = {"start": mx.zeros((8,)), "length": mx.full((8,), 2.0)}
    loss = conditional(snapshots_loss(MATCHING), dropout=0)
    value = loss(Scaled(), X0, X1, X1[:, 0], key=key, **parts)
    inner = mx.random.split(key)[0]
    by_hand = snapshots_loss(MATCHING)(
        lambda t, x: Scaled()(t, x, X1[:, 0]), X0, X1, key=inner, **parts
    )
    assert value.item() == by_hand.item()


TARGETS = {
    "points": (shuffled(ROWS), []),
    "tuple": (shuffled(ROWS, LABELS), ["cond"]),
    "named": (shuffled(x1=ROWS, cond=LABELS), ["cond"]),
    "Labelled": (Labelled(ROWS, LABELS), ["cond"]),
    "whole": (whole(x1=ROWS, weight=LABELS, mask=LABELS > 0), ["weight", "mask"]),
}


@pytest.mark.parametrize("coupling", [independent, exact_ot])
@pytest.mark.parametrize("name", TARGETS)
def test_what_a_target_gives_follows_its_points(name, coupling, key):
    target, others = TARGETS[name]
    batch = paired_batches(shuffled(ROWS + 5), target, 24, key=key, coupling=coupling)(1)
    assert [*batch] == ["x0", "x1", *others]
    rows = [np.flatnonzero((row == ROWS).all(1))[0] for row in np.array(batch["x1"])]
    expected = {"cond": LABELS[rows], "weight": LABELS[rows], "mask": LABELS[rows] > 0}
    for other in others:
        np.testing.assert_array_equal(batch[other], expected[other])


@pytest.mark.parametrize(
    "drawn",
    [(ROWS, LABELS, LABELS), {"rows": ROWS}, {"x1": ROWS, "x0": ROWS}, {"x1": ROWS, "key": ROWS}],
)
def test_targets_without_names_for_all_are_refused(drawn, key):
    target = lambda n, step, *, key: drawn  # noqa: E731
    batches = paired_batches(shuffled(ROWS), target, 24, key=key, coupling=independent)
    with pytest.raises(ValueError, match=r"the target gives .*expected points"):
        batches(0)


@pytest.mark.parametrize("source", [shuffled(x0=ROWS), shuffled(ROWS, LABELS)])
def test_a_source_gives_points_alone(source, key):
    batches = paired_batches(source, shuffled(ROWS), 24, key=key, coupling=independent)
    with pytest.raises(ValueError, match=r"the source gives a .*expected points alone"):
        batches(0)


def test_parts_of_a_batch_may_be_trees():
    cond = Condition(mx.arange(6), mx.arange(6) > 2)
    batch = take_rows({"x1": mx.array(ROWS[:6]), "cond": cond}, slice(1, 5, 2))
    assert count_rows(batch) == 2
    assert isinstance(batch["cond"], Condition)
    assert batch["cond"].value.tolist() == [1, 3]
    assert batch["cond"].given.tolist() == [False, True]


def test_parts_without_rows_are_for_all_samples():
    batch = {"scale": mx.array(2.0), "x1": mx.arange(6)}
    assert count_rows(batch) == 6
    part = take_rows(batch, slice(0, 6, 3))
    assert part["scale"].item() == 2
    assert part["x1"].tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"\[4, 6\] rows"):
        take_rows({**batch, "x0": mx.arange(4)}, slice(2))
    with pytest.raises(ValueError, match="no array with rows"):
        count_rows({"scale": mx.array(2.0)})

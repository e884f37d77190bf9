"""One flow through several snapshots: batches, loss, and what a trained field predicts."""

import math
from itertools import pairwise

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from flowmlx.bridges import score_flow_loss
from flowmlx.conditions import conditional as conditional_loss
from flowmlx.couplings import COUPLINGS, HostCoupling, conditional, exact_ot, independent
from flowmlx.data.streams import Labelled, shuffled
from flowmlx.losses import flow_matching_loss
from flowmlx.nets import MLP
from flowmlx.paths import PATHS, Bridge, Linear
from flowmlx.sampling import sample
from flowmlx.snapshots import arrivals, sample_bridges, snapshot_batches, snapshots_loss
from flowmlx.training import TrainState, fit

TIMES = (0.0, 0.2, 1.0)


def population(t, n, seed):
    """A cloud that runs along a bent line: (3 t, 4 t (1 - t)) and a spread of 0.1."""
    rng = np.random.default_rng(seed)
    centre = np.array([3 * t, 4 * t * (1 - t)])
    return (centre + 0.1 * rng.normal(size=(n, 2))).astype(np.float32)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_batches_pair_neighbours_evenly_and_know_their_interval(coupling, key):
    # Rows say which snapshot they are from.
    streams = [shuffled(np.full((40, 1), i, np.float32)) for i in range(4)]
    times = [0.0, 1.0, 1.5, 4.0]
    batches = snapshot_batches(streams, times, 32, key=key, coupling=COUPLINGS[coupling])
    x0, x1, start, length = batches(3).values()
    i = np.array(x0)[:, 0].astype(int)
    # A partial plan leaves a tenth out.
    assert np.bincount(i).tolist() == ([10, 10, 9] if coupling == "partial" else [11, 11, 10])
    np.testing.assert_array_equal(np.array(x1)[:, 0], i + 1)
    np.testing.assert_allclose(start, np.array(times)[i])
    np.testing.assert_allclose(length, np.diff(times)[i])


def test_batches_are_functions_of_key_and_step(key):
    rows = [population(t, 50, i) for i, t in enumerate(TIMES)]
    streams = [shuffled(r) for r in rows]

    def batch(step, key):
        batches = snapshot_batches(streams, TIMES, 16, key=key, coupling=exact_ot)
        return np.concatenate([batches(step)[name] for name in ("x0", "x1")])

    np.testing.assert_array_equal(batch(2, key), batch(2, key))
    assert (batch(2, key) != batch(3, key)).any()
    assert (batch(2, key) != batch(2, mx.random.key(9))).any()
    # The middle snapshot ends one interval and starts the other, in orders of their own.
    batches = snapshot_batches(streams, TIMES, 16, key=key, coupling=independent)
    x0, x1, start = (np.array(batches(0)[name]) for name in ("x0", "x1", "start"))
    ends, starts = x1[start == 0], x0[start > 0]
    assert (ends != starts).any()


@pytest.mark.parametrize("path", [p() for p in PATHS.values()])
def test_loss_of_one_unit_interval_is_the_plain_loss(path, key):
    x0, x1 = mx.array(population(0, 20, 0)), mx.array(population(1, 20, 1))
    plain = flow_matching_loss(path)
    field = MLP(2, width=8, key=key)
    start, length = mx.zeros(20), mx.ones(20)
    ours = snapshots_loss(plain)(field, x0, x1, start, length, key=key)
    assert ours.item() == pytest.approx(plain(field, x0, x1, key=key).item(), rel=1e-6)


def test_loss_is_zero_for_the_field_that_goes_through_all_snapshots(key):
    """Points that keep their place in the cloud, along the broken line through its centres."""
    centres = np.array([[3 * t, 4 * t * (1 - t)] for t in TIMES], np.float32)
    slopes = np.diff(centres, axis=0) / np.diff(TIMES)[:, None]

    def field(t, x):
        return mx.where((t < TIMES[1])[:, None], *(mx.array(s.astype(np.float32)) for s in slopes))

    cloud = population(0, 30, 0)
    x0 = mx.array(np.concatenate([cloud, cloud + centres[1]]))
    x1 = mx.array(np.concatenate([cloud + centres[1], cloud + centres[2]]))
    start = mx.array(np.repeat(TIMES[:2], 30).astype(np.float32))
    length = mx.array(np.repeat(np.diff(TIMES), 30).astype(np.float32))
    loss = snapshots_loss(flow_matching_loss(Linear()))
    assert loss(field, x0, x1, start, length, key=key).item() < 1e-10
    assert loss(lambda t, x: 0 * x, x0, x1, start, length, key=key).item() > 1


# Mean and variance of Gaussians at TIMES, and the noise of the bridges between them.
SPREADS, SIGMA = [(-1.0, 1.0), (2.0, 0.25), (0.0, 0.5)], 0.8


def bridge(k, t):
    """Interval k, whose pairs are drawn independently: mean and variance at t, and the velocity of
    either and the length, all for numbers or arrays."""
    length = TIMES[k + 1] - TIMES[k]
    s = (t - TIMES[k]) / length
    (m0, v0), (m1, v1) = SPREADS[k], SPREADS[k + 1]
    variance = (1 - s) ** 2 * v0 + s**2 * v1 + SIGMA**2 * s * (1 - s)
    slope = s * v1 - (1 - s) * v0 + SIGMA**2 * (1 - 2 * s) / 2
    return (1 - s) * m0 + s * m1, variance, (m1 - m0) / length, slope / length, length


def exact_bridges(t, x):
    """Velocity, and score with its scale, of intervals that are each taken as [0, 1]."""
    t, models = t.reshape(-1, *[1] * (x.ndim - 1)), []
    for k in (0, 1):
        mean, variance, move, slope, length = bridge(k, t)
        away = (x - mean) / variance
        models.append((move + slope * away, -(SIGMA**2) / 2 / length * away))
    return tuple(mx.where(t < TIMES[1], *parts) for parts in zip(*models, strict=True))


@pytest.mark.parametrize("method", ["euler_maruyama", "sra1"])
def test_noise_keeps_the_snapshots_and_what_is_between(method, key):
    """Intervals of different lengths, of which the model takes each as one unit of time."""
    n, ts = 20_000, [0.1, 0.15, 0.2, 0.3, 0.6, 1.0]
    mean, variance, *_ = bridge(0, ts[0])
    x = mean + math.sqrt(variance) * mx.random.normal((n, 1), key=key)
    options = {"sigma": SIGMA, "times": TIMES, "key": key, "method": method}
    solution = sample_bridges(exact_bridges, x, ts=ts, **options)
    assert solution.ts.tolist() == pytest.approx(ts)
    for t, xs in zip(ts, np.array(solution.xs), strict=True):
        mean, variance, *_ = bridge(int(t > TIMES[1]), t)
        assert xs.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / n) + 0.01)
        assert xs.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / n) + 0.02)
    again = sample_bridges(exact_bridges, x, ts=ts[:3], **options)
    np.testing.assert_array_equal(again.xs, solution.xs[:3])
    assert again.stats.nfe < solution.stats.nfe


def test_exact_bridges_have_the_least_loss(key):
    """The gradient vanishes there in all directions, for scores as well."""
    n = 200_000
    keys = mx.random.split(key, 4)
    rows = [
        m + math.sqrt(v) * mx.random.normal((n, 1), key=k)
        for (m, v), k in zip(SPREADS, keys, strict=False)
    ]
    start = mx.repeat(mx.array(TIMES[:2]), n)
    length = mx.repeat(mx.array(np.diff(TIMES), mx.float32), n)
    path = Bridge(SIGMA)
    loss = snapshots_loss(flow_matching_loss(path, regress=score_flow_loss(path)))

    def at(a, b, c):
        def model(t, x):
            v, s = exact_bridges(t, x)
            return v + a, s + b + c * x

        return loss(
            model, mx.concatenate(rows[:2]), mx.concatenate(rows[1:]), start, length, key=key
        )

    zero = mx.array(0.0)
    slopes = [g.item() for g in mx.grad(at, argnums=(0, 1, 2))(zero, zero, zero)]
    assert np.abs(slopes).max() < 0.05
    elsewhere = mx.grad(at, argnums=(0, 1))(mx.array(0.5), mx.array(0.5), zero)
    assert min(g.item() for g in elsewhere) > 0.3


@pytest.mark.slow
@pytest.mark.usefixtures("without_compile")
def test_trained_field_passes_all_snapshots_and_predicts_one_left_out(key):
    """Trained without t = 0.5, where the cloud is near the line between its neighbours."""
    times = [0.0, 0.25, 0.4, 0.6, 0.75, 1.0]
    streams = [shuffled(population(t, 400, i)) for i, t in enumerate(times)]
    batches = snapshot_batches(streams, times, 125, key=key, coupling=exact_ot)
    net = MLP(2, width=48, depth=2, activation="relu", key=key)
    state = TrainState(net, optim.Adam(5e-3))
    fit(state, batches, loss=snapshots_loss(flow_matching_loss(Bridge(0.1))), steps=300, key=key)
    seen = [0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0]
    fresh = [population(t, 200, 50 + i) for i, t in enumerate(seen)]
    results = arrivals(state.averaged(), fresh, seen, key=key)
    assert [(a.start, a.time, a.points) for a in results] == [
        (a, b, 200) for a, b in pairwise(seen)
    ]
    for arrival in results:
        assert arrival.w2 < 0.15  # two samples of the cloud are 0.04 apart
        assert arrival.w1 <= arrival.w2
        assert arrival.w2_before > 2 * arrival.w2
    end = np.array(sample(state.averaged(), mx.array(population(0, 300, 99))).xs[-1])
    np.testing.assert_allclose(end.mean(0), [3, 0], atol=0.2)


def test_arrivals_of_a_known_flow(key):
    rows = population(0, 100, 0)
    snapshots = [rows + np.array([shift, 0.0]) for shift in (0.0, 2.0, 3.0)]
    field = lambda t, x: mx.broadcast_to(mx.array([1.0, 0.0]), x.shape)  # noqa: E731
    first, second = arrivals(field, snapshots, [0.0, 2.0, 4.0], key=key, most=60)
    assert (first.points, first.time, second.start) == (60, 2.0, 2.0)
    # Both are samples of 60 of the same 100 rows; the second flow goes one too far.
    assert first.w2 < 0.1
    assert second.w2 == pytest.approx(1.0, abs=0.1)
    apart = [rows, rows + np.array([2.5, 0.0]), rows]
    first, _ = arrivals(field, snapshots, [0.0, 2.0, 4.0], heldout=apart, key=key)
    assert first.w2 == pytest.approx(0.5, abs=1e-6)
    first, second = arrivals(field, snapshots, [0.0, 2.0, 4.0], key=key, most=60)
    assert (first.w2_before, second.w2_before) == pytest.approx((2.0, 1.0), abs=0.1)


@pytest.mark.parametrize(
    ("times", "streams", "size", "words"),
    [
        ([0.0, 1.0, 1.0], 3, 8, "expected two or more that increase"),
        ([0.0], 1, 8, "expected two or more that increase"),
        ([0.0, 1.0], 3, 8, "3 streams and 2 times"),
        ([0.0, 1.0, 2.0], 3, 1, "expected at least 2"),
    ],
)
def test_refusals(times, streams, size, words, key):
    rows = [shuffled(population(0, 5, 0))] * streams
    with pytest.raises(ValueError, match=words):
        snapshot_batches(rows, times, size, key=key, coupling=independent)


# --- with labels ---


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_pairs_with_labels_keep_them_and_come_as_often_as_in_the_later_snapshot(coupling, key):
    """Rows say which snapshot, label and row they are; the second has more of label 1."""
    shares = [[0] * 30 + [1] * 10, [0] * 10 + [1] * 30, [0] * 20 + [1] * 20]
    streams = [
        Labelled(np.array([[i, y, k] for k, y in enumerate(labels)], np.float32), np.array(labels))
        for i, labels in enumerate(shares)
    ]
    chosen = COUPLINGS[coupling]
    chosen = conditional(chosen) if isinstance(chosen, HostCoupling) else chosen
    batches = snapshot_batches(streams, [0.0, 1.0, 3.0], 80, key=key, coupling=chosen)
    drawn = [batches(step) for step in range(40)]
    names = ("x0", "x1", "start", "length", "cond")
    x0, x1, start, length, labels = (np.concatenate([d[name] for d in drawn]) for name in names)
    np.testing.assert_array_equal(x0[:, 0] + 1, x1[:, 0])
    np.testing.assert_array_equal(x0[:, 1], labels)
    np.testing.assert_array_equal(x1[:, 1], labels)
    np.testing.assert_allclose(start, np.array([0.0, 1.0])[x0[:, 0].astype(int)])
    np.testing.assert_allclose(length, np.array([1.0, 2.0])[x0[:, 0].astype(int)])
    for interval, share in ((0, 0.75), (1, 0.5)):
        assert labels[x0[:, 0] == interval].mean() == pytest.approx(share, abs=0.03)
    met = {tuple(row) for row in x0[x0[:, 0] == 0].astype(int).tolist()}
    assert len(met) == 40  # every row of the first snapshot
    again = snapshot_batches(streams, [0.0, 1.0, 3.0], 80, key=key, coupling=chosen)(7)
    for name in names:
        np.testing.assert_array_equal(again[name], drawn[7][name])


def test_labels_of_some_snapshots_only_are_refused(key):
    rows = np.zeros((6, 2), np.float32)
    streams = [Labelled(rows, np.arange(6)), shuffled(rows), Labelled(rows, np.arange(6))]
    with pytest.raises(ValueError, match=r"streams\[1\] has no labels"):
        snapshot_batches(streams, TIMES, 6, key=key, coupling=independent)


def test_a_label_that_no_earlier_row_has_is_refused(key):
    rows = np.zeros((6, 2), np.float32)
    streams = [Labelled(rows, np.array([0, 0, 0, 1, 1, 1])), Labelled(rows, np.arange(6) // 2)]
    with pytest.raises(ValueError, match="no row has the label 2"):
        snapshot_batches(streams, [0.0, 1.0], 6, key=key, coupling=independent)(0)


def arms(t, n, seed):
    """Two clouds that start together and part: up with label 1, down with label 0."""
    labels = np.random.default_rng(seed + 100).integers(0, 2, n)
    up = np.stack([0 * labels, 3 * t * (2 * labels - 1)], 1)
    return (population(0, n, seed) + up).astype(np.float32), labels.astype(np.int32)


def test_arrivals_start_from_the_labels_that_they_end_with(key):
    """One snapshot is of one label alone, and what is carried there has that label."""
    (first, y0), (last, y1) = arms(0, 200, 0), arms(1, 200, 1)
    up = y1 == 1

    def field(t, x, cond=None):
        assert cond is not None
        return mx.stack([0 * x[:, 0], 3.0 * (2 * cond - 1)], 1)

    (arrival,) = arrivals(
        field, [first, last], [0.0, 1.0], heldout=[first, last[up]],
        labels=([y0, y1], [y0, y1[up]]), key=key,
    )  # fmt: skip
    assert arrival.points == up.sum()
    assert arrival.w2 < 0.1
    assert arrival.w2_before == pytest.approx(3.0, abs=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("without_compile")
def test_a_trained_conditional_field_takes_each_label_its_own_way(key):
    times = [0.0, 0.4, 1.0]
    seen = [arms(t, 300, i) for i, t in enumerate(times)]
    batches = snapshot_batches(
        [Labelled(*part) for part in seen], times, 64, key=key, coupling=conditional(exact_ot)
    )
    net = MLP(2, width=48, depth=2, activation="relu", cond_dim=2, key=key)
    state = TrainState(net, optim.Adam(5e-3))
    loss = conditional_loss(snapshots_loss(flow_matching_loss(Linear())))
    fit(state, batches, loss=loss, steps=300, key=key)
    rows, labels = zip(*(arms(t, 200, 50 + i) for i, t in enumerate(times)), strict=True)
    for arrival in arrivals(state.averaged(), rows, times, labels=(labels, labels), key=key):
        assert arrival.w2 < 0.25
        assert arrival.w2_before > 1

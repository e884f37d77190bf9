import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from flowmlx.couplings import (
    COUPLINGS,
    SIGMA_COUPLINGS,
    OfMeanCost,
    by_name,
    conditional,
    exact_ot,
    independent,
    partial,
    schroedinger,
    sinkhorn,
    squared_distances,
    unbalanced,
)
from flowmlx.transport import entropic
from flowmlx.transport.assignment import assign
from flowmlx.transport.entropic import NotConverged

# These leave points out: their marginals are not those of the batches.
RELAXED = {"unbalanced", "partial"}
PRESERVING = {
    **{name: coupling for name, coupling in COUPLINGS.items() if name not in RELAXED},
    **{name: make(0.5) for name, make in SIGMA_COUPLINGS.items()},
}
TRANSPORT = [name for name in COUPLINGS if name != "independent"]


def batches(n=64, d=2, m=None):
    keys = mx.random.split(mx.random.key(3), 2)
    return [mx.random.normal((k, d), key=key) for k, key in zip((n, m or n), keys, strict=True)]


def mean_cost(coupling, x0, x1, key):
    i, j = coupling(x0, x1, key=key)
    return mx.square(x0[i] - x1[j]).sum(-1).mean().item()


def counts(index, size):
    return np.bincount(np.array(index), minlength=size)


@pytest.mark.parametrize("name", COUPLINGS)
def test_same_key_same_pairs(name, key):
    x0, x1 = batches(n=30, m=44)
    a, b = (COUPLINGS[name](x0, x1, key=key) for _ in range(2))
    for p, q in zip(a, b, strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("name", ["sinkhorn", "unbalanced"])
def test_other_key_other_pairs(name, key):
    x0, x1 = batches()
    (_, a), (_, b) = (COUPLINGS[name](x0, x1, key=mx.random.key(k)) for k in (0, 1))
    assert (np.array(a) != np.array(b)).any()


@pytest.mark.parametrize(
    ("name", "n", "m"),
    [
        *((name, 12, 18) for name in PRESERVING),
        *(("sinkhorn", n, m) for n, m in ((12, 12), (18, 12), (12, 36))),
        *(("exact_ot", n, m) for n, m in ((18, 12), (12, 36))),
    ],
)
def test_marginals_are_those_of_the_batches(name, n, m):
    """Over keys every point is in an equal share of the pairs; one of the larger batch in one."""
    x0, x1 = batches(n=n, m=m)
    repetitions, size = 200, max(n, m)
    total = np.zeros(n), np.zeros(m)
    for k in range(repetitions):
        pairs = PRESERVING[name](x0, x1, key=mx.random.key(k))
        assert len(pairs[0]) == len(pairs[1]) == size
        for side, index in enumerate(pairs):
            total[side][:] += counts(index, len(total[side]))
        assert (counts(pairs[int(m > n)], size) == 1).all()
    for each, number in zip(total, (n, m), strict=True):
        share = size / number
        # A point's number of pairs varies by less than a binomial's: variance below its mean.
        assert np.abs(each / repetitions - share).max() < 4.5 * math.sqrt(share / repetitions)


@pytest.mark.parametrize("weight", [0.1, 10.0, math.inf])
def test_conditional_couplings_keep_the_marginals(weight):
    """An exact plan is a permutation under any cost; x0 keeps the condition it was drawn with."""
    x0, x1 = batches(n=48)
    labels = np.arange(48) % 3
    i, j = conditional(exact_ot, weight=weight)(x0, x1, mx.array(labels))
    assert (counts(i, 48) == 1).all()
    assert (counts(j, 48) == 1).all()
    kept = (labels[np.array(i)] == labels[np.array(j)]).mean()
    assert kept == 1 if weight == math.inf else kept > 1 / 3


@pytest.mark.parametrize("name", ["independent", "exact_ot"])
def test_every_point_is_used_exactly_once(name, key):
    for index in COUPLINGS[name](*batches(), key=key):
        np.testing.assert_array_equal(np.sort(np.array(index)), np.arange(64))


def test_costs_rise_from_exact_over_entropic_to_independent():
    x0, x1 = batches(n=100)
    ladder = [exact_ot, sinkhorn(0.02), sinkhorn(0.5), sinkhorn(100.0)]
    costs = [np.mean([mean_cost(c, x0, x1, mx.random.key(k)) for k in range(20)]) for c in ladder]
    assert costs == sorted(costs)
    assert costs[1] < 1.2 * costs[0]
    every_pair = squared_distances(np.array(x0), np.array(x1)).mean()
    assert costs[3] == pytest.approx(every_pair, rel=0.05)
    assert costs[2] < 0.7 * every_pair


@pytest.mark.parametrize("coupling", [exact_ot, sinkhorn(1e-4)], ids=["exact_ot", "sinkhorn"])
def test_on_a_line_transport_sorts(coupling, key):
    """The spacing of 0.1 costs more than a regularisation of 1e-4 gives."""
    rng = np.random.default_rng(0)
    x0, x1 = rng.permutation(30)[:, None] * 0.1, rng.permutation(30)[:, None] * 0.1 + 5
    i, j = (np.array(index) for index in coupling(mx.array(x0), mx.array(x1), key=key))
    np.testing.assert_allclose(x1[j] - x0[i], 5, atol=1e-5)


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_batch_of_one(name, key):
    i, j = COUPLINGS[name](mx.zeros((1, 2)), mx.ones((1, 2)), key=key)
    assert (i.tolist(), j.tolist()) == ([0], [0])


@pytest.mark.parametrize("name", COUPLINGS)
def test_points_that_are_all_one(name, key):
    i, j = COUPLINGS[name](mx.ones((10, 2)), mx.ones((10, 2)), key=key)
    assert len(i) == len(j) == (9 if name == "partial" else 10)


@pytest.mark.parametrize("name", TRANSPORT)
def test_duplicates_are_points_of_their_own(name, key):
    x = mx.concatenate([mx.zeros((10, 2)), mx.ones((10, 2)) * 8])
    i, j = (np.array(index) for index in COUPLINGS[name](x, x, key=key))
    np.testing.assert_array_equal(i < 10, j < 10)
    if name != "sinkhorn":
        assert counts(i, 20).max() == 1


@pytest.mark.parametrize("name", TRANSPORT)
def test_points_that_are_not_finite_are_refused(name, key):
    for bad in (math.nan, math.inf):
        x0, x1 = batches()
        x1[3, 1] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            COUPLINGS[name](x0, x1, key=key)


@pytest.mark.parametrize("name", TRANSPORT)
def test_images_are_compared_by_all_pixels(name, key):
    x0 = 10 * mx.random.normal((16, 4, 4, 2), key=mx.random.key(1))
    shuffle = np.random.default_rng(0).permutation(16)
    i, j = COUPLINGS[name](x0, x0[mx.array(shuffle)], key=key)
    np.testing.assert_array_equal(np.array(i), shuffle[np.array(j)])


def test_independent_keeps_the_order():
    for index in independent(*batches()):
        np.testing.assert_array_equal(index, np.arange(64))


def test_exact_ot_is_the_cheapest_of_all_permutations():
    x0, x1 = batches(n=6)
    i, j = exact_ot(x0, x1)
    cost = squared_distances(np.array(x0), np.array(x1))
    best = min(cost[np.arange(6), list(p)].sum() for p in itertools.permutations(range(6)))
    assert cost[np.array(i), np.array(j)].sum() == pytest.approx(best)


def test_exact_ot_of_unequal_batches_is_the_optimal_plan():
    """2 points of mass 1/2 to 4 of mass 1/4: of the six ways to halve the four, the cheapest."""
    x0, x1 = batches(n=2, m=4)
    i, j = exact_ot(x0, x1)  # comes out even: no key
    cost = squared_distances(np.array(x0), np.array(x1))
    halves = [list(h) for h in itertools.combinations(range(4), 2)]
    best = min(cost[0, h].sum() + np.delete(cost[1], h).sum() for h in halves)
    assert cost[np.array(i), np.array(j)].sum() == pytest.approx(best)


@pytest.mark.parametrize(("n", "m"), [(5, 3), (3, 5), (7, 4)])
def test_exact_ot_repeats_points_as_evenly_as_can_be_and_pairs_those_best(n, m, key):
    x0, x1 = batches(n=n, m=m)
    i, j = (np.array(index) for index in exact_ot(x0, x1, key=key))
    for index, size in ((i, n), (j, m)):
        assert set(counts(index, size)) <= {max(n, m) // size, -(-max(n, m) // size)}
    cost = squared_distances(np.array(x0), np.array(x1))
    best = min(cost[i, list(order)].sum() for order in itertools.permutations(j))
    assert cost[i, j].sum() == pytest.approx(best)


@pytest.mark.parametrize("coupling", [exact_ot, sinkhorn()], ids=["exact_ot", "sinkhorn"])
def test_what_is_random_asks_for_a_key(coupling):
    with pytest.raises(ValueError, match="pass key="):
        coupling(*batches(n=3, m=4))


# Relaxed couplings


@pytest.mark.parametrize("mass", [0.2, 0.6, 1.0])
def test_partial_is_the_cheapest_of_its_size(mass):
    x0, x1 = batches(n=5)
    i, j = partial(mass)(x0, x1)
    cost = squared_distances(np.array(x0), np.array(x1))
    k = round(5 * mass)
    best = min(
        cost[list(rows), list(columns)].sum()
        for rows in itertools.combinations(range(5), k)
        for columns in itertools.permutations(range(5), k)
    )
    assert len(i) == k == len(set(i.tolist())) == len(set(j.tolist()))
    assert cost[np.array(i), np.array(j)].sum() == pytest.approx(best)


def test_partial_mass_really_reduces_the_pairs(key):
    x0, x1 = batches(n=100, m=80)
    assert [len(partial(mass)(x0, x1, key=key)[0]) for mass in (0.25, 0.5, 1.0)] == [25, 50, 100]


def test_relaxed_couplings_leave_an_outlier_out(key):
    x0, x1 = batches(n=50)
    x1[7] = mx.array([40.0, 40.0])
    for coupling in (partial(0.9), unbalanced(5.0, reg=0.1)):
        assert 7 not in coupling(x0, x1, key=key)[1].tolist()
        assert 7 not in coupling(x1, x0, key=key)[0].tolist()
    assert 7 in exact_ot(x0, x1)[1].tolist()


def test_unbalanced_pairs_are_even_where_the_marginals_are_held():
    x0, x1 = batches(n=50)
    i, j = unbalanced(1e6, reg=0.1)(x0, x1, key=mx.random.key(0))
    balanced = sinkhorn(0.1)(x0, x1, key=mx.random.key(0))
    assert (counts(i, 50) == 1).all()
    a, b = (mx.square(x0[p] - x1[q]).sum().item() for p, q in ((i, j), balanced))
    assert a == pytest.approx(b, rel=0.3)


def test_plan_without_mass_raises(key):
    x0, x1 = batches()
    with pytest.raises(NotConverged, match="no mass left; give a larger reg_m"):
        unbalanced(1e-6, reg=1e-6)(x0, x1 + 100, key=key)


def test_a_coupling_is_found_by_its_name(key):
    assert by_name("exact_ot", 0.0) is exact_ot
    x0, x1 = batches()
    half, two, expected = (
        make(x0, x1, key=key)[1].tolist()
        for make in (by_name("schroedinger", 0.5), by_name("schroedinger", 2.0), schroedinger(0.5))
    )
    assert half == expected != two
    with pytest.raises(ValueError, match="unknown coupling 'exact'"):
        by_name("exact", 0.0)


# Regularisation


def test_regularisation_relative_to_the_mean_cost(key):
    x0, x1 = batches()
    scale = squared_distances(np.array(x0), np.array(x1)).mean()
    _, a = sinkhorn(OfMeanCost(0.1))(x0, x1, key=key)
    _, b = sinkhorn(0.1 * scale)(x0, x1, key=key)
    _, c = sinkhorn(OfMeanCost(0.1))(1e3 * x0, 1e3 * x1, key=key)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


def test_schroedinger_plan_is_proportional_to_the_brownian_transition():
    """Between {0, 1} and {0, 1}, a pair is crossed with odds exp(-1 / (2 sigma^2))."""
    x, sigma = mx.array([[0.0], [1.0]]), 0.8
    crossed = np.mean(
        [
            (i != j).astype(mx.float32).mean().item()
            for i, j in (schroedinger(sigma)(x, x, key=mx.random.key(k)) for k in range(1000))
        ]
    )
    odds = math.exp(-1 / (2 * sigma**2))
    assert crossed == pytest.approx(odds / (1 + odds), abs=4.5 * math.sqrt(0.25 / 2000))


def test_plans_that_do_not_converge_raise(key):
    x0, x1 = batches()
    with pytest.raises(NotConverged, match="after 20 iterations"):
        sinkhorn(1e-2, iterations=20)(x0, x1, key=key)


# Points of very different sizes in one batch


@pytest.mark.parametrize(("d", "side"), [(2, 0), (64, 1)])
@pytest.mark.parametrize(
    "coupling", [exact_ot, partial(0.9), partial(1.0)], ids=["exact_ot", "0.9", "1.0"]
)
def test_exact_pairs_of_the_others_beside_a_point_far_away(coupling, side, d):
    rng = np.random.default_rng(d)
    points = [rng.normal(size=(50, d)), rng.normal(size=(50, d))]
    points[side][3] = 1e10
    i, j = coupling.pair(*points, rng=None)
    others = (i, j)[side] != 3
    cost = ((points[0][i[others]][:, None] - points[1][j[others]]) ** 2).sum(-1)
    assert np.trace(cost) == pytest.approx(cost[linear_sum_assignment(cost)].sum(), rel=1e-12)


@pytest.mark.parametrize("make", [sinkhorn, schroedinger], ids=["sinkhorn", "schroedinger"])
@pytest.mark.parametrize("amount", [5e-4, 1e-9])
def test_a_tiny_regularisation_gives_the_exact_pairs(make, amount, key):
    """And of points beside one far away, too."""
    x0, x1 = (np.array(x) for x in batches(n=60))
    x0[5] = 1e8
    i, j = (np.array(index) for index in make(amount)(x0, x1, key=key))
    exact = exact_ot.pair(x0, x1, rng=None)[1]
    assert (j == exact[i]).mean() > (0.8 if amount > 1e-6 else 0.99)


def test_unbalanced_of_a_tiny_regularisation_leaves_the_far_point_out(key):
    x0, x1 = (np.array(x) for x in batches(n=60))
    x1[7] = 1e8
    i, j = (np.array(index) for index in unbalanced(50.0, reg=1e-6)(x0, x1, key=key))
    assert 7 not in j
    assert np.square(x0[i] - x1[j]).sum(1).mean() < 2


@pytest.mark.parametrize("coupling", [sinkhorn(), unbalanced()], ids=["sinkhorn", "unbalanced"])
def test_a_share_of_a_mean_that_one_point_makes_is_warned_of(coupling, key, recwarn):
    x0, x1 = batches(n=60)
    coupling(x0, x1, key=key)
    assert not recwarn
    x1[7] = 1e6
    with pytest.warns(UserWarning, match="points far away .* give it as a number"):
        coupling(x0, x1, key=key)


def test_a_large_plan_says_what_float32_does_not_resolve(key, monkeypatch):
    monkeypatch.setattr(entropic, "KEPT", 100)
    x0, x1 = batches(n=60)
    with pytest.raises(NotConverged, match=r"float32.* larger reg"):
        sinkhorn(1e-7)(x0, x1, key=key)


def test_a_plan_too_large_to_keep_is_computed_in_blocks(key, monkeypatch):
    x0, x1 = batches(n=80, m=50)
    _, whole = sinkhorn(0.3, tolerance=1e-5)(x0, x1, key=key)
    monkeypatch.setattr(entropic, "KEPT", 100)
    _, blocked = sinkhorn(0.3, tolerance=1e-5)(x0, x1, key=key)
    assert (np.array(whole) == np.array(blocked)).mean() > 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sinkhorn(0.0), "reg is 0.0; expected a number above 0"),
        (lambda: sinkhorn(OfMeanCost(-1)), "reg.share is -1"),
        (lambda: sinkhorn(math.nan), "reg is nan"),
        (lambda: unbalanced(0.0), "reg_m is 0.0"),
        (lambda: partial(0.0), "mass is 0.0"),
        (lambda: partial(1.5), "mass is 1.5"),
        (lambda: conditional(weight=0), "weight is 0"),
        (lambda: partial(0.1)(*batches(n=2)), "is no pair"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Conditions


def labelled(n=300, seed=0):
    """x1 to the left or the right by its label; x0 knows nothing of it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    x1 = rng.normal(size=(n, 2)) + np.outer(4.0 * labels - 2, [1, 0])
    return mx.array(rng.normal(size=(n, 2))), mx.array(x1), mx.array(labels)


def source_skew(coupling, x0, x1, condition, key):
    """Correlation of the source's first column with the condition of its partner; 0 is right."""
    conditions = (condition,) if coupling.conditional else ()
    i, j = coupling(x0, x1, *conditions, key=key)
    return abs(np.corrcoef(np.array(x0[i])[:, 0], np.array(condition[j]))[0, 1])


def test_source_does_not_depend_on_labels_where_they_enter_the_cost(key):
    x0, x1, labels = labelled()
    chance = 4.5 / math.sqrt(300)
    assert source_skew(exact_ot, x0, x1, labels, key) > 0.7  # the failure this is for
    for coupling in (exact_ot, sinkhorn(), partial(0.95)):
        assert source_skew(conditional(coupling), x0, x1, labels, key) < chance


def test_labels_are_kept_and_transport_within_each_is_optimal(key):
    x0, x1, labels = labelled(40)
    i, j = (np.array(index) for index in conditional(exact_ot)(x0, x1, labels, key=key))
    y = np.array(labels)
    np.testing.assert_array_equal(y[i], y[j])
    for label in (0, 1):
        members = np.flatnonzero(y == label)
        a, b = exact_ot(np.array(x0)[members], np.array(x1)[members])
        expected = dict(zip(members[np.array(a)], members[np.array(b)], strict=True))
        assert expected == {p: q for p, q in zip(i, j, strict=True) if y[p] == label}


def test_a_large_weight_on_labels_is_an_infinite_one(key):
    x0, x1, labels = labelled(40)
    pairs = [
        sorted(
            zip(*(index.tolist() for index in conditional(weight=w)(x0, x1, labels)), strict=True)
        )
        for w in (1e6, math.inf)
    ]
    assert pairs[0] == pairs[1]


def test_labels_are_one_apart_whatever_their_numbers():
    x0, x1, labels = labelled(40)
    i, j = conditional(weight=2.0)(x0, x1, 100 * labels + 7)
    best = squared_distances(np.array(x0), np.array(x1))  # plus 2 where the labels differ
    y = np.array(labels)
    best += 2.0 * (y[:, None] != y)
    least = best[assign(best)].sum()
    assert best[np.array(i), np.array(j)].sum() == pytest.approx(least)


def test_weight_takes_the_skew_out_of_continuous_conditions(key):
    x0, x1, _ = labelled()
    condition = x1[:, 0]
    skews = [
        source_skew(c, x0, x1, condition, key)
        for c in (exact_ot, conditional(weight=1.0), conditional(weight=100.0), conditional())
    ]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.7
    assert skews[2] < 4.5 / math.sqrt(300)


def test_distinct_conditions_with_infinite_weight_keep_the_order(key):
    x0, x1, _ = labelled(30)
    i, j = conditional()(x0, x1, x1[:, 0])
    np.testing.assert_array_equal(i, j)


def test_conditional_says_what_is_wrong():
    x0, x1, labels = labelled(10)
    with pytest.raises(TypeError, match="independent needs none"):
        conditional(independent)
    with pytest.raises(ValueError, match="x0 has 10 samples, x1 9 and its conditions 10"):
        conditional()(x0, x1[:9], labels)
    with pytest.raises(ValueError, match="conditions contain NaN"):
        conditional()(x0, x1, mx.full((10,), math.nan))

import ctypes
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from flowmlx.native import libraries as native
from flowmlx.transport import assignment
from flowmlx.transport.assignment import BAD_NUMBER, assign, shortest_paths, transport


@pytest.fixture(params=["compiled", "scipy"])
def solver(request, monkeypatch):
    if request.param == "scipy":
        monkeypatch.setenv("FLOWMLX_JIT", "0")
    elif native.c_compiler() is None:
        pytest.skip("needs a C compiler")
    assert (native.library(assignment.SOURCE) is None) == (request.param == "scipy")


def costs(kind, n):
    rng = np.random.default_rng(n)
    if kind == "uniform":
        return rng.uniform(size=(n, n))
    if kind == "integers with ties":
        return rng.integers(0, 4, (n, n)).astype(float)
    if kind == "all equal":
        return np.full((n, n), 3.0)
    if kind == "one outlier":
        cost = rng.uniform(size=(n, n))
        cost[0] += 1e12
        return cost
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 2)) ** 3
    scale, shift = {"plane": (1, 0), "tiny": (1e-20, 0), "huge": (1e20, 0), "negative": (1, -50)}[
        kind
    ]
    return scale * ((x[:, None] - y) ** 2).sum(-1) + shift


KINDS = [
    "uniform",
    "integers with ties",
    "all equal",
    "one outlier",
    "plane",
    "tiny",
    "huge",
    "negative",
]


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("kind", KINDS)
def test_assignment_costs_what_the_best_permutation_costs(kind):
    for n in (1, 2, 7, 200):
        cost = costs(kind, n)
        i, j = assign(cost)
        np.testing.assert_array_equal(np.sort(i), np.arange(n))
        np.testing.assert_array_equal(np.sort(j), np.arange(n))
        best = cost[linear_sum_assignment(cost)].sum()
        assert cost[i, j].sum() == pytest.approx(best, rel=1e-12, abs=1e-12 * np.abs(cost).max())


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("kind", KINDS)
def test_plans_cost_what_the_best_costs(kind):
    """Points repeated to the least common multiple of the sizes make an assignment problem."""
    for n, m in ((1, 5), (6, 4), (4, 6), (3, 12), (21, 20)):
        cost = costs(kind, max(n, m))[:n, :m]
        i, j, mass = transport(cost)
        plan = np.zeros((n, m))
        np.add.at(plan, (i, j), mass)
        assert (mass > 0).all()
        np.testing.assert_allclose(plan.sum(1), 1 / n, rtol=1e-9)
        np.testing.assert_allclose(plan.sum(0), 1 / m, rtol=1e-9)
        size = math.lcm(n, m)
        repeated = cost.repeat(size // n, 0).repeat(size // m, 1)
        best = repeated[linear_sum_assignment(repeated)].mean()
        assert mass @ cost[i, j] == pytest.approx(best, rel=1e-9, abs=1e-9 * np.abs(cost).max())


def test_a_plan_is_a_vertex_of_all_plans():
    """Where one plan is the best it moves mass between fewer than n + m pairs."""
    i, _, mass = transport(costs("plane", 200)[:, :199])
    assert len(i) == len(mass) == 200 + 199 - 1


@pytest.mark.usefixtures("solver")
def test_any_layout_and_dtype_of_costs_will_do_and_stays_as_it_is():
    cost = np.random.default_rng(0).uniform(size=(60, 90))
    expected = assign(cost[:, :60].copy())[1]
    for same in (cost[:, :60], np.asfortranarray(cost[:, :60])):
        before = same.copy()
        np.testing.assert_array_equal(assign(same)[1], expected)
        np.testing.assert_array_equal(same, before)
    whole = np.random.default_rng(1).integers(0, 100, (50, 50))
    i, j = assign(whole)
    assert whole[i, j].sum() == whole[linear_sum_assignment(whole)].sum()


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "one outlier"])
def test_any_potentials_lead_to_the_best_permutation(kind):
    cost = costs(kind, 40)
    best, largest = cost[linear_sum_assignment(cost)].sum(), np.abs(cost).max()
    for far in (0, 1, 100):
        columns = far * largest * np.random.default_rng(1).normal(size=40)
        found = cost[np.arange(40), shortest_paths(cost, columns)].sum()
        assert found == pytest.approx(best, rel=1e-12, abs=(1 + far) * 1e-14 * largest * 40)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("scale", [1e-300, 1e281, 1e300, -1e292])
def test_costs_of_any_size_end_well(scale):
    for seed in range(50):
        cost = scale * np.random.default_rng(seed).integers(0, 9, (12, 12))
        i, j = assign(cost)
        assert cost[i, j].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())


def test_costs_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 4\); expected \(n, n\)"):
        assign(np.ones((3, 4)))


@pytest.mark.usefixtures("solver")
def test_costs_that_are_not_finite_are_refused():
    for bad in (np.nan, np.inf, -np.inf):
        cost = np.random.default_rng(0).uniform(size=(20, 20))
        cost[3, 4] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            assign(cost)


@pytest.mark.skipif(native.c_compiler() is None, reason="needs a C compiler")
def test_both_solvers_find_the_same_permutation(monkeypatch):
    cost = costs("plane", 400)
    found = assign(cost)[1]
    monkeypatch.setenv("FLOWMLX_JIT", "0")
    np.testing.assert_array_equal(assign(cost)[1], found)


# Costs of very different sizes in one matrix


def far_points(kind, n, m):
    """Squared distances in the plane, and which points are near each other."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    near = np.ones(n, bool), np.ones(m, bool)
    if kind == "far source":
        x[2], near[0][2] = 1e10, False
    elif kind == "far target":
        y[2], near[1][2] = 1e10, False
    elif kind == "ever farther targets":
        for k, scale in enumerate((1e8, 1e16, 1e30)):
            y[k], near[1][k] = scale, False
    elif kind == "a small group":
        x[: n // 2] = 1e-15 * x[: n // 2] + 3
        y[: m // 2] = 1e-15 * y[: m // 2] + 3
    elif kind == "two groups far apart":
        x[: n // 2] += 1e12
        y[: m // 2 + 3] += 1e12
    cost = ((x[:, None] - y) ** 2).sum(-1)
    return cost, near


FAR = ["far source", "far target", "ever farther targets", "a small group", "two groups far apart"]


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("sizes", [(40, 40), (24, 16)])
def test_points_far_away_leave_the_others_as_they_are(kind, sizes):
    """The pairs between near points are the best of these points, as the cost of them alone is."""
    cost, (rows, columns) = far_points(kind, *sizes)
    i, j, mass = transport(cost)
    pairs = np.round(mass * math.lcm(*sizes)).astype(int)
    i, j = i.repeat(pairs), j.repeat(pairs)
    those = rows[i] & columns[j] & (cost[i, j] < 1e20)
    alone = cost[np.ix_(i[those], j[those])]
    best = alone[linear_sum_assignment(alone)].sum()
    assert cost[i[those], j[those]].sum() == pytest.approx(best, rel=1e-12, abs=0)


@pytest.mark.skipif(native.c_compiler() is None, reason="needs a C compiler")
@pytest.mark.parametrize("seed", range(12))
def test_a_plan_is_the_best_in_exact_arithmetic(seed):
    rng = np.random.default_rng(seed)
    cost = 10.0 ** rng.uniform(-60, 60, (6, 6))
    if seed % 2:  # whole rows and columns of one size
        cost = 10.0 ** (rng.uniform(-30, 30, (6, 1)) + rng.uniform(-30, 30, 6))
    if seed % 4 == 2:
        cost *= rng.choice([-1, 1], cost.shape)
    exact = [[Fraction(c) for c in row] for row in cost]

    def total(permutation):
        return sum(exact[i][j] for i, j in enumerate(permutation))

    found = assign(cost)[1]
    assert total(found.tolist()) == min(map(total, itertools.permutations(range(6))))


@pytest.mark.skipif(native.c_compiler() is None, reason="needs a C compiler")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_compiled_transport_refuses_what_would_lead_it_astray(bad):
    """Whoever calls it: a number at any place, and sizes that do not come out even."""
    compiled = native.library(assignment.SOURCE)
    flows = np.empty((13, 4), np.int32)

    def call(cost, v, supply=1):
        arrays = (x.ctypes.data_as(ctypes.c_void_p) for x in (cost, v, flows))
        return compiled.transport(*map(ctypes.c_int, (3, 4, 4 * supply, 3)), *arrays)

    cost, v = np.random.default_rng(0).uniform(size=(3, 4)), np.zeros(4)
    assert call(cost, v.copy()) >= 4
    for place in np.ndindex(3, 4):
        wrong = cost.copy()
        wrong[place] = bad
        assert call(wrong, v.copy()) == BAD_NUMBER
    for place in range(4):
        wrong = v.copy()
        wrong[place] = bad
        assert call(cost, wrong) == BAD_NUMBER
    assert call(cost, v.copy(), supply=2) < 0
    assert call(cost, v.copy(), supply=-1) < 0


@pytest.mark.parametrize(("cost", "columns", "name"), [(np.nan, 0, "cost"), (0, np.nan, "columns")])
def test_a_number_that_is_not_finite_is_named(cost, columns, name):
    with pytest.raises(ValueError, match=f"^{name} holds NaN"):
        shortest_paths(np.full((3, 3), float(cost)), np.full(3, float(columns)))

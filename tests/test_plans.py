import math

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from flowmlx.transport.assignment import reduced_costs
from flowmlx.transport.entropic import NotConverged
from flowmlx.transport.plans import plan, solve


def costs(n=40, m=40, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 1
    return ((x[:, None] - y) ** 2).sum(-1)


def far_point(n=40, where=1e10):
    """Costs of points of which the first of x is far away."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 2))
    x[0] = where
    return ((x[:, None] - y) ** 2).sum(-1)


def check_balanced(p, cost, reg, tolerance):
    """Marginals, and log P = (f_i + g_j - c_ij) / reg: together they are of one plan only."""
    n, m = p.shape
    np.testing.assert_allclose(p.sum(1), 1 / n, rtol=1e-9)
    assert np.abs(p.sum(0) - 1 / m).sum() < tolerance
    # The difference of two rows is that of their f wherever both have mass.
    height = reg * np.log(np.maximum(p, 1e-250)) + cost
    for i in range(1, n):
        both = (p[i - 1] > 1e-200) & (p[i] > 1e-200)
        change = height[i - 1, both] - height[i, both]
        if both.any():
            assert np.ptp(change) < 1e-6 * reg + 1e-14 * cost[:, both].max()


# As shares of the largest cost: down to 1e-4 they are Sinkhorn's, and Newton's from there.
@pytest.mark.parametrize(
    ("share", "sizes"),
    [
        *((share, (40, 40)) for share in (1e-2, 2e-4, 5e-5, 1e-6, 1e-8, 1e-15, 1e-30)),
        *((share, sizes) for share in (2e-4, 1e-8) for sizes in ((40, 25), (25, 40))),
    ],
)
def test_plans_are_right_however_small_reg_is(share, sizes):
    cost = costs(*sizes)
    reg = share * cost.max()
    tolerance = 1e-3 if share > 1e-4 else 1e-6
    check_balanced(plan(cost, reg, tolerance=tolerance), cost, reg, 2 * tolerance)


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_units_do_not_matter(scale):
    p = plan(costs(), 1e-5, tolerance=1e-8)
    np.testing.assert_allclose(plan(scale * costs(), scale * 1e-5, tolerance=1e-8), p, atol=1e-9)


def test_a_plan_of_little_entropy_is_nearly_the_exact_one():
    cost = costs(100, 100)
    i, j = linear_sum_assignment(cost)
    shares = [100 * plan(cost, reg, tolerance=1e-5)[i, j].mean() for reg in (0.3, 1e-3, 5e-7)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.999


def test_equal_points_share_their_mass():
    """Two points of x in one place, between two of y: exp(-c / reg) of each is what remains."""
    for reg in (1.0, 1e-3, 1e-9):
        p = plan(np.array([[0.0, 1.0], [0.0, 1.0]]), reg)
        np.testing.assert_allclose(p, 0.25, rtol=1e-3)


def test_two_points_in_closed_form():
    """On [[0, c], [c, 0]] the share off the diagonal is 1 / (1 + e^(c / reg))."""
    for ratio in (1e-1, 5.0, 30.0):
        cost = np.array([[0.0, 1.0, 1e6], [1.0, 0.0, 1e6], [1e6, 1e6, 0.0]])  # for Newton's method
        p = plan(cost, 1 / ratio, tolerance=1e-9)
        assert p[0, 1] == pytest.approx(1 / 3 / (1 + math.exp(ratio)), rel=1e-6)


@pytest.mark.parametrize("where", [1e3, 1e10])
@pytest.mark.parametrize("reg", [0.5, 1e-3])
def test_a_point_far_away_leaves_the_plan_of_the_others(where, reg):
    """It meets the point that it is nearest to, by far; the others have the plan without both."""
    cost = far_point(where=where)
    met = cost[0].argmin()
    p = plan(cost, reg, tolerance=1e-8)
    assert 40 * p[0, met] == pytest.approx(1, abs=1e-6)
    rest = np.delete(np.delete(cost, 0, 0), met, 1)
    alone = plan(rest, reg, tolerance=1e-5)
    np.testing.assert_allclose(40 * np.delete(np.delete(p, 0, 0), met, 1), 39 * alone, atol=1e-3)


@pytest.mark.parametrize(("reg", "reg_m"), [(1e-4, 1.0), (1e-7, 0.1), (1e-7, 100.0)])
def test_unbalanced_plans_of_a_small_reg(reg, reg_m):
    """f = -reg_m log(n row mass), and the same for g, give the plan back: its optimality."""
    cost = costs(30, 20)
    p = plan(cost, reg, reg_m=reg_m, tolerance=1e-9)
    f, g = (-reg_m * np.log(np.maximum(k * p.sum(axis), 1e-200)) for k, axis in ((30, 1), (20, 0)))
    mass = p > 1e-3 / cost.size
    height = f[:, None] + g - cost
    np.testing.assert_allclose(height[mass], reg * np.log(600 * p[mass]), atol=1e-5 * reg_m)
    reached = (p.sum(1) > 1e-190)[:, None] & (p.sum(0) > 1e-190)
    assert height[reached & ~mass].max() < 1e-5 * reg_m


def test_reduced_costs_are_of_an_optimal_dual():
    """At least 0, and 0 along the plan; a difference of costs in a circle stays what it was."""
    for cost in (costs(), costs(30, 20), far_point(), 1e-60 * costs(), -costs()):
        gaps = reduced_costs(cost)
        assert (gaps >= 0).all()
        assert gaps.min(1).max() == gaps.min(0).max() == 0
        circle = [c[1:, 1:] - c[1:, :1] - c[:1, 1:] + c[:1, :1] for c in (cost, gaps)]
        np.testing.assert_allclose(*circle, rtol=1e-9, atol=1e-15 * np.abs(cost).max())


def test_far_points_leave_reduced_costs_exact():
    gaps, cost = reduced_costs(far_point()), far_point()
    circle = [c[2:, 1:] - c[2:, :1] - c[1:2, 1:] + c[1:2, :1] for c in (cost, gaps)]
    np.testing.assert_allclose(*circle, rtol=1e-12, atol=1e-12)


def test_what_does_not_converge_says_what_to_do():
    with pytest.raises(NotConverged, match=r"Newton.*larger reg \(here 1e-07\)"):
        solve(costs(), 1e-7, tolerance=-1.0)

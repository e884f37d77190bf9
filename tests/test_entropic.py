import math

import numpy as np
import pytest

from flowmlx.transport import entropic
from flowmlx.transport.entropic import NotConverged, draw, potentials
from flowmlx.transport.plans import plan


def costs(n=40, m=60, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 1
    return ((x[:, None] - y) ** 2).sum(-1)


@pytest.mark.parametrize("reg", [1.0, 0.1, 0.05])
def test_plan_is_the_one_that_is_optimal(reg):
    """Marginals 1/n and 1/m, and log P = (f_i + g_j - c_ij) / reg: both decide the plan."""
    cost = costs()
    p = plan(cost, reg, tolerance=1e-4)
    np.testing.assert_allclose(p.sum(1), 1 / 40, rtol=1e-3)
    assert np.abs(p.sum(0) - 1 / 60).sum() < 2e-4
    exponent = np.log(p) + cost / reg
    exponent -= exponent.mean(0) + exponent.mean(1, keepdims=True) - exponent.mean()
    np.testing.assert_allclose(exponent, 0, atol=1e-6)


@pytest.mark.parametrize("reg_m", [0.2, 1.0, 10.0])
def test_unbalanced_plan_meets_its_optimality_condition(reg_m):
    """f = -reg_m log(n row mass), and the same for g: the derivative of the marginals' penalty."""
    cost, reg = costs(), 0.1
    p = plan(cost, reg, reg_m=reg_m, tolerance=1e-5)
    row, column = 40 * p.sum(1), 60 * p.sum(0)
    expected = (
        np.exp((-reg_m * np.log(row)[:, None] - reg_m * np.log(column) - cost) / reg) / cost.size
    )
    np.testing.assert_allclose(p, expected, rtol=2e-3, atol=1e-7)
    assert p.sum() < 0.95


def test_plan_of_two_points_in_closed_form():
    """On [[0, 1], [1, 0]] the balanced plan is 1/(1 + e^(1/reg)) off the diagonal, over 2."""
    for reg in (0.1, 0.3, 2.0):
        p = plan(np.array([[0.0, 1.0], [1.0, 0.0]]), reg)
        assert p[0, 1] == pytest.approx(0.5 / (1 + np.exp(1 / reg)), rel=1e-4)


def test_plan_of_gaussians_has_the_known_covariance():
    """N(0,1) -> N(0,1): the covariance c of the plan solves c^2 + c reg/2 = 1 (c with |x-y|^2)."""
    n, reg = 1500, 0.5
    x = np.sort(np.random.default_rng(0).normal(size=n))
    x = (x - x.mean()) / x.std()
    p = plan((x[:, None] - x) ** 2, reg)
    assert x @ p @ x == pytest.approx(-reg / 4 + np.sqrt(1 + (reg / 4) ** 2), abs=0.01)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_block_by_block_is_the_same_plan(shape, monkeypatch):
    cost = costs(*shape).astype(np.float32)
    whole = potentials(lambda rows: cost[rows], shape, 0.1, tolerance=1e-5)
    monkeypatch.setattr(entropic, "KEPT", 100)
    monkeypatch.setattr(entropic, "BLOCK", 7 * shape[1])
    blocked = potentials(lambda rows: cost[rows], shape, 0.1, tolerance=1e-5)
    for a, b in zip(whole, blocked, strict=True):
        np.testing.assert_allclose(a, b + (a - b).mean(), atol=1e-3)


def test_columns_are_drawn_as_the_plan_says():
    cost = costs(3, 4).astype(np.float32)
    _, columns = potentials(lambda rows: cost[rows], (3, 4), 1.0, tolerance=1e-5)
    rows, draws = np.repeat(np.arange(3), 30_000), np.zeros((3, 4))
    drawn = draw(lambda rows: cost[rows], rows, columns, 1.0, rng=np.random.default_rng(0))
    np.add.at(draws, (rows, drawn), 1 / len(rows))
    expected = plan(cost.astype(float), 1.0)
    # Four and a half standard errors of a binomial proportion.
    assert (np.abs(draws - expected) < 4.5 * np.sqrt(expected / len(rows))).all()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_plan_does_not_depend_on_units(scale):
    np.testing.assert_allclose(plan(scale * costs(), scale * 0.1), plan(costs(), 0.1), rtol=1e-4)


def test_outliers_and_heavy_tails_converge_without_a_warning(recwarn):
    cost = costs()
    cost[0] += 1e3
    cost[:, 0] += 1e3
    rng = np.random.default_rng(0)
    tails = (rng.standard_cauchy(40)[:, None] - rng.standard_cauchy(60)) ** 2
    for case in (cost, tails):
        p = plan(case, 0.01 * case.mean())
        assert np.abs(p.sum(0) - 1 / 60).sum() < 2e-3
    assert not recwarn


def test_what_does_not_converge_raises_and_says_what_to_do():
    """A few pairs have to bridge two clusters, which takes the more rounds the smaller reg is."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)) + 50 * (np.arange(300) < 150)[:, None]
    y = rng.normal(size=(300, 2)) + 50 * (np.arange(300) < 149)[:, None]
    cost = ((x[:, None] - y) ** 2).sum(-1)
    relative = (cost / cost.mean()).astype(np.float32)
    potentials(lambda rows: relative[rows], cost.shape, 0.2, iterations=1_000)
    with pytest.raises(NotConverged, match=r"misses its marginals by .* larger reg \(here 0.02\)"):
        potentials(lambda rows: relative[rows], cost.shape, 0.02, iterations=1_000)


def test_costs_that_are_not_finite_raise():
    cost = np.full((3, 3), np.nan, np.float32)
    with pytest.raises(NotConverged, match="by nan"):
        potentials(lambda rows: cost[rows], (3, 3), 0.1)


@pytest.mark.parametrize("reg", [0.0, -1.0, math.nan, math.inf])
def test_a_plan_needs_a_reg_above_0(reg):
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        plan(np.eye(3), reg)

import functools
import importlib
import math
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import chi2, norm

from flowmlx.couplings import conditional, exact_ot, sinkhorn
from flowmlx.couplings.semidiscrete import (
    fit_semidiscrete,
    load_semidiscrete,
    save_semidiscrete,
    semidiscrete,
)
from flowmlx.data.toy import moons, normal
from flowmlx.transport.entropic import NotConverged

KEY = mx.random.key(0)


def rows_of(n, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) * np.linspace(1, 2, dim) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def plane():
    """100 rows in the plane, and their potential under standard normal draws."""
    rows = np.array(moons(100, key=KEY))
    return rows, fit_semidiscrete(rows, normal, key=KEY)


def draws(dim, n=40_000, seed=7):
    return normal(n, key=mx.random.key(seed), dim=dim)


def chosen(fitted, rows, x0, key=KEY):
    i, j = semidiscrete(fitted, rows)(x0, rows, key=key)
    np.testing.assert_array_equal(i, np.arange(len(x0)))
    return np.array(j)


def assert_uniform(j, n, slack=0.0):
    """Pearson's statistic stays below its 1 - 1e-6 quantile, with `slack` imbalance on top."""
    counts = np.bincount(j, minlength=n)
    statistic = ((counts - len(j) / n) ** 2).sum() / (len(j) / n)
    assert statistic < chi2.ppf(1 - 1e-6, max(n - 1, 1)) + slack**2 * len(j)


@pytest.mark.parametrize("dim", [2, 3, 8], ids=["grid 2D", "grid 3D", "all 8D"])
def test_every_row_is_chosen_equally_often(dim):
    rows = rows_of(60, dim)
    fitted = fit_semidiscrete(rows, partial(normal, dim=dim), key=KEY)
    assert fitted.imbalance < 0.05
    assert_uniform(chosen(fitted, rows, draws(dim)), 60, slack=0.03)
    flat = fitted.__class__(0 * fitted.potential, fitted.box, 0.0, 0.0, fitted.fingerprint)
    with pytest.raises(AssertionError):  # nearest rows are not chosen equally often
        assert_uniform(chosen(flat, rows, draws(dim)), 60, slack=0.03)


def test_on_a_line_the_map_is_that_of_the_quantiles():
    """The k-th of n rows in order takes the draws between the quantiles k/n and (k+1)/n."""
    rows = np.random.default_rng(0).permutation(np.arange(20.0) ** 1.5)[:, None]
    fitted = fit_semidiscrete(rows, partial(normal, dim=1), key=KEY)
    x0 = np.array(draws(1))[:, 0]
    level = 20 * norm.cdf(x0)
    inner = np.abs(level - np.round(level)) > 0.1  # a border is not known better than this
    j = chosen(fitted, rows, mx.array(x0[:, None]))
    rank = np.argsort(np.argsort(rows[:, 0]))[j]
    np.testing.assert_array_equal(rank[inner], level[inner].astype(int))


def test_cost_is_that_of_exact_transport_of_a_large_sample(plane):
    rows, fitted = plane
    x0 = draws(2, 2000)
    i, j = exact_ot(x0, rows)  # 20 copies of each row
    exact = ((np.array(x0)[np.array(i)] - rows[np.array(j)]) ** 2).sum(1)
    ours = ((np.array(x0) - rows[chosen(fitted, rows, x0)]) ** 2).sum(1)
    # Their difference is the sample's noise alone, which most of the points share.
    assert ours.mean() == pytest.approx(exact.mean(), rel=0.03)


def test_regularised_rows_are_drawn_as_from_the_entropic_plan(plane):
    (rows, _), reg = plane, 0.3
    fitted = fit_semidiscrete(rows, normal, key=KEY, reg=reg)
    x0 = draws(2, 2000)
    j = chosen(fitted, rows, x0)
    assert_uniform(j, 100, slack=0.05)
    costs = [((np.array(x0) - rows[j]) ** 2).sum(1).mean()]
    p, q = (np.array(side) for side in sinkhorn(reg)(x0, rows, key=KEY))
    costs.append(((np.array(x0)[p] - rows[q]) ** 2).sum(1).mean())
    assert costs[0] == pytest.approx(costs[1], rel=0.06)


def test_the_same_key_gives_the_same_potential_and_rows():
    rows, keys = rows_of(20), (KEY, KEY, mx.random.key(1))
    one, again, other = (fit_semidiscrete(rows, normal, key=k, steps=20, tolerance=9) for k in keys)
    np.testing.assert_array_equal(again.potential, one.potential)
    assert again.imbalance == one.imbalance != other.imbalance


def test_the_grid_and_comparing_all_agree_far_from_the_origin(monkeypatch):
    rows = rows_of(50) + 1000

    def source(n, *, key):
        return normal(n, key=key) - 500

    fitted = fit_semidiscrete(rows, source, key=KEY, batch_size=512)
    x0 = draws(2, 5000) * 2 - 500  # some are outside of the grid
    by_grid = chosen(fitted, rows, x0)
    monkeypatch.setattr("flowmlx.couplings.semidiscrete.rows.GRID_COLUMNS", 0)
    assert (by_grid == chosen(fitted, rows, x0)).mean() > 0.999
    assert_uniform(chosen(fitted, rows, draws(2) - 500), 50, slack=0.1)


def test_equal_rows_share_their_draws():
    """Three of ten rows are one point: it takes three tenths, and each of the three a tenth."""
    rows = rows_of(10)
    rows[1] = rows[2] = rows[0]
    fitted = fit_semidiscrete(rows, normal, key=KEY, batch_size=256)
    assert len(set(fitted.potential[:3].tolist())) == 1
    assert_uniform(chosen(fitted, rows, draws(2)), 10, slack=0.03)
    with pytest.raises(ValueError, match="pass key="):
        semidiscrete(fitted, rows)(draws(2, 10), rows)


@pytest.mark.parametrize("rows", [np.ones((1, 2)), np.ones((5, 2))], ids=["one row", "one point"])
def test_a_single_point_takes_all(rows):
    fitted = fit_semidiscrete(rows, normal, key=KEY, steps=10)
    assert_uniform(chosen(fitted, rows, draws(2, 1000)), len(rows))


def test_images_are_rows():
    rows = rows_of(12, 8).reshape(12, 2, 2, 2)

    def source(n, *, key):
        return mx.random.normal((n, 2, 2, 2), key=key)

    fitted = fit_semidiscrete(rows, source, key=KEY, batch_size=128)
    i, j = semidiscrete(fitted, rows)(source(5000, key=KEY), rows)
    assert len(i) == 5000
    assert_uniform(np.array(j), 12, slack=0.05)


def test_a_saved_potential_reads_back(plane, tmp_path):
    rows, fitted = plane
    path = tmp_path / "potential.safetensors"
    save_semidiscrete(path, fitted)
    read = load_semidiscrete(path)
    np.testing.assert_array_equal(read.potential, fitted.potential)
    np.testing.assert_array_equal(read.box, fitted.box)
    assert (read.reg, read.imbalance) == (fitted.reg, fitted.imbalance)
    x0 = draws(2, 1000)
    np.testing.assert_array_equal(chosen(read, rows, x0), chosen(fitted, rows, x0))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saving_and_loading_say_what_is_wrong(plane, tmp_path):
    rows, fitted = plane
    with pytest.raises(ValueError, match=r"ends in .safetensors"):
        save_semidiscrete(tmp_path / "potential.npz", fitted)
    with pytest.raises(ValueError, match="holds no fitted potential"):
        load_semidiscrete(tmp_path / "missing.safetensors")
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"x": mx.ones(3)})
    with pytest.raises(ValueError, match="holds no fitted potential"):
        load_semidiscrete(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not those that the potential of 100 rows was fitted to"):
        semidiscrete(fitted, rows[::-1])


def test_what_cannot_be_coupled_is_refused(plane):
    rows, fitted = plane
    coupling = semidiscrete(fitted, rows)
    with pytest.raises(ValueError, match="x1 has 50 points; this coupling chooses among the 100"):
        coupling(draws(2, 10), rows[:50])
    for x0 in (mx.full((3, 2), math.nan), mx.full((3, 2), math.inf)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            coupling(x0, rows)
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_semidiscrete(np.full((3, 2), np.nan), normal, key=KEY)
    with pytest.raises(ValueError, match="reg is -1"):
        fit_semidiscrete(rows, normal, key=KEY, reg=-1)
    with pytest.raises(ValueError, match="steps is 0"):
        fit_semidiscrete(rows, normal, key=KEY, steps=0)


def test_an_ascent_that_is_too_short_raises(plane):
    rows, _ = plane
    with pytest.raises(NotConverged, match=r"after 1 steps the rows differ by .* such as steps=4"):
        fit_semidiscrete(rows, normal, key=KEY, steps=1, batch_size=64, tolerance=0.01)


# --- with conditions ---


def told_rows(n=90):
    """Rows in three unequal classes that lie apart, and a number that grows with the rows."""
    labels = np.repeat([0, 1, 2], [n // 2, n // 3, n - n // 2 - n // 3]).astype(np.int32)
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(n, 2)) + 3 * labels[:, None]).astype(np.float32)
    order = rng.permutation(n)
    rows, labels = rows[order], labels[order]
    return rows, labels, ((rows[:, :1] - rows[:, :1].mean()) / rows[:, 0].std())


@functools.cache
def told_pairs(told, weight, n=40_000):
    """Source points, and the rows that they meet under labels or numbers."""
    rows, labels, numbers = told_rows()
    conditions = labels if told == "labels" else numbers
    fitted = fit_semidiscrete(
        rows, normal, key=KEY, conditions=conditions, weight=weight, batch_size=512
    )
    x0 = draws(2, n)
    i, j = semidiscrete(fitted, rows, conditions)(x0, rows, key=KEY)
    np.testing.assert_array_equal(i, np.arange(n))
    return np.array(x0), np.array(j)


def test_every_class_comes_from_the_whole_source():
    """Rows are equally often chosen; the source of each class has mean 0 and variance 1, which
    that of a class without its label has not."""
    rows, labels, _ = told_rows()
    x0, j = told_pairs("labels", math.inf)
    assert_uniform(j, len(rows), slack=0.05)
    plain = chosen(fit_semidiscrete(rows, normal, key=KEY), rows, mx.array(x0))
    for label in range(3):
        of_class = x0[labels[j] == label]
        np.testing.assert_allclose(of_class.mean(0), 0, atol=5 / math.sqrt(len(of_class)))
        np.testing.assert_allclose(of_class.var(0), 1, atol=8 / math.sqrt(len(of_class)))
        assert np.abs(x0[labels[plain] == label].mean(0)).max() > 0.25


@pytest.mark.parametrize(
    ("told", "weight"), [("labels", 2.0), ("labels", math.inf), ("numbers", 2.0)]
)
def test_the_cost_with_conditions_is_that_of_exact_transport_of_a_large_sample(told, weight):
    """Beside x0 with the condition of a row that was drawn apart, as `conditional` pairs them."""
    rows, labels, numbers = told_rows()
    known = labels if told == "labels" else numbers
    x0, j = (of_all[:1800] for of_all in told_pairs(told, weight))
    row = np.random.default_rng(5).permutation(1800) % 90  # each row as often
    p, q = conditional(exact_ot, weight=weight)(x0, rows[row], known[row])
    exact = ((x0[np.array(p)] - rows[row[np.array(q)]]) ** 2).sum(1).mean()
    assert ((x0 - rows[j]) ** 2).sum(1).mean() == pytest.approx(exact, rel=0.06)


def test_a_heavy_weight_makes_the_source_independent_of_numbers():
    _, _, numbers = told_rows()
    slopes = []
    for weight in (1e-6, 300.0):
        x0, j = told_pairs("numbers", weight)
        slopes.append(np.polyfit(numbers[j, 0], x0[:, 0], 1)[0])
    assert slopes[0] > 0.8
    assert abs(slopes[1]) < 0.1


def test_rows_are_not_taken_with_other_conditions(tmp_path):
    rows, labels, numbers = told_rows(30)
    fit = functools.partial(fit_semidiscrete, steps=20, tolerance=9)
    fitted = fit(rows, normal, key=KEY, conditions=labels)
    save_semidiscrete(tmp_path / "told.safetensors", fitted)
    read = load_semidiscrete(tmp_path / "told.safetensors")
    assert read.weight == math.inf
    x0 = draws(2, 500)
    pairs = [np.array(semidiscrete(f, rows, labels)(x0, rows, key=KEY)[1]) for f in (read, fitted)]
    np.testing.assert_array_equal(*pairs)
    light = fit(rows, normal, key=KEY, conditions=numbers, weight=3.0)
    save_semidiscrete(tmp_path / "told.safetensors", light)
    assert load_semidiscrete(tmp_path / "told.safetensors").weight == 3.0
    for conditions in (None, labels[::-1], numbers):
        with pytest.raises(ValueError, match="or their conditions, are not those"):
            semidiscrete(fitted, rows, conditions)
    with pytest.raises(ValueError, match="pass key="):
        semidiscrete(fitted, rows, labels)(x0, rows)
    with pytest.raises(ValueError, match="30 rows and 29 conditions"):
        fit_semidiscrete(rows, normal, key=KEY, conditions=labels[1:])
    with pytest.raises(ValueError, match="every row has a condition of its own"):
        fit_semidiscrete(rows, normal, key=KEY, conditions=numbers)
    with pytest.raises(TypeError, match="integers for labels"):
        fit_semidiscrete(rows, normal, key=KEY, conditions=labels.astype(str))
    with pytest.raises(NotConverged, match=r"the rows of condition [012] differ"):
        fit_semidiscrete(rows, normal, key=KEY, conditions=labels, steps=1, tolerance=0.01)
    with pytest.raises(ValueError, match="weight is 0"):
        fit_semidiscrete(rows, normal, key=KEY, conditions=labels, weight=0)


def test_a_row_far_away_leaves_the_choice_among_the_others(key):
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    rows[3] = 1e4
    fitted = fit_semidiscrete(rows, partial(normal, dim=2), key=key)
    x0 = np.array(normal(20_000, key=mx.random.key(5), dim=2))
    j = semidiscrete(fitted, rows).pair(x0, rows, rng=None)[1]
    assert np.bincount(j, minlength=100).max() < 2 * 20_000 / 99


def test_rows_whose_squares_are_too_large_are_refused(key):
    rows = np.full((10, 2), 1e25, np.float32) * np.arange(10)[:, None]
    with pytest.raises(ValueError, match="beyond float32; give them in other units"):
        fit_semidiscrete(rows, partial(normal, dim=2), key=key)


def test_the_name_that_it_had_before_goes_on_importing():
    before = importlib.import_module("flowmlx.semidiscrete")
    assert before.fit_semidiscrete is fit_semidiscrete
    assert before.load_semidiscrete is load_semidiscrete
    assert {"semidiscrete": semidiscrete} == before.FITTED_COUPLINGS

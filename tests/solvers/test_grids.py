"""Grids of times, alone and in solves."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS

from flowmlx.solvers import METHODS, odeint
from flowmlx.solvers.grids import GRIDS, shifted, sine, uniform


@pytest.mark.parametrize("name", GRIDS)
@given(n=st.integers(1, 3000))
def test_grids_rise_from_0_to_1(name, n):
    grid = GRIDS[name](n)
    assert grid[0] == 0
    assert grid[-1] == 1
    assert len(grid) == n + 1
    assert (np.diff(grid) > 0).all()


def test_values():
    np.testing.assert_allclose(uniform(4), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(sine(2), [0, np.sqrt(0.5), 1])
    # Half of the way to the noise, at a shift of 3 the other way round: 3 s / (1 + 2 s) = 3/4.
    np.testing.assert_allclose(1 - shifted(2), [1, 0.75, 0])
    np.testing.assert_allclose(shifted(7, factor=1.0), uniform(7))


@pytest.mark.parametrize("call", [lambda: uniform(0), lambda: sine(1.5), lambda: shifted(3, 0.0)])
def test_refusals(call):
    with pytest.raises(ValueError, match="expected"):
        call()


class Seen:
    def __init__(self):
        self.times = []

    def __call__(self, t, x):
        self.times.append(t.item())
        return -x


@pytest.mark.parametrize(
    ("method", "name", "reverse"),
    [(method, "sine", False) for method in KINDS]
    + [("rk4", "shifted", True), ("ab3", "shifted", False), ("dopri5", "uniform", True)],
)
def test_steps_end_at_the_grid(method, name, reverse):
    """And states between are interpolated, to the order of the method or better than its steps."""
    grid = 1 - GRIDS[name](12) if reverse else GRIDS[name](12)
    ts = sorted([0.0, 0.41, 1.0], reverse=reverse)
    field = Seen()
    x0 = mx.array([2.0], dtype=mx.float64)
    solution = odeint(field, x0, ts, method=method, grid=grid)
    assert solution.stats.accepted == 12
    assert solution.stats.largest_step == pytest.approx(np.abs(np.diff(grid)).max())
    assert solution.stats.smallest_step == pytest.approx(np.abs(np.diff(grid)).min())
    assert set(np.round(grid[:-1], 12)) <= set(np.round(field.times, 12))
    expected = 2 * np.exp(-np.abs(np.array(ts) - ts[0]) * (-1 if reverse else 1))
    accuracy = 0.2 if method == "euler" else 0.02
    np.testing.assert_allclose(np.array(solution.xs)[:, 0], expected, rtol=accuracy)


@settings(deadline=None, max_examples=25)
@given(
    method=st.sampled_from([m for m in METHODS if m != "euler"]),
    inner=st.lists(st.floats(0.01, 0.99), max_size=6, unique_by=lambda t: round(t, 3)),
)
def test_any_grid_of_ones_own(method, inner):
    grid = [0.0, *sorted(inner), 1.0]
    x0 = mx.array([1.0], dtype=mx.float64)
    solution = odeint(lambda t, x: 2 * t + 0 * x, x0, [0.0, 1.0], method=method, grid=grid)
    assert solution.stats.accepted == len(grid) - 1
    assert solution.xs[-1].item() == pytest.approx(2.0, abs=1e-12)


def test_a_grid_rounded_to_float32_ends_at_the_last_time():
    grid = mx.array([0.0, 0.1, 0.3])
    solution = odeint(lambda t, x: x, mx.ones(2), [0.0, 0.3], method="rk4", grid=grid)
    assert mx.allclose(solution.xs[-1], mx.exp(mx.array(0.3)), atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([0.0, 0.5], r"grid runs from 0.0 to 0.5; expected from 0.0 to 1.0"),
        ([1.0, 0.5, 0.0], "grid runs from 1.0 to 0.0"),
        ([0.0, 0.5, 0.5, 1.0], r"grid\[1\] = 0.5 is followed by grid\[2\] = 0.5"),
        ([0.0, np.nan, 1.0], "grid holds nan"),
        ([[0.0, 1.0]], "grid has shape"),
        ("sine", "expected times, such as flowmlx.solvers.grids.sine"),
    ],
)
def test_bad_grids(grid, words):
    with pytest.raises(ValueError, match=words):
        odeint(lambda t, x: x, mx.ones(2), [0.0, 1.0], method="heun", grid=grid)

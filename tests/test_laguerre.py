import numpy as np
import pytest

from flowmlx.transport.laguerre import Affine, grid


def functions(n, dim, seed=0):
    """Scores -|x - y|^2 + g of clustered points, less |x|^2."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, dim)) + 4 * (rng.integers(0, 2, (n, 1)) - 0.5)
    return Affine(2 * y, 0.3 * rng.normal(size=n) - (y**2).sum(1))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 500])
def test_grid_finds_what_comparing_all_finds(dim, n):
    f = functions(n, dim)
    x = np.random.default_rng(1).normal(size=(3000, dim)) * 3
    low, high = np.full(dim, -4.0), np.full(dim, 5.0)  # some points are outside
    np.testing.assert_array_equal(grid(f, low, high).largest(x), f.largest(x))


def test_points_on_the_grid_lines_and_corners():
    f = functions(300, 2)
    g = grid(f, np.array([-3.0, -3.0]), np.array([3.0, 3.0]))
    lines = np.linspace(-3, 3, g.blocks**2 + 1)
    x = np.stack(np.meshgrid(lines, lines), -1).reshape(-1, 2)[::37]
    np.testing.assert_array_equal(g.largest(x), f.largest(x))


def test_of_equal_functions_the_first_is_found():
    f = functions(300, 2)
    twice = Affine(np.repeat(f.slopes, 2, 0), np.repeat(f.offsets, 2))
    x = np.random.default_rng(1).normal(size=(500, 2))
    found = grid(twice, np.full(2, -6.0), np.full(2, 6.0)).largest(x)
    np.testing.assert_array_equal(found, 2 * f.largest(x))


def test_a_cell_keeps_few_candidates():
    g = grid(functions(2000, 2), np.array([-4.0, -4.0]), np.array([4.0, 4.0]))
    assert len(g.candidates) < 4 * (len(g.starts) - 1)


def test_no_points():
    g = grid(functions(20, 2), np.zeros(2), np.ones(2))
    assert g.largest(np.zeros((0, 2))).tolist() == []


def test_equal_functions_give_the_first():
    f = Affine(np.array([[1.0], [1.0], [-1.0]]), np.zeros(3))
    assert grid(f, np.array([-2.0]), np.array([2.0])).largest(
        np.array([[1.0], [-1.0]])
    ).tolist() == [0, 2]


def test_a_box_without_extent_along_a_column():
    f = functions(50, 2)
    x = np.random.default_rng(1).normal(size=(200, 2)) * [1.0, 0.0]
    np.testing.assert_array_equal(grid(f, x.min(0), x.max(0)).largest(x), f.largest(x))

"""Squared distances between points."""

import math
import subprocess
import sys

import numpy as np
import pytest

from flowmlx.transport.costs import FEW_COLUMNS, squared_distances


@pytest.mark.parametrize("d", [2, 64])
def test_squared_distances_do_not_cancel(d):
    """Each is right to float64 accuracy, whatever else is in the batch."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, d)), rng.normal(size=(30, d))
    scales = 10.0 ** rng.uniform(-30, 30, 30)
    x, y = np.vstack([x * scales[:, None], x]), np.vstack([y * scales[:, None], x + 1e-9 * y])
    exact = np.array([[math.fsum((a - b) ** 2) for b in y] for a in x])
    np.testing.assert_allclose(squared_distances(x, y), exact, rtol=1e-12)


def test_squared_distances_far_from_the_origin():
    for columns in (2, FEW_COLUMNS + 1):
        x = np.full((2, columns), 1e6)
        x[1, 0] += 1
        np.testing.assert_allclose(squared_distances(x, x), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("n", "m", "columns"),
    [(130, 77, 2), (130, 77, 17), (1, 300, 64), (300, 3, 64), (130, 77, 200)],
)
def test_squared_distances_in_blocks_are_those_of_the_differences(n, m, columns):
    rng = np.random.default_rng(columns)
    x, y = rng.normal(size=(n, columns)), rng.normal(size=(m, columns)) + 3
    expected = [((y - point) ** 2).sum(1) for point in x]
    np.testing.assert_allclose(squared_distances(x, y), expected, rtol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring other BLAS")
def test_squared_distances_take_one_thread():
    code = """
import time
import numpy as np
from flowmlx.couplings import squared_distances
x = np.random.default_rng(0).normal(size=(512, 64))
squared_distances(x, x)
time.sleep(0.3)  # threads that BLAS started for itself are done
process, thread = time.process_time(), time.thread_time()
for _ in range(100):
    squared_distances(x, x)
print((time.process_time() - process) / (time.thread_time() - thread))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1

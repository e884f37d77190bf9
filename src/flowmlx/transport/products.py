"""Matrix products on the calling thread.

BLAS starts threads of its own for a large product, and they wait by spinning. Where several threads
of ours multiply at once, as those that compute couplings ahead do, all of them want the processors:
a product of 512 x 64 by 64 x 512 took 0.8 ms of a processor in blocks, 5 to 15 ms as one.
"""

import math

import numpy as np

# Products of fewer multiplications than this OpenBLAS computes on the calling thread.
ONE_THREAD = 2**18
# In smaller blocks a product takes twice the time, more than its threads do.
LEAST_BLOCK = 48


def products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x @ y.T for `x` (n, d) and `y` (m, d) of one dtype: (n, m).

    In blocks that BLAS starts no threads for, up to some hundred columns; with more as it is.
    """
    side = math.isqrt(ONE_THREAD // max(x.shape[1], 1))
    if side < LEAST_BLOCK:
        return x @ y.T
    rows = max(1, min(len(x), side))
    columns = ONE_THREAD // (rows * x.shape[1])
    result = np.empty((len(x), len(y)), x.dtype)
    for i in range(0, len(x), rows):
        for j in range(0, len(y), columns):
            block = slice(i, i + rows), slice(j, j + columns)
            np.matmul(x[block[0]], y[block[1]].T, out=result[block])
    return result

"""Random keys as a function of a seed and a name, so that any step can be drawn again alone."""

import hashlib

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import as_numpy, check_key


def fold_in(key: mx.array, *labels: str | int) -> mx.array:
    """Derive a key from `key` and labels, such as `fold_in(key, "batch", step)`.

    `key`: uint32 (2,) as `mx.random.key` makes it. Same key and labels, same result; other labels
    give an unrelated key (labels are compared as text, joined by slashes). A training step draws
    from `fold_in(key, step)` alone, which is why a resumed run needs no stored generator state.
    """
    digest = hashlib.blake2b(as_numpy(check_key(key), "key").tobytes(), digest_size=8)
    for label in labels:
        digest.update(f"/{label}".encode())
    return mx.random.key(int.from_bytes(digest.digest(), "little"))


def generator(key: mx.array) -> np.random.Generator:
    """Make the NumPy generator that `key` fixes, for what is drawn on the host."""
    return np.random.default_rng(as_numpy(check_key(key), "key"))

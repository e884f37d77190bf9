"""Random keys as a function of a seed and a name, so that any step can be drawn again alone."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import as_numpy, check_key

# Keeps what is drawn without a key apart from what is drawn from the key itself.
APART = 0x9E3779B97F4A7C15


def fold_in(key: mx.array, *labels: str | int) -> mx.array:
    """Derive a key from `key` and labels, such as `fold_in(key, "batch", step)`.

    `key`: uint32 (2,) as `mx.random.key` makes it. Same key and labels, same result; other labels
    give an unrelated key (labels are compared as text, joined by slashes). A training step draws
    from `fold_in(key, step)` alone, which is why a resumed run needs no stored generator state.
    """
    return mx.random.key(_seed(key, *labels))


def generator(key: mx.array) -> np.random.Generator:
    """Make the NumPy generator that `key` fixes, for what is drawn on the host."""
    return np.random.default_rng(as_numpy(check_key(key), "key"))


def fold_in_globally(key: mx.array, *labels: str | int) -> mx.array:
    """As `fold_in`, and seed MLX's global generator, of this thread, by an unrelated key.

    What is drawn without a key from then on, as by `nn.Dropout`, is fixed as well. A compiled
    function must have `mx.random.state` among its inputs and outputs, or its draws are those of its
    first call for ever.
    """
    seed = _seed(key, *labels)
    mx.random.seed(seed ^ APART)
    return mx.random.key(seed)


@contextlib.contextmanager
def global_kept() -> Iterator[None]:
    """Give MLX's global generator of this thread back as it was, whatever is drawn inside."""
    high, low = cast(Any, mx.random.state)[0].tolist()
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)  # of which MLX makes that state


@contextlib.contextmanager
def global_of(key: mx.array, *labels: str | int) -> Iterator[None]:
    """Let what is drawn without a key inside be fixed by `key` and labels, by nothing before."""
    # Right after `fold_in_globally`, as in `fit`, the generator is read without waiting for steps.
    with global_kept():
        fold_in_globally(key, *labels)
        yield


def _seed(key: mx.array, *labels: str | int) -> int:
    digest = hashlib.blake2b(as_numpy(check_key(key), "key").tobytes(), digest_size=8)
    for label in labels:
        digest.update(f"/{label}".encode())
    return int.from_bytes(digest.digest(), "little")

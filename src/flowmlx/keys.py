"""Random keys as a function of a seed and a name, so that any step can be drawn again alone."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import as_numpy, check_key

# For what draws are, a number that keeps them apart from those of the key itself.
APART = {"batch": 0x9E3779B97F4A7C15, "loss": 0xD1B54A32D192ED03}


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


def seed_global(key: mx.array, use: str) -> None:
    """Let what is drawn without a key from here on, as `nn.Dropout` does, come from `key`.

    `use`: a name in APART; draws of another use are unrelated. The generator is MLX's global one,
    of this thread. A compiled function must have `mx.random.state` among its inputs and outputs, or
    its draws are those of its first call for ever.
    """
    mx.random.seed(_seed_of(key) ^ APART[use])


@contextlib.contextmanager
def global_kept() -> Iterator[None]:
    """Give MLX's global generator of this thread back as it was, whatever is drawn inside."""
    before = _seed_of(cast(Any, mx.random.state)[0])
    try:
        yield
    finally:
        mx.random.seed(before)


def _seed_of(key: mx.array) -> int:
    """The number of which `mx.random.key` makes `key`."""
    high, low = as_numpy(key, "key").tolist()
    return high << 32 | low

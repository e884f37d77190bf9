"""Random keys as a function of a seed and a name, so that any step can be drawn again alone."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np


def fold_in(key: mx.array, *labels: str | int) -> mx.array:
    """Derive a key from `key` and labels, such as `fold_in(key, "batch", step)`.

    `key`: uint32 (2,) as `mx.random.key` makes it. Same key and labels, same result; other labels
    give an unrelated key (labels are compared as text, joined by slashes). A training step draws
    from `fold_in(key, step)` alone, which is why a resumed run needs no stored generator state.
    """
    digest = hashlib.blake2b(np.array(key).tobytes(), digest_size=8)
    for label in labels:
        digest.update(f"/{label}".encode())
    return mx.random.key(int.from_bytes(digest.digest(), "little"))


def generator(key: mx.array) -> np.random.Generator:
    """Make the NumPy generator that `key` fixes, for what is drawn on the host."""
    return np.random.default_rng(np.array(key))


@contextlib.contextmanager
def unkeyed(key: mx.array) -> Iterator[None]:
    """Let what is drawn without a key inside, as `nn.Dropout` does, come from `key`.

    That is: seed MLX's generator of this thread, and give it back as it was. A compiled function
    must have `mx.random.state` among its inputs and outputs, or its draws are those of its first
    call for ever.
    """
    before = cast(Any, mx.random.state)[0]
    # Of a key of its own: the draws of the caller come from `key` as well.
    mx.random.seed(_seed(fold_in(key, "unkeyed")))
    try:
        yield
    finally:
        mx.random.seed(_seed(before))


def _seed(key: mx.array) -> int:
    """The number of which `mx.random.key` makes `key`."""
    high, low = np.array(key).tolist()
    return high << 32 | low

"""Time samplers: where on [0, 1] a training step looks."""

import mlx.core as mx


def uniform(n: int, *, key: mx.array, interval: tuple[float, float] = (0.0, 1.0)) -> mx.array:
    """Draw `n` independent times (n,), float32, uniform on `interval`."""
    return mx.random.uniform(*interval, (n,), key=key)

"""The network of TorchCFM's examples."""

import mlx.core as mx
import mlx.nn as nn

from flowmlx.nets.activations import selu
from flowmlx.solvers.arrays import as_array


class MLP(nn.Module):
    """Three hidden layers of `w` SELU units, on x or, if `time_varying`, on x and t side by side.

    Call with (batch, dim) or (batch, dim + 1), t last. Parameters have the names and shapes that
    they have in PyTorch (net.0.weight, ...); initial values come from MLX's global generator.
    """

    def __init__(
        self, dim: int, out_dim: int | None = None, w: int = 64, time_varying: bool = False
    ):
        super().__init__()
        self.time_varying = time_varying
        self.net = [
            nn.Linear(dim + bool(time_varying), w),
            selu,
            nn.Linear(w, w),
            selu,
            nn.Linear(w, w),
            selu,
            nn.Linear(w, dim if out_dim is None else out_dim),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        """Output (batch, out_dim)."""
        x, size = as_array(x, "x"), self.net[0].weight.shape[1]
        if x.shape[-1:] != (size,):
            raise ValueError(f"x has shape {x.shape}; expected (batch, {size})")
        for layer in self.net:
            x = layer(x)
        return x

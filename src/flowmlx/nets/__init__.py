"""Networks that serve as velocity fields v(t, x)."""

from flowmlx.nets.mlp import MLP

__all__ = ["MLP"]

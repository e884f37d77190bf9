"""Networks that serve as velocity fields v(t, x) or v(t, x, cond)."""

from flowmlx.nets.embeddings import ConditionEmbedding
from flowmlx.nets.mlp import MLP

__all__ = ["MLP", "ConditionEmbedding"]

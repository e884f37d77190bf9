"""The names of TorchCFM on MLX arrays, for scripts that are ported from PyTorch.

A matcher is a path of `flowmlx.paths` and, where it says so, a plan of `flowmlx.couplings`, drawn
from the global generators: a plan from NumPy's, then times and then noise from MLX's, so that
`np.random.seed` and `mx.random.seed` reproduce a batch. What differs from TorchCFM, and why, is in
docs/porting.md. New code is shorter with paths, couplings and keys.

Throughout, `x0` (source) and `x1` (data) are (batch, ...), and `t` is (batch,) or, where nothing is
drawn, a number.
"""

from flowmlx.torchcfm.matchers import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
    SchrodingerBridgeConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
    pad_t_like_x,
)
from flowmlx.torchcfm.mlp import MLP
from flowmlx.torchcfm.optimal_transport import DISTANCES, PLANS, OTPlanSampler, wasserstein

__all__ = [
    "DISTANCES",
    "MLP",
    "PLANS",
    "ConditionalFlowMatcher",
    "ExactOptimalTransportConditionalFlowMatcher",
    "OTPlanSampler",
    "SchrodingerBridgeConditionalFlowMatcher",
    "TargetConditionalFlowMatcher",
    "VariancePreservingConditionalFlowMatcher",
    "pad_t_like_x",
    "wasserstein",
]

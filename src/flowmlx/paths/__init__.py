"""Paths: how a source point travels to a data point."""

from flowmlx.paths.affine import (
    AffinePath,
    Linear,
    LinearVP,
    OneSidedTrigonometric,
    Polynomial,
    Target,
    Trigonometric,
    VPDiffusion,
    is_absent,
)
from flowmlx.paths.bridges import (
    Bridge,
    BrownianPath,
    EncodingDecoding,
    Mirror,
    TrigonometricBridge,
)
from flowmlx.paths.gaussian import GaussianPath
from flowmlx.paths.path import (
    Path,
    PathSample,
    alike,
    check_margin,
    check_path,
    expand_time,
    path_time,
    time_derivative,
)

__all__ = [
    "PATHS",
    "AffinePath",
    "Bridge",
    "BrownianPath",
    "EncodingDecoding",
    "GaussianPath",
    "Linear",
    "LinearVP",
    "Mirror",
    "OneSidedTrigonometric",
    "Path",
    "PathSample",
    "Polynomial",
    "Target",
    "Trigonometric",
    "TrigonometricBridge",
    "VPDiffusion",
    "alike",
    "check_margin",
    "check_path",
    "expand_time",
    "is_absent",
    "path_time",
    "time_derivative",
]

PATHS: dict[str, type[AffinePath]] = {
    "linear": Linear,
    "trigonometric": Trigonometric,
    "polynomial": Polynomial,
    "linear_vp": LinearVP,
    "vp_diffusion": VPDiffusion,
    "target": Target,
    "one_sided_trigonometric": OneSidedTrigonometric,
    "bridge": Bridge,
    "trigonometric_bridge": TrigonometricBridge,
    "mirror": Mirror,
    "encoding_decoding": EncodingDecoding,
}

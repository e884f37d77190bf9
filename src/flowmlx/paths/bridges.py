"""Paths with noise between their ends and none at them: Brownian bridges and their like."""

import math
from dataclasses import dataclass

import mlx.core as mx

from flowmlx.paths.affine import AffinePath, quarter_turn
from flowmlx.paths.path import check_margin


@dataclass(frozen=True)
class BrownianPath(AffinePath):
    """Base of the paths with the noise of a Brownian bridge, gamma = sigma sqrt(t (1 - t)).

    The derivative of gamma is infinite at both ends, so training times come from
    (margin, 1 - margin).
    """

    sigma: float = 1.0
    margin: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        check_margin(self.margin)

    @property
    def interval(self) -> tuple[float, float]:
        """(margin, 1 - margin)."""
        return self.margin, 1 - self.margin

    def noise(self, t: mx.array) -> mx.array | float:
        """Gamma at `t`."""
        return self.sigma * mx.sqrt(t * (1 - t)) if self.sigma else 0.0


class Bridge(BrownianPath):
    """x_t = t x1 + (1 - t) x0 + sigma sqrt(t (1 - t)) eps, a Brownian bridge.

    Tong et al. 2024, arXiv 2302.00482, Eq. 20-21. Also the linear interpolant of Albergo, Boffi &
    Vanden-Eijnden 2023 (arXiv 2303.08797), whose gamma is sqrt(a t (1 - t)), a = sigma^2.
    """

    def coefficients(self, t):
        """Alpha = t, beta = 1 - t, gamma = sigma sqrt(t (1 - t))."""
        return t, 1 - t, self.noise(t)


class TrigonometricBridge(BrownianPath):
    """x_t = sin(pi t/2) x1 + cos(pi t/2) x0 + sigma sqrt(t (1 - t)) eps.

    The trigonometric interpolant of Albergo, Boffi & Vanden-Eijnden 2023 (arXiv 2303.08797).
    """

    def coefficients(self, t):
        """Alpha = sin(pi t/2), beta = cos(pi t/2), gamma = sigma sqrt(t (1 - t))."""
        return *quarter_turn(t), self.noise(t)


class Mirror(BrownianPath):
    """x_t = x1 + sigma sqrt(t (1 - t)) eps: from the data, through noise, back to the data.

    The mirror interpolant of Albergo, Boffi & Vanden-Eijnden 2023 (arXiv 2303.08797). x0 gives only
    a shape; sample from data points.
    """

    def coefficients(self, t):
        """Alpha = 1, beta = 0, gamma = sigma sqrt(t (1 - t))."""
        return 1.0, 0.0, self.noise(t)


@dataclass(frozen=True)
class EncodingDecoding(AffinePath):
    """x0 fades into noise until t = 1/2, and x1 comes out of it until t = 1.

    Coefficients: beta = cos(pi t)^2 up to t = 1/2 and alpha = cos(pi t)^2 after, else 0;
    gamma = sigma sin(pi t)^2. The encoding-decoding interpolant of Albergo, Boffi & Vanden-Eijnden
    2023 (arXiv 2303.08797), where sigma is 1.
    """

    sigma: float = 1.0

    def coefficients(self, t):
        """Alpha = cos(pi t)^2 [t > 1/2], beta = cos(pi t)^2 [t <= 1/2], gamma = s sin(pi t)^2."""
        share, gamma = mx.cos(math.pi * t) ** 2, self.sigma * mx.sin(math.pi * t) ** 2
        return mx.where(t > 0.5, share, 0.0), mx.where(t > 0.5, 0.0, share), gamma

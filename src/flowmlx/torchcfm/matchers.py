"""Conditional flow matchers: a path and, where the name says so, pairs of a transport plan."""

import math
import warnings

import mlx.core as mx

from flowmlx.paths import (
    AffinePath,
    Bridge,
    Linear,
    Target,
    Trigonometric,
    alike,
    expand_time,
    is_absent,
    path_time,
)
from flowmlx.solvers.arrays import as_array, as_batch, check_number
from flowmlx.torchcfm.optimal_transport import Labels, OTPlanSampler, as_labels


def pad_t_like_x(t: mx.array | float, x: mx.array) -> mx.array | float:
    """Give `t` (batch,) trailing axes of length 1 so that it broadcasts over `x`; numbers stay.

    Raises ValueError where `t` has neither one entry nor one per sample.
    """
    if isinstance(t, int | float):
        return t
    return expand_time(as_array(t, "t").reshape(-1), x)


class ConditionalFlowMatcher:
    """I-CFM, pairs as they come: N(t x1 + (1 - t) x0, sigma^2), `paths.Linear`.

    Tong et al. 2024, arXiv 2302.00482, Eq. 14-15. Raises ValueError where `sigma` is negative or
    not finite. A subclass may override any `compute_`, `sample_xt` or `sample_noise_like`.
    """

    path_type: type[AffinePath] = Linear
    ot_sampler: OTPlanSampler | None = None

    def __init__(self, sigma: float = 0.0):
        self.sigma = self.path_type(sigma).sigma  # refuses a bad one

    @property
    def path(self) -> AffinePath:
        """The path, with the sigma of now."""
        return self.path_type(self.sigma)

    def compute_mu_t(self, x0: mx.array, x1: mx.array, t: mx.array | float) -> mx.array:
        """Mean of x_t given its ends, like x1."""
        x0, x1 = alike(x0=x0, x1=x1)
        alpha, beta, _ = self.path.coefficients(mx.array(pad_t_like_x(t, x1)))
        return alpha * x1 if is_absent(beta) else alpha * x1 + beta * x0

    def compute_sigma_t(self, t: mx.array | float) -> mx.array | float:
        """Standard deviation of x_t given its ends: like `t`, or a number where constant."""
        return self.path.coefficients(as_array(t, "t"))[2]

    def sample_xt(
        self, x0: mx.array, x1: mx.array, t: mx.array | float, epsilon: mx.array
    ) -> mx.array:
        """x_t = mu_t + sigma_t epsilon, like x1."""
        x0, x1, epsilon = alike(x0=x0, x1=x1, epsilon=epsilon)
        mu_t, sigma_t = self.compute_mu_t(x0, x1, t), self.compute_sigma_t(t)
        return mu_t if is_absent(sigma_t) else mu_t + pad_t_like_x(sigma_t, x1) * epsilon

    def compute_conditional_flow(
        self, x0: mx.array, x1: mx.array, t: mx.array | float, xt: mx.array
    ) -> mx.array:
        """Conditional velocity at `xt`, like x1; not finite where sigma_t vanishes at `t` alone."""
        x0, x1, xt = alike(x0=x0, x1=x1, xt=xt)
        return self.path.velocity(mx.array(pad_t_like_x(t, x1)).reshape(-1), xt, x0, x1)

    def sample_noise_like(self, x: mx.array) -> mx.array:
        """Standard normal noise like `x`, from MLX's global generator."""
        x = as_array(x, "x")
        return mx.random.normal(x.shape, dtype=x.dtype)

    def compute_lambda(self, t: mx.array | float) -> mx.array | float:
        """Weight of the score loss, 2 sigma_t / sigma^2 (Tong et al. 2024, arXiv 2307.03672).

        Raises ValueError for sigma = 0, where there is no score to weigh.
        """
        if not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}; the weight of a score needs a sigma above 0")
        return self.compute_sigma_t(t) * (2 / self.sigma**2)

    def sample_location_and_conditional_flow(
        self,
        x0: mx.array,
        x1: mx.array,
        t: mx.array | None = None,
        return_noise: bool = False,
    ) -> tuple:
        """Pair the batches, then draw (t, xt, ut), or (t, xt, ut, epsilon) with `return_noise`.

        `t` (batch,) is drawn from `path.interval` unless given. Raises ValueError where shapes do
        not match.
        """
        x0, x1, _, _ = self._pair(as_batch(x0, "x0"), as_batch(x1, "x1"), None, None)
        t, xt, ut, epsilon = self._draw(x0, x1, t)
        return (t, xt, ut, epsilon) if return_noise else (t, xt, ut)

    def guided_sample_location_and_conditional_flow(
        self,
        x0: mx.array,
        x1: mx.array,
        y0: Labels = None,
        y1: Labels = None,
        t: mx.array | None = None,
        return_noise: bool = False,
    ) -> tuple:
        """As without labels, but (t, xt, ut, y0, y1) or (t, xt, ut, y0, y1, epsilon).

        `y0`, `y1` (batch, ...) follow their points; None stays None.
        """
        x0, x1, y0, y1 = self._pair(as_batch(x0, "x0"), as_batch(x1, "x1"), y0, y1)
        t, xt, ut, epsilon = self._draw(x0, x1, t)
        return (t, xt, ut, y0, y1, epsilon) if return_noise else (t, xt, ut, y0, y1)

    def _pair(self, x0, x1, y0, y1) -> tuple:
        if self.ot_sampler is None:
            return x0, x1, as_labels(y0, x0, "y0"), as_labels(y1, x1, "y1")
        return self.ot_sampler.sample_plan_with_labels(x0, x1, y0, y1)

    def _draw(self, x0, x1, t) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        x0, x1 = alike(x0=x0, x1=x1)
        if t is None:
            t = mx.random.uniform(*self.path.interval, (x0.shape[0],), dtype=x0.dtype)
        else:
            t = path_time(t, x0)
        if t.size != x0.shape[0]:
            raise ValueError(
                f"t has shape {t.shape}; expected ({x0.shape[0]},), one time per sample of x0"
            )
        epsilon = self.sample_noise_like(x0)
        xt = self.sample_xt(x0, x1, t, epsilon)
        if type(self).compute_conditional_flow is ConditionalFlowMatcher.compute_conditional_flow:
            # From the noise: from xt it would lose its digits where sigma_t is small.
            ut = self.path.point(x0, x1, t.reshape(-1), epsilon).ut
        else:
            ut = self.compute_conditional_flow(x0, x1, t, xt)
        return t, xt, ut, epsilon


class TargetConditionalFlowMatcher(ConditionalFlowMatcher):
    """FM from noise: N(t x1, (1 - (1 - sigma) t)^2), `paths.Target`; x0 gives only a shape.

    Lipman et al. 2023, Eq. 20-23.
    """

    path_type = Target


class VariancePreservingConditionalFlowMatcher(ConditionalFlowMatcher):
    """VP-CFM: N(sin(pi t/2) x1 + cos(pi t/2) x0, sigma^2), `paths.Trigonometric`.

    Albergo & Vanden-Eijnden 2023, Eq. 5 and 21.
    """

    path_type = Trigonometric


class ExactOptimalTransportConditionalFlowMatcher(ConditionalFlowMatcher):
    """OT-CFM: ConditionalFlowMatcher on pairs of the exact plan between the batches.

    Tong et al. 2024, arXiv 2302.00482. The plan is made on the host: see `OTPlanSampler.get_map`.
    """

    def __init__(self, sigma: float = 0.0):
        super().__init__(sigma)
        self.ot_sampler = OTPlanSampler("exact")


class SchrodingerBridgeConditionalFlowMatcher(ConditionalFlowMatcher):
    """SB-CFM: N(t x1 + (1 - t) x0, sigma^2 t (1 - t)) on pairs of a plan, `paths.Bridge`.

    `ot_method`: as in OTPlanSampler, with reg = 2 sigma^2; the entropic plan of "sinkhorn" is the
    one of the Schroedinger bridge (Tong et al. 2024, arXiv 2302.00482, Eq. 20-21). The velocity is
    infinite at t = 0 and t = 1, so times are drawn from (0.001, 0.999). Raises ValueError unless
    sigma > 0, for an unknown method and for a time at an end; warns where sigma is below 1e-3.
    """

    path_type = Bridge

    def __init__(self, sigma: float = 1.0, ot_method: str = "exact"):
        expected = "a strictly positive number, such as 1.0"
        sigma = check_number(sigma, "sigma", expected, lambda s: 0 < s < math.inf)
        if sigma < 1e-3:
            warnings.warn(
                f"sigma is {sigma}: with so small a value the bridge is hardly random; OT-CFM is "
                "the limit of sigma 0, and takes less time",
                stacklevel=2,
            )
        super().__init__(sigma)
        self.ot_method = ot_method
        self.ot_sampler = OTPlanSampler(ot_method, reg=2 * sigma**2)

    def _draw(self, x0, x1, t) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        t = None if t is None else path_time(t, x0)
        if t is not None and not ((t > 0) & (t < 1)).all().item():
            low, high = self.path.interval
            raise ValueError(
                "t holds 0, 1 or a time outside, where the velocity of a bridge is not finite; "
                f"write mx.clip(t, {low}, {high})"
            )
        return super()._draw(x0, x1, t)

"""Names of TorchCFM. Numbers marked as TorchCFM's were computed once with its release 1.0.7.

For the matchers: `m = Matcher(0.5)`, then `m.compute_mu_t(X0, X1, T)`, `m.compute_sigma_t(T)`,
`xt = m.sample_xt(X0, X1, T, EPS)`, `m.compute_conditional_flow(X0, X1, T, xt)` and
`m.compute_lambda(T)` on float32 tensors.
"""

import functools
import math

import mlx.core as mx
import numpy as np
import pytest

from flowmlx import torchcfm
from flowmlx.torchcfm import (
    MLP,
    PLANS,
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
    OTPlanSampler,
    SchrodingerBridgeConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
    pad_t_like_x,
    wasserstein,
)
from flowmlx.transport import entropic, plans

MATCHERS = {
    "cfm": ConditionalFlowMatcher,
    "fm": TargetConditionalFlowMatcher,
    "vp": VariancePreservingConditionalFlowMatcher,
    "otcfm": ExactOptimalTransportConditionalFlowMatcher,
    "sb": SchrodingerBridgeConditionalFlowMatcher,
}
PAIRED = ("otcfm", "sb")

X0 = mx.array([[0.5, -1.0], [2.0, 0.25], [-1.5, 3.0]])
X1 = mx.array([[1.0, 2.0], [-0.75, 0.5], [4.0, -2.0]])
T = mx.array([0.125, 0.5, 0.8])
EPS = mx.array([[0.3, -0.6], [1.2, 0.1], [-0.9, 2.0]])

# TorchCFM's, see above.
LINEAR = {
    "mu": [0.5625, -0.625, 0.625, 0.375, 2.9, -1.0],
    "sigma": 0.5,
    "xt": [0.7125, -0.925, 1.225, 0.425, 2.45, 0.0],
    "ut": [0.5, 3.0, -2.75, 0.25, 5.5, -5.0],
    "lambda": 4.0,
}
THEIRS = {
    "cfm": LINEAR,
    "fm": {
        "mu": [0.125, 0.25, -0.375, 0.25, 3.2, -1.6],
        "sigma": [0.9375, 0.75, 0.6],
        "xt": [0.40625, -0.3125, 0.525, 0.325, 2.66, -0.4],
        "ut": [0.85, 2.3, -1.35, 0.45, 4.45, -3.0],
        "lambda": [7.5, 6.0, 4.8],
    },
    "vp": {
        "mu": [0.685483, -0.5906047, 0.8838835, 0.5303301, 3.3407006, -0.9750621],
        "sigma": 0.5,
        "xt": [0.835483, -0.8906047, 1.4838835, 0.5803301, 2.8907006, 0.0249379],
        "ut": [1.3873905, 3.3876753, -3.054482, 0.2776802, 4.1824851, -5.4525537],
        "lambda": 4.0,
    },
    "otcfm": LINEAR,
    "sb": {
        "mu": [0.5625, -0.625, 0.625, 0.375, 2.9, -1.0],
        "sigma": [0.1653595, 0.25, 0.2],
        "xt": [0.6121078, -0.7242157, 0.925, 0.4, 2.72, -0.6],
        "ut": [0.6700839, 2.659832, -2.75, 0.25, 5.8375001, -5.75],
        "lambda": [1.3228756, 2.0, 1.6],
    },
}


def close(ours, theirs, tolerance=1e-6):
    ours = np.array(ours, np.float64).ravel()
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def batches(n=64, shape=(2,)):
    keys = mx.random.split(mx.random.key(5), 2)
    return [mx.random.normal((n, *shape), key=k) for k in keys]


def seed(number):
    np.random.seed(number)  # noqa: NPY002
    mx.random.seed(number)


# Matchers


@pytest.mark.parametrize("name", MATCHERS)
def test_methods_of_matchers_return_torchcfms_numbers(name):
    matcher, theirs = MATCHERS[name](0.5), THEIRS[name]
    close(matcher.compute_mu_t(X0, X1, T), theirs["mu"])
    close(matcher.compute_sigma_t(T), theirs["sigma"])
    xt = matcher.sample_xt(X0, X1, T, EPS)
    close(xt, theirs["xt"])
    close(matcher.compute_conditional_flow(X0, X1, T, xt), theirs["ut"], 3e-6)
    close(matcher.compute_lambda(T), theirs["lambda"])


@pytest.mark.parametrize("name", MATCHERS)
def test_a_draw_is_what_the_methods_return_for_its_noise(name):
    """The batches differ by a shift, so that every plan pairs them in order."""
    matcher, (x0, _) = MATCHERS[name](0.5), batches()
    x1, t = x0 + 3.0, mx.linspace(0.1, 0.9, 64)
    same_t, xt, ut, eps = matcher.sample_location_and_conditional_flow(x0, x1, t, True)
    assert same_t is t
    np.testing.assert_allclose(xt, matcher.sample_xt(x0, x1, t, eps), rtol=1e-6)
    expected = matcher.compute_conditional_flow(x0, x1, t, xt)
    np.testing.assert_allclose(ut, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MATCHERS)
def test_points_are_distributed_as_stated(name):
    matcher, n, t = MATCHERS[name](0.5), 20_000, 0.8
    matcher.ot_sampler = None  # pairs as they come
    x0, x1 = mx.full((n, 1), -1.0), mx.full((n, 1), 2.0)
    mx.random.seed(0)
    _, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1, mx.full((n,), t))
    mean, std = matcher.compute_mu_t(x0[:1], x1[:1], t), matcher.compute_sigma_t(t)
    assert xt.mean().item() == pytest.approx(mean.item(), abs=0.02)
    assert mx.std(xt).item() == pytest.approx(float(std), rel=0.02)
    # Of the velocity, given the point, whose mean moves as mu_t does.
    ahead, behind = (matcher.compute_mu_t(x0[:1], x1[:1], t + h).item() for h in (1e-2, -1e-2))
    assert ut.mean().item() == pytest.approx((ahead - behind) / 2e-2, abs=0.02)


@pytest.mark.parametrize("name", MATCHERS)
def test_times_are_uniform_where_the_velocity_is_finite(name):
    x0 = mx.zeros((4096, 1))
    mx.random.seed(0)
    matcher = MATCHERS[name](0.5)
    matcher.ot_sampler = None
    t, _, ut = matcher.sample_location_and_conditional_flow(x0, x0)
    levels = np.sort(np.array(t))
    assert np.abs(levels - np.linspace(0, 1, 4096)).max() < 0.03
    assert np.isfinite(ut).all()
    low, high = matcher.path.interval
    assert low <= levels[0] < levels[-1] <= high


@pytest.mark.parametrize("name", MATCHERS)
def test_times_then_noise_come_from_mlx_generator(name):
    (x0, x1), matcher = batches(), MATCHERS[name](0.5)
    mx.random.seed(3)
    t, _, _, eps = matcher.sample_location_and_conditional_flow(x0, x1, return_noise=True)
    mx.random.seed(3)
    np.testing.assert_array_equal(t, mx.random.uniform(*matcher.path.interval, (64,)))
    np.testing.assert_array_equal(eps, mx.random.normal((64, 2)))


@pytest.mark.parametrize("name", MATCHERS)
def test_seeds_reproduce_a_batch(name):
    (x0, x1), matcher = batches(), MATCHERS[name](0.5)

    def draw(number):
        seed(number)
        return matcher.sample_location_and_conditional_flow(x0, x1, return_noise=True)

    first, again, other = draw(1), draw(1), draw(2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for k in (0, 1, 3):  # the velocity may be that of the pairs alone
        assert not mx.array_equal(first[k], other[k]).item()


@pytest.mark.parametrize("name", MATCHERS)
def test_labels_follow_their_points(name):
    (x0, x1), matcher = batches(), MATCHERS[name](0.5)
    numbers = mx.arange(64)
    seed(0)
    t, xt, ut, y0, y1, eps = matcher.guided_sample_location_and_conditional_flow(
        x0, x1, numbers, numbers, return_noise=True
    )
    np.testing.assert_allclose(xt, matcher.sample_xt(x0[y0], x1[y1], t, eps), atol=1e-6)
    seed(0)
    for a, b in zip((t, xt, ut), matcher.sample_location_and_conditional_flow(x0, x1), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = not np.array_equal(y1, numbers)
    assert moved == (name in PAIRED)


@pytest.mark.parametrize("name", MATCHERS)
def test_missing_labels_stay_missing(name):
    (x0, x1), matcher = batches(), MATCHERS[name](0.5)
    numbers = mx.arange(64)
    *_, y0, y1 = matcher.guided_sample_location_and_conditional_flow(x0, x1, None, numbers)
    assert y0 is None
    assert sorted(y1.tolist()) == numbers.tolist()
    assert len(matcher.guided_sample_location_and_conditional_flow(x0, x1)) == 5


@pytest.mark.parametrize("name", PAIRED)
def test_exact_plans_use_every_point_once(name):
    x0, x1 = batches(shape=(2, 2, 1))
    numbers = mx.arange(64)
    *_, y0, y1 = MATCHERS[name](0.5).guided_sample_location_and_conditional_flow(
        x0, x1, numbers, numbers
    )
    assert sorted(y0.tolist()) == sorted(y1.tolist()) == numbers.tolist()
    cost = ((np.array(x0)[:, None] - np.array(x1)) ** 2).sum((2, 3, 4))
    paired = cost[np.array(y0), np.array(y1)]
    assert paired.sum() < 0.8 * np.trace(cost)


@pytest.mark.parametrize("name", ["cfm", "fm", "vp"])
def test_matchers_draw_anew_in_a_compiled_step(name):
    (x0, x1), matcher = batches(), MATCHERS[name](0.5)

    def step(x0, x1):
        return matcher.sample_location_and_conditional_flow(x0, x1, return_noise=True)

    compiled = mx.compile(step, inputs=[mx.random.state], outputs=[mx.random.state])
    mx.random.seed(1)
    first, second = compiled(x0, x1), compiled(x0, x1)
    assert not mx.array_equal(first[0], second[0]).item()
    assert not mx.array_equal(first[3], second[3]).item()
    mx.random.seed(1)
    for drawn in (first, second):
        for a, b in zip(drawn, step(x0, x1), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PAIRED)
def test_a_plan_in_a_compiled_step_is_refused(name):
    (x0, x1), matcher = batches(), MATCHERS[name](0.5)
    with pytest.raises(ValueError, match=r"cannot be part of a compiled function; pair the batch"):
        mx.compile(lambda a, b: matcher.sample_location_and_conditional_flow(a, b)[1])(x0, x1)


@pytest.mark.parametrize("name", MATCHERS)
def test_half_precision_stays(name):
    for dtype in (mx.float16, mx.bfloat16):
        x0, x1 = (x.astype(dtype) for x in batches())
        drawn = MATCHERS[name](0.5).sample_location_and_conditional_flow(x0, x1, None, True)
        assert {a.dtype for a in drawn} == {dtype}


def test_target_velocity_keeps_its_digits_near_the_data():
    """TorchCFM returns 2.5 here: it divides what is left of the noise in xt by 1 - t."""
    matcher, x1 = TargetConditionalFlowMatcher(0.0), mx.full((4, 1), 3.0)
    t = mx.full((4,), 1 - 2.0**-20)
    *_, ut, eps = matcher.sample_location_and_conditional_flow(x1, x1, t, return_noise=True)
    np.testing.assert_allclose(ut, 3.0 - np.array(eps), rtol=1e-6)


def test_variance_preserving_path_ends_at_its_ends():
    """TorchCFM's mean at t = 1 is -0.044: its cosine of a quarter turn is -4e-8."""
    matcher = VariancePreservingConditionalFlowMatcher()
    x0, x1 = mx.full((1, 1), 1e6), mx.zeros((1, 1))
    assert matcher.compute_mu_t(x0, x1, mx.array([1.0])).item() == 0
    assert matcher.compute_mu_t(x0, x1, 0.0).item() == 1e6


def test_bridge_velocity_near_an_end():
    """gamma' eps without anything added to a denominator; TorchCFM's is 2635 for 15811."""
    matcher, x = SchrodingerBridgeConditionalFlowMatcher(1.0), mx.zeros((1, 1))
    t = mx.array([1e-9])
    *_, ut, eps = matcher.sample_location_and_conditional_flow(x, x, t, return_noise=True)
    assert (ut / eps).item() == pytest.approx(0.5 / math.sqrt(1e-9), rel=1e-4)


def test_ends_of_a_bridge_are_refused():
    (x0, x1), matcher = batches(4), SchrodingerBridgeConditionalFlowMatcher()
    for t in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"velocity of a bridge is not finite; write mx.clip"):
            matcher.sample_location_and_conditional_flow(x0, x1, mx.array([0.5, t, 0.5, 0.5]))


def test_overridden_methods_are_used():
    class Doubled(ConditionalFlowMatcher):
        def sample_noise_like(self, x):
            return mx.ones_like(x)

        def compute_sigma_t(self, t):
            return 2 * t

        def compute_conditional_flow(self, x0, x1, t, xt):
            return xt - x0

    _, xt, ut = Doubled().sample_location_and_conditional_flow(X0, X1, T)
    expected = np.array(T)[:, None] * (np.array(X1) - X0 + 2)
    np.testing.assert_allclose(xt, np.array(X0) + expected, atol=1e-6)
    np.testing.assert_allclose(ut, expected, atol=1e-6)


def test_sigma_can_be_set_later():
    matcher = TargetConditionalFlowMatcher(0.5)
    matcher.sigma = 0.1
    assert matcher.compute_sigma_t(mx.array(1.0)).item() == pytest.approx(0.1)


@pytest.mark.parametrize("name", MATCHERS)
def test_bad_arguments_are_refused(name):
    for sigma in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma is"):
            MATCHERS[name](sigma)
    matcher = MATCHERS[name](0.5)
    with pytest.raises(ValueError, match=r"t has shape \(2,\); expected \(3,\)"):
        matcher.sample_location_and_conditional_flow(X0, X1, mx.zeros(2) + 0.5)
    matcher.ot_sampler = None
    with pytest.raises(ValueError, match=r"x0 has shape \(3, 2\) and x1 \(3, 1\)"):
        matcher.sample_location_and_conditional_flow(X0, X1[:, :1])


def test_bad_settings_of_a_bridge():
    with pytest.raises(ValueError, match=r"sigma is 0; .*strictly positive"):
        SchrodingerBridgeConditionalFlowMatcher(0)
    with pytest.raises(ValueError, match="unknown method 'emd'; known: exact"):
        SchrodingerBridgeConditionalFlowMatcher(1.0, "emd")
    with pytest.warns(UserWarning, match="with so small a value"):
        SchrodingerBridgeConditionalFlowMatcher(1e-4)


@pytest.mark.parametrize("name", sorted(set(MATCHERS) - {"sb"}))
def test_there_is_no_score_to_weigh_without_noise(name):
    with pytest.raises(ValueError, match="needs a sigma above 0"):
        MATCHERS[name](0.0).compute_lambda(T)


def test_padded_times():
    x = mx.zeros((3, 3, 3))
    np.testing.assert_array_equal(pad_t_like_x(T, x) + x, np.array(T)[:, None, None] + x)
    assert pad_t_like_x(T[:, None], x).shape == (3, 1, 1)
    assert pad_t_like_x(0.5, x) == 0.5
    with pytest.raises(ValueError, match=r"t has shape \(2,\); expected a scalar or \(3,\)"):
        pad_t_like_x(mx.zeros(2), x)


# Plans


# TorchCFM's plans with reg=1.0, and reg_m=2.0, between the populations in POPULATIONS.
POPULATIONS = mx.array([[0.0, 1.0, 2.5], [1.0, 0.0, 0.5], [2.0, 2.0, 1.5], [3.0, 3.5, 3.0]])
SINKHORN = [
    [
        [0.058904725, 0.187950511, 0.003142709, 2.055e-06],
        [0.136520745, 0.058952607, 0.053819748, 0.000706899],
        [0.052744155, 0.003082406, 0.153640729, 0.04053271],
        [0.001830375, 1.4477e-05, 0.039396813, 0.208758335],
    ],
    [
        [0.045306427, 0.058940611, 0.137029489, 0.008723473],
        [0.002646971, 0.188010413, 0.059155123, 0.000187493],
        [0.127776718, 0.003044589, 0.052301845, 0.066876848],
        [0.074269885, 4.387e-06, 0.001513543, 0.174212186],
    ],
]
UNBALANCED = [
    [0.0480104, 0.1495878, 0.002338, 1e-06],
    [0.1178877, 0.0497096, 0.0424189, 0.0003491],
    [0.0480809, 0.0027438, 0.1278359, 0.0211298],
    [0.0023487, 1.81e-05, 0.0461426, 0.1531893],
]
# By the same method between the first two, with reg=0.2, reg_m=0.5 and normalize_cost.
NORMALISED = {
    "sinkhorn": [
        [0.0777296, 0.1467898, 0.0239538, 0.0015269],
        [0.093175, 0.0777826, 0.064955, 0.0140874],
        [0.0608307, 0.0224481, 0.0959317, 0.0707895],
        [0.0182647, 0.0029795, 0.0651595, 0.1635963],
    ],
    "unbalanced": [
        [0.0690226, 0.124867, 0.0204345, 0.001064],
        [0.0886492, 0.0708934, 0.0593709, 0.0105182],
        [0.0601689, 0.0212705, 0.0911585, 0.0549481],
        [0.0190287, 0.0029736, 0.0652169, 0.1337534],
    ],
}


def test_entropic_plans_are_torchcfms():
    first, second, third = (POPULATIONS[:, k : k + 1] for k in range(3))
    sinkhorn = OTPlanSampler("sinkhorn", reg=1.0)
    np.testing.assert_allclose(sinkhorn.get_map(first, second), SINKHORN[0], atol=5e-4)
    np.testing.assert_allclose(sinkhorn.get_map(second, third), SINKHORN[1], atol=5e-4)
    unbalanced = OTPlanSampler("unbalanced", reg=1.0, reg_m=2.0).get_map(first, second)
    np.testing.assert_allclose(unbalanced, UNBALANCED, atol=5e-4)


@pytest.mark.parametrize("method", NORMALISED)
def test_costs_are_normalised_as_torchcfms(method):
    sampler = OTPlanSampler(method, reg=0.2, reg_m=0.5, normalize_cost=True)
    pi = sampler.get_map(POPULATIONS[:, :1], POPULATIONS[:, 1:2])
    np.testing.assert_allclose(pi, NORMALISED[method], atol=5e-4)


def test_the_bridge_has_the_entropic_plan_of_its_noise():
    """reg = 2 sigma^2, which is 1 here."""
    matcher = SchrodingerBridgeConditionalFlowMatcher(math.sqrt(0.5), "sinkhorn")
    pi = matcher.ot_sampler.get_map(POPULATIONS[:, :1], POPULATIONS[:, 1:2])
    np.testing.assert_allclose(pi, SINKHORN[0], atol=5e-4)


def test_a_bridge_with_hardly_any_noise_has_nearly_the_exact_pairs():
    """Where TorchCFM's plan underflows, and is replaced by the uniform one."""
    x0, x1 = batches()
    with pytest.warns(UserWarning, match="with so small a value"):
        matcher = SchrodingerBridgeConditionalFlowMatcher(5e-4, "sinkhorn")
    pi = matcher.ot_sampler.get_map(x0, x1)
    np.testing.assert_allclose(pi.sum(1), 1 / 64, rtol=1e-9)
    exact = OTPlanSampler("exact").get_map(x0, x1)
    assert pi[exact > 0].sum() > 0.99
    _, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
    assert mx.isfinite(xt).all()
    assert mx.isfinite(ut).all()


def test_entropic_plan_without_convergence_is_refused(monkeypatch):
    monkeypatch.setattr(plans, "plan", functools.partial(plans.plan, tolerance=0))
    with pytest.raises(entropic.NotConverged, match="give a larger reg"):
        OTPlanSampler("sinkhorn", reg=0.5).get_map(*batches())


@pytest.mark.parametrize("reg", [0.0, -1.0, math.nan])
def test_entropic_plan_without_entropy_is_refused(reg):
    for method in ("sinkhorn", "unbalanced"):
        with pytest.raises(ValueError, match=r"reg is .*; expected a number above 0"):
            OTPlanSampler(method, reg=reg).get_map(*batches())
    with pytest.raises(ValueError, match="reg is"):
        wasserstein(*batches(), "sinkhorn", reg=reg)


def test_other_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"reg_m is 0\.0; expected a number above 0"):
        OTPlanSampler("unbalanced", reg_m=0).get_map(*batches())
    with pytest.raises(ValueError, match=r"mass is 1\.5; expected a share"):
        OTPlanSampler("partial", mass=1.5).get_map(*batches())


def test_partial_plan_moves_a_share_and_leaves_outliers_out():
    """TorchCFM's moves everything."""
    x0, _ = batches()
    far = mx.concatenate([x0[:48] + 0.01, x0[48:] + 100])
    pi = OTPlanSampler("partial", mass=0.75).get_map(x0, far)
    np.testing.assert_allclose(pi, np.diag([1 / 64] * 48 + [0] * 16), rtol=1e-12)
    seed(0)
    i, j = OTPlanSampler("partial", mass=0.75).sample_map(pi, 64)
    np.testing.assert_array_equal(i, j)
    assert sorted(set(i.tolist())) == list(range(48))
    assert OTPlanSampler("partial").get_map(x0, x0).sum() == pytest.approx(58 / 64)


def test_exact_plan_is_a_permutation():
    x0, x1 = batches(shape=(2, 2))
    pi = OTPlanSampler("exact").get_map(x0, x1)
    np.testing.assert_array_equal(np.sort(pi)[:, -1], np.full(64, 1 / 64))
    assert np.count_nonzero(pi) == 64
    i, j = OTPlanSampler("exact").sample_map(pi, 64)
    np.testing.assert_array_equal(i, np.arange(64))
    np.testing.assert_array_equal(j, pi.argmax(1))


def test_exact_plan_far_from_the_origin():
    """Where distances in float32, as TorchCFM's, have no digits left."""
    x0, _ = batches()
    order = np.random.default_rng(0).permutation(64)
    far = mx.round(1024 * x0) / 1024 + 4096  # without rounding
    pi = OTPlanSampler("exact").get_map(far, far[mx.array(order)])
    np.testing.assert_array_equal(order[pi.argmax(1)], np.arange(64))


def test_exact_plan_between_batches_of_different_sizes():
    x, y = mx.array([[0.0], [1.0], [2.0]]), mx.array([[5.0], [3.0]])
    pi = OTPlanSampler("exact").get_map(x, y)
    np.testing.assert_allclose(pi, np.array([[0, 2], [1, 1], [2, 0]]) / 6)
    np.testing.assert_allclose(OTPlanSampler("exact").get_map(y, x), pi.T)
    assert [len(p) for p in OTPlanSampler("exact").sample_plan(y, x)] == [2, 2]


@pytest.mark.parametrize("method", PLANS)
def test_one_point_many_times(method):
    """All costs are 0, which a division by the largest must survive."""
    sampler = OTPlanSampler(method, normalize_cost=True, mass=1.0)
    pi = sampler.get_map(mx.ones((3, 2)), mx.ones((3, 2)))
    np.testing.assert_allclose(pi.sum(1), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(pi.sum(0), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("method", PLANS)
def test_points_that_are_not_finite_are_refused(method):
    x0, x1 = batches()
    x0[3, 1] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        OTPlanSampler(method).get_map(x0, x1)


PLAN = np.array([[3, 1, 0, 2], [0, 4, 1, 1], [2, 2, 2, 0]]) / 18
UNEVEN = np.array([[3, 1, 0, 2], [0, 0, 0, 0], [2, 2, 2, 0], [1, 0, 0, 0.5]])


def test_pairs_with_replacement_are_torchcfms():
    """TorchCFM's for PLAN, after np.random.seed(7)."""
    seed(7)
    i, j = OTPlanSampler("exact").sample_map(PLAN, 12, replace=True)
    assert i.tolist() == [0, 2, 1, 2, 2, 1, 1, 0, 0, 1, 2, 2]
    assert j.tolist() == [0, 1, 1, 0, 2, 1, 1, 0, 3, 1, 0, 1]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("plan", "size"), [(PLAN, 3), (PLAN, 7), (UNEVEN, 2)], ids=["rows", "more", "uneven"]
)
def test_pairs_are_as_frequent_as_the_plan_says(replace, plan, size):
    seed(0)
    sampler, counts, rounds = OTPlanSampler("exact"), np.zeros(plan.shape), 2000
    for _ in range(rounds):
        i, j = sampler.sample_map(plan, size, replace=replace)
        np.add.at(counts, (np.array(i), np.array(j)), 1)
    expected = rounds * size * plan / plan.sum()
    assert (counts[plan == 0] == 0).all()
    np.testing.assert_allclose(counts, expected, atol=4.5 * math.sqrt(expected.max()))


@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_rows_are_used_evenly_without_replacement(size):
    rows = UNEVEN.sum(1) / UNEVEN.sum() * size
    for number in range(50):
        seed(number)
        i, _ = OTPlanSampler("exact").sample_map(UNEVEN, size)
        counts = np.bincount(np.array(i), minlength=4)
        assert counts.sum() == size
        assert (np.abs(counts - rows) < 1).all()


def test_every_source_point_is_used_once_where_rows_are_even():
    i, _ = OTPlanSampler("exact").sample_map(PLAN, 3)
    assert i.tolist() == [0, 1, 2]


def test_samples_of_a_plan_are_points_and_labels_at_its_indices():
    x0, x1 = batches()
    sampler = OTPlanSampler("exact")
    for replace in (False, True):
        seed(0)
        a, b, y0, y1 = sampler.sample_plan_with_labels(x0, x1, mx.arange(64), None, replace)
        assert y1 is None
        np.testing.assert_array_equal(a, x0[y0])
        assert (len(set(y0.tolist())) == 64) is not replace
        seed(0)
        for p, q in zip((a, b), sampler.sample_plan(x0, x1, replace), strict=True):
            np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("method", PLANS)
def test_plan_with_scipy_is_the_permutation_and_keeps_shapes(method):
    x0, x1 = batches(shape=(2, 2))
    a, b = OTPlanSampler(method).sample_plan_with_scipy(x0, x1)
    expected = OTPlanSampler("exact").sample_plan(x0, x1)
    np.testing.assert_array_equal(a, x0)
    np.testing.assert_array_equal(b, expected[1])
    with pytest.raises(ValueError, match=r"x0 has 64 samples and x1 3; .* write sample_plan"):
        OTPlanSampler(method).sample_plan_with_scipy(x0, x1[:3])


@pytest.mark.parametrize("replace", [False, True])
def test_a_plan_without_mass_is_refused(replace):
    for plan in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="there are no pairs to draw"):
            OTPlanSampler("exact").sample_map(plan, 2, replace)


def test_trajectories_follow_exact_plans():
    """On a line every plan keeps the order."""
    x = np.random.default_rng(0).normal(size=(16, 3, 1))
    seed(0)
    paths = np.array(OTPlanSampler("exact").sample_trajectory(mx.array(x, mx.float32)))[..., 0]
    ranks = paths.argsort(0).argsort(0)
    np.testing.assert_array_equal(ranks, np.repeat(ranks[:, :1], 3, axis=1))
    np.testing.assert_allclose(np.sort(paths, 0), np.sort(x[..., 0], 0), rtol=1e-6)


def test_trajectories_by_seed_are_torchcfms(monkeypatch):
    """TorchCFM's sample_trajectory(POPULATIONS[..., None]) after np.random.seed(3)."""
    plans = iter(np.array(SINKHORN))
    sampler = OTPlanSampler("exact")
    monkeypatch.setattr(sampler, "get_map", lambda x0, x1: next(plans))
    seed(3)
    paths = sampler.sample_trajectory(POPULATIONS[..., None])
    expected = [[0.0, 0.0, 1.5], [1.0, 0.0, 1.5], [2.0, 2.0, 2.5], [3.0, 3.5, 2.5]]
    np.testing.assert_array_equal(paths[..., 0], expected)


def test_trajectories_need_mass(monkeypatch):
    sampler = OTPlanSampler("exact")
    monkeypatch.setattr(sampler, "get_map", lambda x0, x1: UNEVEN)
    with pytest.raises(ValueError, match="1 of 4 points have no mass in the plan to follow"):
        sampler.sample_trajectory(POPULATIONS[..., None])


# Distances


def test_distance_of_a_shift():
    x, _ = batches(shape=(2, 2))
    x = mx.round(1024 * x) / 1024 + 4096  # where TorchCFM's distances in float32 return 0
    shift = mx.array([[0.0, 2.0], [1.0, 2.0]])
    for options in ({"power": 1}, {"power": 2}, {"method": "exact"}):
        distance = wasserstein(x, x[::-1] + shift, **options)
        assert distance == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize(("power", "expected"), [(1, 0.5469547), (2, 0.7335084)])
def test_entropic_distance_is_torchcfms(power, expected):
    """TorchCFM's with reg=0.5."""
    x, y = POPULATIONS[:, :1], POPULATIONS[:3, 1:2]
    distance = wasserstein(x, y, "sinkhorn", reg=0.5, power=power)
    assert distance == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("power", "expected"), [(1, 2.0), (2, math.sqrt(8))])
def test_distance_has_the_power_of_the_cost(power, expected):
    x, y = mx.zeros((2, 1)), mx.array([[0.0], [4.0]])
    assert wasserstein(x, y, power=power) == pytest.approx(expected)


def test_bad_distances_are_refused():
    with pytest.raises(ValueError, match="power is 3; expected 1 or 2"):
        wasserstein(X0, X1, power=3)
    with pytest.raises(ValueError, match="unknown method 'emd'; known: exact"):
        wasserstein(X0, X1, method="emd")


# Network


@pytest.mark.parametrize(
    ("time_varying", "expected"),
    [
        (False, [-1.3145804, 1.8378954, -2.694253, 0.4641445, 0.8151031, -2.5038853]),
        (True, [0.594035, 0.1518199, -1.3568153, 0.7500124, 1.6503311, -4.3977442]),
    ],
)
def test_network_returns_torchcfms_numbers(time_varying, expected):
    """TorchCFM's MLP(2, 3, 4) with sin(k (n + 1)) as k-th of all entries of its n-th parameter."""
    network = MLP(2, 3, 4, time_varying)
    inputs = 3 if time_varying else 2
    shapes = [(4, inputs), (4,), (4, 4), (4,), (4, 4), (4,), (3, 4), (3,)]
    names = [f"net.{layer}.{part}" for layer in (0, 2, 4, 6) for part in ("weight", "bias")]
    values = [
        np.sin(np.arange(1, math.prod(shape) + 1) * (n + 1)).reshape(shape).astype(np.float32)
        for n, shape in enumerate(shapes)
    ]
    network.load_weights([(name, mx.array(v)) for name, v in zip(names, values, strict=True)])
    x = mx.array([[0.5, -1.0, 0.25], [2.0, 0.1, 0.75]])[:, :inputs]
    np.testing.assert_allclose(np.array(network(x)).ravel(), expected, rtol=2e-6, atol=2e-6)


def test_network_starts_as_in_pytorch_from_mlx_generator():
    """Weights and biases uniform in +-1/sqrt(fan in)."""
    mx.random.seed(0)
    network = MLP(3, w=256)
    for layer, inputs in zip(network.net[::2], (3, 256, 256, 256), strict=True):
        bound = 1 / math.sqrt(inputs)
        assert max(mx.abs(p).max().item() for p in (layer.weight, layer.bias)) <= bound
        assert mx.std(layer.weight).item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert mx.abs(layer.bias).max().item() > 0
    mx.random.seed(0)
    again = MLP(3, w=256)
    np.testing.assert_array_equal(network.net[2].weight, again.net[2].weight)
    assert network(mx.zeros((5, 3))).shape == (5, 3)


def test_star_import_brings_the_names():
    namespace = {}
    exec("from flowmlx.torchcfm import *", namespace)
    assert {matcher.__name__ for matcher in MATCHERS.values()} <= set(namespace)
    assert namespace["OTPlanSampler"] is torchcfm.OTPlanSampler

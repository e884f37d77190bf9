"""Conversions against the closed forms of Gaussian data, in float64."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

import closed_forms
from closed_forms import gaussian, gaussian_flow
from flowmlx.conversions import (
    KINDS,
    convert,
    host_amplitudes,
    reschedule,
    schedule,
    to_velocity,
)
from flowmlx.paths import (
    PATHS,
    AffinePath,
    Bridge,
    EncodingDecoding,
    GaussianPath,
    Linear,
    LinearVP,
    Mirror,
    OneSidedTrigonometric,
    Polynomial,
    Target,
    Trigonometric,
    TrigonometricBridge,
    VPDiffusion,
    expand_time,
)
from flowmlx.sampling import sample
from flowmlx.solvers import odeint_per_sample

# Paths with one noise.
CONVERTIBLE: dict[str, AffinePath] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "polynomial": Polynomial(2),
    "polynomial_3": Polynomial(3),
    "linear_vp": LinearVP(),
    "vp_diffusion": VPDiffusion(),
    "target": Target(),
    "target_noisy": Target(0.1),
    "one_sided_trigonometric": OneSidedTrigonometric(),
    "bridge": Bridge(0.0),
    "trigonometric_bridge": TrigonometricBridge(0.0),
    "mirror": Mirror(),
}
REFUSED = {
    "linear": Linear(0.1),
    "vp_diffusion": VPDiffusion(sigma=0.1),
    "bridge": Bridge(),
    "trigonometric_bridge": TrigonometricBridge(),
    "encoding_decoding": EncodingDecoding(),
}
PAIRS = list(itertools.product(KINDS, KINDS))
# Ends at which both alpha and beta are regular and one of them is 0.
CLOSED = ["linear", "trigonometric", "polynomial", "target", "one_sided_trigonometric"]


def float32(a):
    return np.asarray(a, np.float32)


def points(t, d=3):
    """Points that the flow visits, one row for each time, float32."""
    return float32(np.random.default_rng(1).normal(1.0, 1.0, (len(t), d)))


def test_every_path_is_converted_or_refused():
    known = {type(path) for path in (*CONVERTIBLE.values(), *REFUSED.values())}
    assert known == set(PATHS.values())


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_conversions_are_the_closed_forms(name):
    """Each to each, on the whole interval, to a few roundings of its two terms."""
    path = CONVERTIBLE[name]
    for given, wanted in PAIRS:
        t = closed_forms.times(path)
        solved = [closed_forms.conversion(path, given, wanted, k) for k in t]
        t = t[[k is not None for k in solved]]
        p, q = np.array([k for k in solved if k is not None]).T[..., None]
        assert len(t) > 250
        x = points(t)
        exact = gaussian(path, t[:, None], x)
        value = float32(exact[given])
        options = {"given": given, "wanted": wanted, "path": path}
        result = convert(mx.array(value), t=mx.array(t), x=mx.array(x), **options)
        terms = np.abs(p * value) + np.abs(q * x) + np.abs(exact[wanted])
        error = np.abs(result - exact[wanted])
        assert (error <= 16 * np.finfo(np.float32).eps * terms + 1e-12).all(), options


def is_undetermined(name, given, wanted, end):
    """Whether a conversion has no finite coefficients at an end of a path."""
    if given == wanted:
        return False
    if end == 1:
        return wanted == "score"
    if name == "polynomial":  # its velocity is 0 there, whatever the data
        return wanted == "x1"
    return given in ("x0", "score") and wanted in ("x1", "velocity")


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("name", CLOSED)
def test_ends_are_limits_or_refused(name, end):
    """Where alpha or beta is 0: the closed form, or the reason why there is none."""
    path, x, t = CONVERTIBLE[name], points([end]), mx.array([end])
    exact = gaussian(path, np.full((1, 1), end), x)
    for given, wanted in PAIRS:

        def converted(t, given=given, wanted=wanted):
            value = mx.array(float32(exact[given]))
            return convert(value, given=given, wanted=wanted, path=path, t=t, x=mx.array(x))

        # Traced, times cannot be read.
        traced = mx.vmap(converted)(t[None])
        if is_undetermined(name, given, wanted, end):
            reason = "beta = 0" if end == 1 else "alpha = 0|says nothing"
            said = f"{wanted} does not follow .* t = {end:g} .*{reason}"
            with pytest.raises(ValueError, match=said):
                converted(t)
            assert not np.isfinite(traced).any()  # no number that could mislead
        else:
            for result in (converted(t), traced[0]):
                np.testing.assert_allclose(result, exact[wanted], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_what_is_not_refused_is_finite(name):
    """At all times and both ends, for every pair."""
    path = CONVERTIBLE[name]
    low, high = path.interval
    x = mx.ones((1, 2))
    for given, wanted in PAIRS:
        for t in (low, 0.3, high):
            try:
                options = {"given": given, "wanted": wanted, "path": path, "t": mx.array(t)}
                assert mx.isfinite(convert(x, x=x, **options)).all()
            except ValueError as error:
                assert t != 0.3
                assert "does not follow" in str(error)  # noqa: PT017


def test_one_bad_time_of_a_batch_is_named():
    t, x = mx.array([0.5, 1.0, 0.2]), mx.ones((3, 2))
    with pytest.raises(ValueError, match=r"score does not follow from the velocity at t = 1 of"):
        convert(x, given="velocity", wanted="score", path=Linear(), t=t, x=x)
    options = {"given": "velocity", "wanted": "score", "path": Linear()}
    compiled = mx.compile(lambda t: convert(x, t=t, x=x, **options))(t)  # which cannot read it
    np.testing.assert_array_equal(np.isfinite(compiled).all(1), [True, False, True])


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 1)])
def test_time_goes_along_the_batch_whatever_the_shape(shape):
    """Batch == dim, images, and a scalar time: each sample as if converted alone."""
    t = mx.array([0.2, 0.5, 0.9])
    for given, wanted in PAIRS:
        keys = mx.random.split(mx.random.key(0), 2)
        value, x = (mx.random.normal(shape, key=k) for k in keys)
        options = {"given": given, "wanted": wanted, "path": Trigonometric()}
        together = convert(value, t=t, x=x, **options)
        for k in range(3):
            alone = convert(value[k : k + 1], t=t[k], x=x[k : k + 1], **options)
            np.testing.assert_allclose(together[k : k + 1], alone, rtol=1e-6)


def test_pairs_of_any_coupling_convert_without_the_score(key):
    """The first two equations ask nothing of the source."""
    x1 = mx.random.normal((64, 2), key=key) + 3
    x0 = -x1 + 5
    for path in (Linear(), Polynomial(3), LinearVP(), VPDiffusion(), Target(0.1)):
        t = mx.random.uniform(0.1, 0.9, (64,), key=key)
        s = path.sample(x0, x1, t, key=key)
        samples = {"velocity": s.ut, "x1": s.x1, "x0": s.x0}
        for given, wanted in itertools.product(samples, samples):
            result = convert(samples[given], given=given, wanted=wanted, path=path, t=t, x=s.xt)
            np.testing.assert_allclose(result, samples[wanted], rtol=1e-4, atol=1e-4)


def test_half_precision_is_converted_in_full():
    x = mx.ones((2, 2), dtype=mx.bfloat16)
    result = convert(x, given="velocity", wanted="x1", path=Linear(), t=mx.array(0.999), x=x)
    assert result.dtype == mx.bfloat16
    np.testing.assert_array_equal(result.astype(mx.float32), 1.0)  # 1.001, rounded once


@pytest.mark.parametrize("name", REFUSED)
def test_paths_with_noise_beside_x0_are_refused(name):
    x = mx.zeros((2, 2))
    for given, wanted in PAIRS:
        if given == wanted:
            continue
        with pytest.raises(ValueError, match="has noise of its own beside x0"):
            convert(x, given=given, wanted=wanted, path=REFUSED[name], t=mx.array(0.5), x=x)


def test_names_and_paths_that_do_not_fit_are_refused():
    x, t = mx.zeros((2, 2)), mx.array(0.5)
    with pytest.raises(ValueError, match=r"unknown kind 'velocty'.*did you mean 'velocity'"):
        convert(x, given="velocty", wanted="x1", path=Linear(), t=t, x=x)
    path = GaussianPath(lambda t, x0, x1: t * x1, lambda t, x0, x1: 1 - t)
    with pytest.raises(TypeError, match="needs the coefficients of an AffinePath"):
        convert(x, given="velocity", wanted="x1", path=path, t=t, x=x)
    with pytest.raises(ValueError, match=r"t has shape \(3,\)"):
        convert(x, given="velocity", wanted="x1", path=Linear(), t=mx.zeros(3), x=x)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_amplitudes_on_the_host(name):
    t = np.linspace(0, 1, 7)
    alpha, beta, *_ = closed_forms.one_noise(CONVERTIBLE[name], t)
    for k, exact in zip(host_amplitudes(CONVERTIBLE[name], t), (alpha, beta), strict=True):
        assert k.dtype == np.float64
        np.testing.assert_allclose(k, exact, rtol=2e-7, atol=1e-9)


# Sampling from predictions of other kinds


Z = np.linspace(-2, 2, 9)[:, None]


def perfect(kind, path):
    """A network that has learned Gaussian data: the conversion of the tested module, undone."""

    def model(t, x):
        return mx.array(float32(gaussian(path, np.array(t, np.float64), np.array(x))[kind]))

    return model


PREDICTED = ["x1", "x0", "score"]


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_velocity_of_a_perfect_prediction_is_the_closed_form(name):
    """Wherever neither the noise nor the data is less than the margin."""
    path, times = CONVERTIBLE[name], closed_forms.times(CONVERTIBLE[name])
    alpha, beta, *_ = closed_forms.one_noise(path, times)
    for kind in PREDICTED:
        share = (beta if kind == "x1" else alpha) / (alpha + beta)
        t = times[share > 2e-2]
        x = points(t)
        exact = gaussian(path, t[:, None], x)
        predicted = mx.array(float32(exact[kind]))
        velocity = to_velocity(lambda t, x, p=predicted: p, kind, path, margin=1e-3)
        error = np.abs(velocity(mx.array(t), mx.array(x)) - exact["velocity"])
        assert (error < 1e-3 * (1 + np.abs(exact["velocity"]))).all(), kind


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_velocity_of_any_prediction_is_finite_at_both_ends(name):
    for kind in PREDICTED:
        velocity = to_velocity(lambda t, x: x + 1, kind, CONVERTIBLE[name])
        for t in (mx.array(0.0), mx.array([0.0, 1.0]), mx.array(1.0)):
            assert np.isfinite(velocity(t, mx.array([[1.0, -2.0], [0.0, 3.0]]))).all(), kind


@pytest.mark.parametrize("name", sorted(set(CONVERTIBLE) - {"mirror"}))
def test_predictions_are_sampled(name):
    """Over all of [0, 1], with an error that goes with the margin."""
    path = CONVERTIBLE[name]
    x0 = mx.array(float32(gaussian_flow(path, 0.0, Z)))
    for kind, margin in (("x1", 1e-2), ("x1", 1e-3), ("x0", 1e-3), ("score", 1e-2)):
        field = to_velocity(perfect(kind, path), kind, path, margin=margin)
        x1 = sample(field, x0, rtol=1e-5, atol=1e-5).xs[-1]
        np.testing.assert_allclose(x1, gaussian_flow(path, 1.0, Z), atol=3 * margin)


def test_margin_is_the_least_denominator():
    x = mx.array([[1.0], [2.0], [3.0], [4.0]])
    t = mx.array([0.0, 0.5, 0.96, 1.0])
    field = to_velocity(lambda t, x: t[:, None] * mx.ones_like(x), "x1", Linear())
    expected = (t[:, None] - x) / mx.maximum(1 - t, 0.05)[:, None]
    np.testing.assert_allclose(field(t, x), expected, rtol=1e-6)
    field = to_velocity(lambda t, x: t[:, None] * mx.ones_like(x), "x0", Linear(), margin=0.1)
    expected = (x - t[:, None]) / mx.maximum(t, 0.1)[:, None]
    np.testing.assert_allclose(field(t, x), expected, rtol=1e-6)


def test_velocity_model_is_its_own_field():
    model = perfect("velocity", Linear())
    assert to_velocity(model, "velocity", Bridge()) is model


def test_predictions_that_do_not_determine_a_velocity_are_refused():
    with pytest.raises(ValueError, match="has noise of its own beside x0"):
        to_velocity(perfect("x1", Linear()), "x1", Linear(0.1))
    with pytest.raises(ValueError, match=r"margin is 0; expected a number above 0"):
        to_velocity(perfect("x1", Linear()), "x1", Linear(), margin=0)
    with pytest.raises(ValueError, match="unknown kind 'noise'"):
        to_velocity(perfect("x1", Linear()), "noise", Linear())


# Another schedule after training


def mixture_field(path, centre=2.0, std=0.3):
    """The exact velocity for data at -centre and centre, with that standard deviation."""

    def field(t, x):
        a, b, da, db = schedule(path, expand_time(t, x))
        variance = (a * std) ** 2 + b**2
        mean = centre * mx.tanh(a * centre * x / variance)  # of the component, given x
        x1 = mean + a * std**2 * (x - a * mean) / variance
        x0 = b * (x - a * mean) / variance
        return da * x1 + db * x0

    return field


# Those whose noise goes to 0, so that all flows end in the same points.
SCHEDULES = sorted(set(CONVERTIBLE) - {"mirror", "target_noisy"})


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("direction", ["to", "from"])
def test_another_schedule_ends_in_the_same_samples(name, direction):
    """From the linear path to each other one and back, with an adaptive and a fixed solver."""
    ends = (Linear(), CONVERTIBLE[name])
    path, new_path = ends if direction == "to" else ends[::-1]
    field = reschedule(perfect("velocity", path), path, new_path)
    x0 = mx.array(float32(gaussian_flow(new_path, 0.0, Z)))
    exact = gaussian_flow(new_path, 1.0, Z)
    tight = sample(field, x0, method="dopri5", rtol=1e-6, atol=1e-6)
    assert tight.stats.nfe < 150
    np.testing.assert_allclose(tight.xs[-1], exact, atol=1e-4)
    coarse, fine = (
        np.abs(sample(field, x0, method="euler", step_size=h).xs[-1] - exact).max()
        for h in (1 / 50, 1 / 100)
    )
    assert fine < 0.06
    assert coarse / fine == pytest.approx(2, rel=0.3)  # as Euler converges


@pytest.mark.parametrize("name", SCHEDULES)
def test_another_schedule_passes_its_own_points(name):
    """In between, the velocity is the one that training with that schedule would have found."""
    new_path = CONVERTIBLE[name]
    t = closed_forms.times(new_path)
    field = reschedule(mixture_field(Linear()), Linear(), new_path)
    x = mx.array(points(t))
    exact = mixture_field(new_path)(mx.array(t), x)
    speed = 1 + np.abs(exact)
    assert (np.abs(field(mx.array(t), x) - exact) / speed).max() < 2e-3


def test_curved_flows_end_in_the_same_samples():
    x0 = mx.array(float32(Z))
    straight = sample(mixture_field(Linear()), x0, rtol=1e-6, atol=1e-6).xs[-1]
    assert np.ptp(np.array(straight)) > 3
    for new_path in (Trigonometric(), Polynomial(3), LinearVP()):
        field = reschedule(mixture_field(Linear()), Linear(), new_path)
        for solve in (sample, odeint_per_sample_in):
            end = solve(field, x0, rtol=1e-6, atol=1e-6).xs[-1]
            np.testing.assert_allclose(end, straight, atol=3e-4)


def odeint_per_sample_in(field, x0, **options):
    return odeint_per_sample(field, x0, [0.0, 1.0], **options)


@pytest.mark.parametrize("name", SCHEDULES)
def test_another_schedule_is_finite_at_both_ends(name):
    for path, new_path in ((Linear(), CONVERTIBLE[name]), (CONVERTIBLE[name], Linear())):
        field = reschedule(lambda t, x: x + t.reshape(-1, 1), path, new_path)  # not perfect
        for t in (0.0, 1.0):
            assert np.isfinite(field(mx.array(t), mx.array([[1.0, -2.0]]))).all()


def test_ends_are_evaluated_at_the_ends():
    seen = []

    def model(t, x):
        seen.append(t.item())
        return x

    field = reschedule(to_velocity(model, "x1", Linear()), Linear(), Trigonometric())
    for t in (0.0, 0.5, 1.0):
        assert np.isfinite(field(mx.array(t), mx.ones((2, 2)))).all()
    assert seen == [0.0, pytest.approx(0.5, abs=1e-6), 1.0]


def test_predictions_of_x1_change_schedule():
    field = to_velocity(perfect("x1", Linear()), "x1", Linear(), margin=1e-3)
    solution = sample(reschedule(field, Linear(), Trigonometric()), mx.array(float32(Z)))
    np.testing.assert_allclose(solution.xs[-1], gaussian_flow(Linear(), 1.0, Z), atol=2e-3)


class Quadratic(AffinePath):
    """A path of a user, who left its interval as it is."""

    def coefficients(self, t):
        return t**2, 1 - t**2, self.sigma


class NarrowQuadratic(Quadratic):
    @property
    def interval(self):
        return 1e-3, 1.0


def test_schedules_of_users_come_and_go():
    """At t = 0 the velocity of Quadratic is 0 whatever the data: no other can be made of it."""
    field = reschedule(mixture_field(Linear()), Linear(), Quadratic())
    back = reschedule(field, NarrowQuadratic(), Linear())
    x0 = mx.array(float32(Z))
    straight, there, again = (
        sample(v, x0, rtol=1e-6, atol=1e-6).xs[-1] for v in (mixture_field(Linear()), field, back)
    )
    np.testing.assert_allclose(there, straight, atol=3e-4)
    np.testing.assert_allclose(again, straight, atol=3e-4)
    with pytest.raises(ValueError, match=r"Quadratic.* does not increase at t = 0, so"):
        reschedule(field, Quadratic(), Linear())


def test_schedules_that_do_not_go_from_noise_to_data_are_refused():
    with pytest.raises(ValueError, match=r"Mirror.* does not increase at t = 0\.001"):
        reschedule(lambda t, x: x, Linear(), Mirror())
    with pytest.raises(ValueError, match="has noise of its own beside x0"):
        reschedule(lambda t, x: x, Bridge(), Linear())


def test_a_condition_is_handed_on():
    x, path = mx.array([[1.0, -2.0], [0.5, 3.0]]), Linear()

    def model(t, x, cond=None):
        return x + (0.0 if cond is None else cond)

    field = to_velocity(model, "x1", path)
    for cond in (None, 2.0):
        given = () if cond is None else (cond,)
        plain = to_velocity(lambda t, x: model(t, x, cond), "x1", path)  # noqa: B023
        assert mx.array_equal(field(mx.array(0.3), x, *given), plain(mx.array(0.3), x))
    assert not mx.array_equal(field(mx.array(0.3), x, 2.0), field(mx.array(0.3), x))

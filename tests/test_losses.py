"""The loss: prediction x quantity of the error x time sampler x weight, as a grid."""

import itertools

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from scipy.integrate import quad

import closed_forms
from flowmlx.conversions import schedule, to_velocity
from flowmlx.losses import TARGETS, WEIGHTS, flow_matching_loss, velocity_loss
from flowmlx.nets import MLP
from flowmlx.paths import (
    Bridge,
    GaussianPath,
    Linear,
    LinearVP,
    Mirror,
    Polynomial,
    Target,
    VPDiffusion,
    expand_time,
)
from flowmlx.sampling import sample
from flowmlx.times import TIME_SAMPLERS, stratified
from flowmlx.training import TrainState, fit, learning_rate

KINDS = list(itertools.product(TARGETS, TARGETS))
X0, X1 = (mx.random.normal((64, 2), key=mx.random.key(k)) + k for k in (0, 2))


def conditional(path, prediction, x0=X0, x1=X1):
    """The field that knows the pair it is at: the exact target of the loss."""

    def field(t, x):
        _, _, da, db = schedule(path, expand_time(t, x))
        return {"velocity": da * x1 + db * x0, "x1": x1, "x0": x0}[prediction]

    return field


# Every quantity with every other; every other time sampler and weight beside one of them.
CHOICES = [(*kind, "uniform", "unweighted") for kind in KINDS]
CHOICES += [("x1", "velocity", sampler, "unweighted") for sampler in [*TIME_SAMPLERS][1:]]
CHOICES += [("x0", "x1", "uniform", weight) for weight in [*WEIGHTS][1:]]


@pytest.mark.parametrize(("prediction", "regress", "time_sampler", "weight"), CHOICES)
def test_every_choice_is_zero_at_the_target_and_nowhere_else(
    prediction, regress, time_sampler, weight, key
):
    """With finite gradients that point back to the target."""
    for path in (Linear(), VPDiffusion()):
        loss = flow_matching_loss(
            path,
            prediction=prediction,
            regress=regress,
            time_sampler=TIME_SAMPLERS[time_sampler],
            weight=WEIGHTS[weight],
        )
        exact = conditional(path, prediction)

        def at(offset, loss=loss, exact=exact):
            return loss(lambda t, x: exact(t, x) + offset, X0, X1, key=key)

        assert at(mx.array(0.0)).item() < 1e-8
        value, gradient = mx.value_and_grad(at)(mx.array(0.5))
        assert 1e-3 < value.item() < np.inf
        assert gradient.item() == pytest.approx(2 * value.item() / 0.5, rel=1e-4)


# p and weight by hand, on the linear path: 1/m is the bound on p.
LINEAR = [
    ("velocity", "velocity", "unweighted", lambda t: 1),
    ("x1", "velocity", "unweighted", lambda t: 1 / max(1 - t, 0.05) ** 2),
    ("x0", "velocity", "unweighted", lambda t: 1 / max(t, 0.05) ** 2),
    ("velocity", "x1", "unweighted", lambda t: (1 - t) ** 2),
    ("velocity", "x0", "unweighted", lambda t: t**2),
    ("x1", "x0", "unweighted", lambda t: min(t / (1 - t), 20) ** 2 if t < 1 else 400),
    ("x1", "x1", "min_snr", lambda t: min(t / (1 - t), 5**0.5) ** 2 if t < 1 else 5),
    ("velocity", "velocity", "cosmap", lambda t: 2 / (np.pi - 2 * np.pi * t * (1 - t))),
    ("velocity", "velocity", "brownian", lambda t: 4 * t * (1 - t)),
]


@pytest.mark.parametrize(("prediction", "regress", "weight", "factor"), LINEAR)
def test_error_of_one_quantity_is_that_of_another_times_a_function_of_time(
    prediction, regress, weight, factor, key
):
    """An offset of 1 in the prediction costs the mean of that function over all times."""
    loss = flow_matching_loss(
        Linear(),
        prediction=prediction,
        regress=regress,
        weight=WEIGHTS[weight],
        time_sampler=stratified,
    )
    x0, x1 = mx.zeros((20_000, 1)), mx.ones((20_000, 1))
    exact = conditional(Linear(), prediction, x0, x1)
    value = loss(lambda t, x: exact(t, x) + 1, x0, x1, key=key).item()
    assert value == pytest.approx(quad(factor, 0, 1, points=[0.05, 0.95])[0], rel=2e-3)


@pytest.mark.parametrize("prediction_regress", KINDS, ids="-".join)
@pytest.mark.parametrize("path", [Linear(), VPDiffusion(), Target(0.1)], ids=repr)
def test_minimiser_is_the_conditional_expectation(path, prediction_regress, key):
    """Gaussian data at one time: the best line in x, whatever the error is measured in."""
    prediction, regress = prediction_regress
    time, n = 0.4, 40_000
    keys = mx.random.split(key, 3)
    x0, z = (mx.random.normal((n, 1), key=k) for k in keys[:2])
    x1 = closed_forms.MEAN + closed_forms.VARIANCE**0.5 * z
    loss = flow_matching_loss(
        path,
        prediction=prediction,
        regress=regress,
        time_sampler=lambda n, *, key, interval: mx.full((n,), time),
    )

    def at(line):
        return loss(lambda t, x: line[0] + line[1] * (x - 1), x0, x1, key=keys[2])

    # A quadratic in two numbers: its gradients at three points give where it is least.
    gradient = mx.grad(at)
    at_0, *columns = (np.array(gradient(mx.array(p))) for p in ([0.0, 0], [1.0, 0], [0.0, 1]))
    best = np.linalg.solve(np.stack([c - at_0 for c in columns], axis=1), -at_0)
    exact = [closed_forms.gaussian(path, time, x)[prediction] for x in (1.0, 2.0)]
    np.testing.assert_allclose(best, [exact[0], exact[1] - exact[0]], atol=0.05)


def test_function_of_ones_own_takes_the_place_of_the_regression(key):
    a = flow_matching_loss(Linear(0.1))
    b = flow_matching_loss(Linear(0.1), regress=velocity_loss)
    field = conditional(Linear(), "x1")
    assert a(field, X0, X1, key=key).item() == b(field, X0, X1, key=key).item()
    with pytest.raises(ValueError, match="of no use to a regress function of your own"):
        flow_matching_loss(Linear(), regress=velocity_loss, prediction="x1")


@pytest.mark.parametrize("prediction_regress", KINDS, ids="-".join)
def test_times_that_meet_an_end_are_finite(prediction_regress, key):
    """0 and 1 themselves, and the middle of the mirror, where the velocity says nothing."""
    x0, x1 = mx.zeros((2, 1)), mx.ones((2, 1))
    prediction, regress = prediction_regress
    for path, t in ((Linear(), [0.0, 1.0]), (Polynomial(), [0.0, 1.0]), (Mirror(), [0.5, 0.5])):
        loss = flow_matching_loss(
            path,
            prediction=prediction,
            regress=regress,
            time_sampler=lambda n, *, key, interval, t=t: mx.array(t),
        )

        def at(offset, loss=loss):
            return loss(lambda t, x: x + offset, x0, x1, key=key)

        value, gradient = mx.value_and_grad(at)(mx.array(0.5))
        assert np.isfinite([value.item(), gradient.item()]).all()


def test_weights_of_the_path_are_the_path_s(key):
    """min_snr on the linear VP path: t^2 / (1 - t^2), at most 5."""
    t = mx.array([0.0, 0.5, 0.99])
    np.testing.assert_allclose(WEIGHTS["min_snr"](LinearVP(), t), [0, 1 / 3, 5], rtol=1e-5)
    np.testing.assert_allclose(WEIGHTS["min_snr"](Target(), mx.array([1.0])), [5])


def test_brownian_weight_evens_out_the_bridge(key):
    """The mean square of gamma' eps times the weight is 1 - 4 t (1 - t): bounded."""
    x = mx.zeros((20_000, 1))
    for t in (2e-3, 0.2, 0.5):
        loss = flow_matching_loss(
            Bridge(),
            weight=WEIGHTS["brownian"],
            time_sampler=lambda n, *, key, interval, t=t: mx.full((n,), t),
        )
        value = loss(lambda t, x: mx.zeros_like(x), x, x, key=key).item()
        assert value == pytest.approx(1 - 4 * t * (1 - t), rel=0.05, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["x1", "x0"])
def test_trained_predictions_are_sampled(prediction, key, without_compile):
    """From N(0, 1) to the Gaussian data, whatever the network has learned to say."""
    loss = flow_matching_loss(Linear(), prediction=prediction, time_sampler=stratified)

    def batches(step):
        keys = mx.random.split(mx.random.key(step), 2)
        x0, z = (mx.random.normal((256, 1), key=k) for k in keys)
        return x0, closed_forms.MEAN + closed_forms.VARIANCE**0.5 * z

    model = MLP(1, key=key, width=32, activation="relu")
    optimizer = optim.Adam(learning_rate(5e-3, steps=500, schedule="cosine"))
    fit(TrainState(model, optimizer), batches, loss=loss, steps=500, key=key)
    field = to_velocity(model, prediction, Linear())
    x1 = np.array(sample(field, mx.random.normal((4000, 1), key=key)).xs[-1])
    assert x1.mean() == pytest.approx(closed_forms.MEAN, abs=0.08)
    assert x1.std() == pytest.approx(closed_forms.VARIANCE**0.5, abs=0.08)


def test_choices_that_cannot_work_are_refused_before_training():
    with pytest.raises(ValueError, match="has noise of its own beside x0"):
        flow_matching_loss(Linear(0.1), prediction="x1", regress="x1")
    with pytest.raises(ValueError, match="has noise of its own beside x0"):
        flow_matching_loss(Bridge(), regress="x0")
    path = GaussianPath(lambda t, x0, x1: t * x1, lambda t, x0, x1: 1 - t)
    flow_matching_loss(path)
    with pytest.raises(TypeError, match="needs the coefficients of an AffinePath"):
        flow_matching_loss(path, prediction="x1")
    with pytest.raises(ValueError, match=r"unknown prediction 'x2'.*known: velocity, x1, x0"):
        flow_matching_loss(Linear(), prediction="x2")
    with pytest.raises(ValueError, match="unknown quantity to regress 'score'"):
        flow_matching_loss(Linear(), regress="score")
    with pytest.raises(ValueError, match="margin is 0; expected a number above 0"):
        flow_matching_loss(Linear(), prediction="x1", margin=0)

"""Every public function, a call of it and what its arguments are: for test_boundary.py."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx import (
    bridges,
    conditions,
    conversions,
    couplings,
    guidance,
    keys,
    likelihood,
    losses,
    metrics,
    nets,
    paths,
    sampling,
    snapshots,
    solvers,
    times,
    torchcfm,
    training,
)
from flowmlx.couplings import semidiscrete
from flowmlx.data import TOY, arrays, streams, toy
from flowmlx.solvers import grids
from flowmlx.transport import plans

KEY = mx.random.key(3)
# Small whole numbers and quarters, which every type holds exactly.
X = mx.array([[0.0, 1.0], [2.0, 3.0], [1.0, 4.0]])
Y = mx.array([[1.0, 0.0], [3.0, 1.0], [2.0, 2.0]])
Z = mx.array([[2.0, 1.0], [0.0, 1.0], [1.0, 3.0]])
T = mx.array([0.25, 0.5, 0.75])
LABELS = mx.array([0, 1, 0])
NUMBERS = mx.array([1.0, 2.0, 4.0])


class Case(NamedTuple):
    """A call and what it is given.

    `points`: arguments of real numbers of any kind; `times`: such that are fractions; `labels`:
    integers; `fields`: functions that must return arrays of MLX. `empty`: what no rows give, a
    result or an error. `optional`: arguments that None is right for. `scalars`: arguments whose
    arrays may have no axes.
    """

    call: Callable
    given: dict[str, Any]
    points: str = ""
    times: str = ""
    labels: str = ""
    counts: str = ""
    numbers: str = ""
    fields: str = ""
    empty: str = "result"
    optional: str = ""
    scalars: str = ""
    trees: bool = False


def field(t, x):
    return 0.5 * x


def with_cond(t, x, cond=None):
    return 0.5 * x if cond is None else 0.25 * x


def model(t, x):
    return 0.5 * x, 0.25 * x


def regressed(field, x0, x1, *, key, **options):
    return losses.flow_matching_loss(paths.Linear(), **options)(field, x0, x1, key=key)


def guided(method, field, t, x, cond, weight, **options):
    return method(field, cond, weight, **options)(t, x)


def seeded(function, *arguments, **options):
    np.random.seed(0)  # noqa: NPY002
    mx.random.seed(0)
    return function(*arguments, **options)


NORMAL = {"key": KEY}
PAIR = {"x0": X, "x1": Y}
AT = {"t": T, "x": X}
END = (0.0, 1.0)
MLP = nets.MLP(2, key=KEY, width=4)
TOLD = nets.MLP(2, key=KEY, width=4, cond_dim=3)
HOST = "error"  # of no rows

CASES: dict[str, Case] = {}


def case(name: str, call: Callable, given: dict, points: str = "", **options: Any) -> None:
    CASES[name] = Case(call, given, points, **options)


for path in (paths.Linear(0.5), paths.Target(0.5), paths.TrigonometricBridge()):
    kind = f"paths.{type(path).__name__}"
    case(f"{kind}.sample", path.sample, {**PAIR, "t": T, **NORMAL}, "x0 x1", times="t", scalars="t")
    case(
        f"{kind}.point", path.point, {**PAIR, "t": T, "eps": Z}, "x0 x1 eps", times="t", scalars="t"
    )
    case(
        f"{kind}.velocity", path.velocity, {"t": T, "x": Z, **PAIR}, "x x0 x1", times="t",
        scalars="t",
    )  # fmt: skip
for name, options in {
    "linear": {},
    "trigonometric": {},
    "polynomial": {"n": 2},
    "vp_diffusion": {"beta_min": 0.1, "beta_max": 20.0, "margin": 1e-3},
}.items():
    case(
        f"paths.PATHS[{name}]",
        lambda name=name, **options: paths.PATHS[name](**options).coefficients(T),
        {"sigma": 0.5, **options},
        numbers=" ".join(["sigma", *(k for k in options if k != "n")]),
        counts="n" if "n" in options else "",
    )
gaussian = paths.GaussianPath(lambda t, x0, x1: t * x1, lambda t, x0, x1: 1 - t / 2)
case(
    "paths.GaussianPath.sample", gaussian.sample, {**PAIR, "t": T, **NORMAL}, "x0 x1", times="t",
    scalars="t",
)  # fmt: skip
case(
    "paths.GaussianPath.velocity", gaussian.velocity, {"t": T, "x": Z, **PAIR}, "x x0 x1",
    times="t", scalars="t",
)  # fmt: skip
case("paths.expand_time", paths.expand_time, AT, "x", times="t", scalars="t")
case(
    "paths.time_derivative",
    lambda t: paths.time_derivative(lambda t: (t * t, 1 - t), t),
    {"t": T},
    times="t",
    scalars="t",
)

for given, wanted in (("velocity", "x1"), ("x1", "score"), ("x0", "velocity")):
    case(
        f"conversions.convert {given} {wanted}",
        functools.partial(conversions.convert, given=given, wanted=wanted, path=paths.Linear()),
        {"value": Y, "t": T, "x": X},
        "value x",
        times="t",
        scalars="t",
    )
for name in ("amplitudes", "schedule"):
    function = functools.partial(getattr(conversions, name), paths.Linear())
    case(f"conversions.{name}", function, {"t": T}, times="t", scalars="t")
case(
    "conversions.host_amplitudes",
    functools.partial(conversions.host_amplitudes, paths.Trigonometric()),
    {"ts": T},
    times="ts",
    scalars="ts",
)
case(
    "conversions.factors",
    functools.partial(conversions.factors, paths.Linear(), "velocity", "x1"),
    {"t": T},
    times="t",
    scalars="t",
)
case(
    "conversions.to_velocity",
    lambda model, t, x, margin: conversions.to_velocity(model, "x1", paths.Linear(), margin=margin)(
        t, x
    ),
    {"model": field, "margin": 0.05, **AT},
    "x",
    times="t",
    fields="model",
    numbers="margin",
    scalars="t",
)
case(
    "conversions.reschedule",
    lambda field, t, x: conversions.reschedule(field, paths.Linear(), paths.Trigonometric())(t, x),
    {"field": field, **AT},
    "x",
    times="t",
    fields="field",
    scalars="t",
)

case(
    "bridges.TwoHeads",
    lambda t, x: bridges.TwoHeads(lambda t, x: mx.concatenate([x, t[:, None] * x], -1))(t, x),
    {"t": NUMBERS, "x": X},
    "x",
)
case(
    "bridges.VelocityOf", lambda model, t, x: bridges.VelocityOf(model)(t, x),
    {"model": model, **AT}, "x", fields="model",
)  # fmt: skip
case(
    "bridges.score_flow_loss",
    lambda field, **given: regressed(
        field, regress=bridges.score_flow_loss(paths.Bridge()), **given
    ),
    {"field": model, **PAIR, **NORMAL},
    "x0 x1",
    fields="field",
    empty=HOST,
)
case(
    "bridges.sample_bridge",
    functools.partial(bridges.sample_bridge, step_size=0.25),
    {"model": model, "x": X, "sigma": 0.5, "ts": mx.array(END), **NORMAL},
    "x",
    times="ts",
    fields="model",
    numbers="sigma step_size",
)

for name in ("independent", "exact_ot", "sinkhorn", "unbalanced", "partial"):
    coupling = couplings.COUPLINGS[name]
    arguments = functools.partial(lambda coupling, x0, x1, key: coupling(x0, x1, key=key), coupling)
    case(f"couplings.{name}", arguments, {**PAIR, **NORMAL}, "x0 x1", empty=HOST, optional="key")
case(
    "couplings.schroedinger",
    lambda sigma, x0, x1, key: couplings.schroedinger(sigma)(x0, x1, key=key),
    {"sigma": 2.0, **PAIR, **NORMAL},
    "x0 x1",
    numbers="sigma",
    empty=HOST,
    optional="key",
)
case(
    "couplings.sinkhorn options",
    lambda **options: couplings.sinkhorn(**options)(X, Y, key=KEY),
    {"reg": 2.0, "tolerance": 1e-3, "iterations": 1000},
    numbers="reg tolerance",
    counts="iterations",
)
case(
    "couplings.partial options", lambda mass: couplings.partial(mass)(X, Y), {"mass": 0.9},
    numbers="mass",
)  # fmt: skip
case(
    "couplings.conditional",
    lambda x0, x1, condition, weight, key: couplings.conditional(weight=weight)(
        x0, x1, condition, key=key
    ),
    {**PAIR, "condition": LABELS, "weight": 2.0, **NORMAL},
    "x0 x1",
    labels="condition",
    numbers="weight",
    empty=HOST,
    optional="key",
)
case(
    "couplings.squared_distances", couplings.squared_distances, {"x": X, "y": Y}, "x y", empty=HOST
)

for prediction, regress in (("velocity", "velocity"), ("x1", "velocity")):
    case(
        f"losses.flow_matching_loss {prediction}",
        functools.partial(regressed, prediction=prediction, regress=regress),
        {"field": field, **PAIR, **NORMAL},
        "x0 x1",
        fields="field",
        empty=HOST,
    )
for name in losses.WEIGHTS:
    weight = functools.partial(losses.WEIGHTS[name], paths.Linear())
    if name != "unweighted":
        case(f"losses.{name}", weight, {"t": T}, times="t", scalars="t")

for name, sampler in times.TIME_SAMPLERS.items():
    case(f"times.{name}", sampler, {"n": 3, **NORMAL, "interval": (0.25, 0.75)}, counts="n")
case("times.shift", times.shift, {"t": T, "factor": 3.0}, times="t", numbers="factor", scalars="t")

case(
    "sampling.sample", sampling.sample, {"field": field, "x0": X, "ts": mx.array(END)}, "x0",
    times="ts", fields="field",
)  # fmt: skip
case(
    "sampling.sample options",
    lambda **options: sampling.sample(field, X, method="dpmpp_2m", path=paths.Linear(), **options),
    {"step_size": 0.25},
    optional="step_size",
    numbers="step_size",
)
case(
    "sampling.reflow_pairs",
    sampling.reflow_pairs,
    {"field": with_cond, "x0": X, "cond": NUMBERS, "batch_size": 2},
    "x0 cond",
    fields="field",
    counts="batch_size",
    optional="cond",
)
case(
    "sampling.sample_sde",
    functools.partial(sampling.sample_sde, step_size=0.25),
    {"field": field, "x0": X, "ts": mx.array([0.25, 1.0]), "noise": 0.5, **NORMAL},
    "x0",
    times="ts",
    fields="field",
    numbers="noise step_size",
)

for divergence in ("exact", "hutchinson"):
    case(
        f"likelihood.log_prob {divergence}",
        functools.partial(likelihood.log_prob, divergence=divergence, step_size=0.5, method="rk4"),
        {
            "field": field,
            "x1": X,
            "log_p0": likelihood.standard_normal_log_prob,
            "samples": 2,
            **({} if divergence == "exact" else NORMAL),
        },
        "x1",
        trees=True,
        fields="field log_p0",
        counts="" if divergence == "exact" else "samples",
    )
case(
    "likelihood.standard_normal_log_prob",
    likelihood.standard_normal_log_prob,
    {"x": X},
    "x",
    trees=True,
)
case(
    "likelihood.exact_divergence",
    likelihood.exact_divergence,
    {"field": field, "t": mx.array(0.5), "x": X},
    "x",
    trees=True,
    fields="field",
)
case(
    "likelihood.bits_per_dim",
    likelihood.bits_per_dim,
    {"log_prob": NUMBERS, "dim": 2, "bin_width": 0.5},
    "log_prob",
    counts="dim",
    numbers="bin_width",
    scalars="log_prob",
)

for name, options in {"cfg": {}, "cfg_zero_star": {"zero_before": 0.5}}.items():
    case(
        f"guidance.{name}",
        functools.partial(guided, guidance.GUIDANCE[name]),
        {"field": with_cond, **AT, "cond": LABELS, "weight": NUMBERS, **options},
        "x",
        times="t",
        fields="field",
        numbers="zero_before" if options else "",
        scalars="t",
    )
case(
    "guidance.autoguidance",
    functools.partial(guided, guidance.autoguidance),
    {"field": with_cond, **AT, "cond": LABELS, "weight": NUMBERS, "weak": with_cond},
    "x weight",
    times="t",
    fields="field weak",
    scalars="t weight",
)
case(
    "guidance.interval",
    lambda weight, low, high, t: guidance.interval(weight, low, high)(t),
    {"weight": NUMBERS, "low": 0.25, "high": 0.5, "t": T},
    "weight",
    times="t",
    numbers="low high",
    scalars="t weight",
    empty="",
)
case(
    "guidance.zero_init",
    lambda field, zero_before, t, x: guidance.zero_init(field, zero_before)(t, x),
    {"field": field, "zero_before": 0.5, **AT},
    "x",
    times="t",
    fields="field",
    numbers="zero_before",
    scalars="t",
)

SAMPLES = {"x": X, "y": Y}
case("metrics.wasserstein", metrics.wasserstein, SAMPLES | {"p": 2}, "x y", numbers="p", empty=HOST)
case(
    "metrics.sliced_wasserstein",
    metrics.sliced_wasserstein,
    SAMPLES | NORMAL | {"p": 2, "projections": 8},
    "x y",
    numbers="p",
    counts="projections",
    empty=HOST,
)
case("metrics.column_wasserstein", metrics.column_wasserstein, SAMPLES, "x y", empty=HOST)
case("metrics.energy_distance", metrics.energy_distance, SAMPLES, "x y", empty=HOST)
case(
    "metrics.rbf_mmd", metrics.rbf_mmd, SAMPLES | {"bandwidth": 2.0}, "x y", numbers="bandwidth",
    empty=HOST, optional="bandwidth",
)  # fmt: skip
case(
    "metrics.classifier_two_sample_test", metrics.classifier_two_sample_test, SAMPLES | NORMAL,
    "x y", empty=HOST,
)  # fmt: skip
case(
    "metrics.path_energy", metrics.path_energy, {"ts": NUMBERS, "velocities": X}, "ts velocities",
    empty=HOST,
)  # fmt: skip
case(
    "metrics.normalised_path_energy", metrics.normalised_path_energy, {"energy": 3.0, "w2": 1.5},
    numbers="energy w2",
)  # fmt: skip

case("nets.MLP", MLP, AT, "x", times="t", scalars="t")
case(
    "nets.MLP cond",
    TOLD,
    {**AT, "cond": LABELS},
    "x",
    times="t",
    labels="cond",
    optional="cond",
    scalars="t cond",
)
case(
    "nets.ConditionEmbedding",
    nets.ConditionEmbedding(3, 4, key=KEY),
    {"cond": LABELS},
    labels="cond",
    scalars="cond",
    optional="cond",
)
case(
    "nets.MLP made",
    lambda **options: nets.MLP(**options)(T, X),
    {"dim": 2, "width": 4, "depth": 1, "out_dim": 2, **NORMAL},
    counts="dim width depth out_dim",
    optional="out_dim",
)

for name, draw in TOY.items():
    case(f"data.TOY[{name}]", draw, {"n": 3, **NORMAL}, counts="n")
case(
    "data.TOY[pinwheel] options",
    functools.partial(toy.pinwheel, 3),
    {"arms": 5, "rate": 0.25, "scale": 2.0, **NORMAL},
    counts="arms",
    numbers="rate scale",
)
case("data.toy.eight_gaussians_log_prob", toy.eight_gaussians_log_prob, {"x": X}, "x")
case(
    "data.streams.shuffled",
    lambda rows, others, n, step, key: streams.shuffled(rows, others)(n, step, key=key),
    {"rows": X, "others": LABELS, "n": 4, "step": 2, **NORMAL},
    "rows",
    labels="others",
    counts="n step",
    empty=HOST,
)
case(
    "data.streams.resampled",
    lambda rows, n, key: streams.resampled(rows)(n, key=key),
    {"rows": X, "n": 4, **NORMAL},
    "rows",
    counts="n",
    empty=HOST,
)
case(
    "data.streams.whole", lambda rows: streams.whole(rows)(1, 0, key=KEY), {"rows": X}, "rows",
    empty=HOST,
)  # fmt: skip
case(
    "data.streams.Labelled",
    lambda rows, labels, key: streams.Labelled(rows, labels).alike([0, 1], key=key),
    {"rows": X, "labels": LABELS, **NORMAL},
    "rows",
    labels="labels",
    empty=HOST,
)
case(
    "data.streams.Labelled.alike",
    streams.Labelled(np.array(X), np.array(LABELS)).alike,
    {"labels": LABELS, **NORMAL},
    labels="labels",
)
TABLE = arrays.Table(("a", "b"), np.array(X, np.float64))
case(
    "data.Standardizer.transform",
    arrays.Standardizer.fit(TABLE).transform,
    {"x": X},
    "x",
)
case("data.Standardizer.inverse", arrays.Standardizer.fit(TABLE).inverse, {"z": X}, "z")
case("data.in_form", lambda values: arrays.in_form("numpy", "ab", values), {"values": X}, "values")
case(
    "data.split",
    lambda holdout, key: arrays.split(TABLE, holdout, key=key)[0].values,
    {"holdout": 0.4, **NORMAL},
    numbers="holdout",
)

case(
    "training.paired_batches",
    lambda batch_size, block, key: training.paired_batches(
        streams.shuffled(np.array(X)),
        streams.shuffled(np.array(Y)),
        batch_size,
        key=key,
        coupling=couplings.exact_ot,
        block=block,
        ahead=0,
    )(1),
    {"batch_size": 2, "block": 2, **NORMAL},
    counts="batch_size block",
    optional="block",
)
case(
    "training.learning_rate",
    lambda peak, steps, warmup_steps: training.learning_rate(
        peak, steps=steps, warmup_steps=warmup_steps
    )(mx.array(2)),
    {"peak": 0.5, "steps": 8, "warmup_steps": 4},
    numbers="peak",
    counts="steps warmup_steps",
)

for method, options in {"dopri5": {}, "rk4": {"step_size": 0.25}}.items():
    case(
        f"solvers.odeint {method}",
        functools.partial(solvers.odeint, method=method),
        {"field": field, "x0": X, "ts": mx.array(END), **options},
        "x0",
        times="ts",
        trees=True,
        fields="field",
        numbers="step_size" if options else "",
        optional="step_size",
        scalars="x0",
    )
case(
    "solvers.odeint options",
    lambda **options: solvers.odeint(field, X, END, **options),
    {"rtol": 1e-3, "atol": 1e-3, "max_steps": 100},
    numbers="rtol atol",
    counts="max_steps",
)
case(
    "solvers.odeint grid",
    lambda **options: solvers.odeint(field, X, END, method="euler", **options),
    {"grid": mx.array([0.0, 0.25, 1.0])},
    times="grid",
    optional="grid",
)
case(
    "solvers.odeint dense",
    solvers.odeint(field, X, END, dense=True),
    {"t": T},
    times="t",
    scalars="t",
)
case(
    "solvers.odeint event",
    lambda event: solvers.odeint(field, X, END, event=event),
    {"event": lambda t, x: t - 0.5},
    optional="event",
    fields="event",
)
case(
    "solvers.odeint_per_sample",
    solvers.odeint_per_sample,
    {"field": field, "x0": X, "ts": mx.array(END)},
    "x0",
    times="ts",
    trees=True,
    fields="field",
)
case(
    "solvers.odeint_value_and_grad",
    lambda loss, field, x0, ts: solvers.odeint_value_and_grad(
        loss, field, x0, ts, method="rk4", step_size=0.5
    )[:2],
    {"loss": lambda xs: xs[-1].sum(), "field": field, "x0": X, "ts": mx.array(END)},
    "x0",
    trees=True,
    fields="loss field",
    empty=HOST,
    scalars="x0",
)
case(
    "solvers.sdeint",
    solvers.sdeint,
    {
        "drift": field,
        "diffusion": lambda t, x: mx.array(0.5),
        "x0": X,
        "ts": mx.array(END),
        "step_size": 0.25,
        **NORMAL,
    },
    "x0",
    times="ts",
    trees=True,
    fields="drift diffusion",
    numbers="step_size",
    scalars="x0",
)
case(
    "solvers.BrownianMotion",
    lambda shape, span, key, s, t: solvers.BrownianMotion(shape, span, key=key)(s, t),
    {"shape": (2,), "span": 1.0, "s": 0.25, "t": 0.75, **NORMAL},
    numbers="span s t",
)
case(
    "solvers.Controller",
    lambda **options: solvers.odeint(field, X, END, control=solvers.Controller(**options)),
    {"safety": 0.9, "max_factor": 4.0, "first_step": 0.25},
    numbers="safety max_factor first_step",
    optional="first_step",
)
case("solvers.grids.sine", grids.sine, {"n": 4}, counts="n")
case("solvers.grids.shifted", grids.shifted, {"n": 4, "factor": 0.5}, counts="n", numbers="factor")

case("keys.fold_in", lambda key: keys.fold_in(key, "a", 1), NORMAL)
case("keys.generator", lambda key: keys.generator(key).random(3), NORMAL)
case(
    "conditions.drop", conditions.drop, {"cond": LABELS, "rate": 0.5, **NORMAL}, labels="cond",
    numbers="rate",
)  # fmt: skip
case(
    "conditions.conditional",
    lambda dropout: conditions.conditional(regressed, dropout=dropout)(
        with_cond, X, Y, LABELS, key=KEY
    ),
    {"dropout": 0.5},
    numbers="dropout",
)

for name in (
    "ConditionalFlowMatcher",
    "TargetConditionalFlowMatcher",
    "ExactOptimalTransportConditionalFlowMatcher",
    "SchrodingerBridgeConditionalFlowMatcher",
):
    matcher = getattr(torchcfm, name)(0.5)
    plan = matcher.ot_sampler is not None
    case(
        f"torchcfm.{name}",
        functools.partial(seeded, matcher.sample_location_and_conditional_flow),
        {**PAIR, "t": T},
        "x0 x1",
        times="t",
        empty=HOST if plan else "result",
        optional="t",
    )
    case(
        f"torchcfm.{name} guided",
        functools.partial(seeded, matcher.guided_sample_location_and_conditional_flow),
        {**PAIR, "y0": LABELS, "y1": LABELS, "t": T},
        "x0 x1",
        times="t",
        labels="y0 y1",
        empty=HOST if plan else "result",
        optional="t y0 y1",
    )
MATCHER = torchcfm.SchrodingerBridgeConditionalFlowMatcher(0.5)
case(
    "torchcfm.compute_mu_t", MATCHER.compute_mu_t, {**PAIR, "t": T}, "x0 x1", times="t", scalars="t"
)
case("torchcfm.compute_sigma_t", MATCHER.compute_sigma_t, {"t": T}, times="t", scalars="t")
case("torchcfm.compute_lambda", MATCHER.compute_lambda, {"t": T}, times="t", scalars="t")
case(
    "torchcfm.sample_xt", MATCHER.sample_xt, {**PAIR, "t": T, "epsilon": Z}, "x0 x1 epsilon",
    times="t", scalars="t",
)  # fmt: skip
case(
    "torchcfm.compute_conditional_flow",
    MATCHER.compute_conditional_flow,
    {**PAIR, "t": T, "xt": Z},
    "x0 x1 xt",
    times="t",
    scalars="t",
)
case(
    "torchcfm.sample_noise_like",
    functools.partial(seeded, MATCHER.sample_noise_like),
    {"x": X},
    scalars="x",
)
for name in ("ConditionalFlowMatcher", "SchrodingerBridgeConditionalFlowMatcher"):
    case(
        f"torchcfm.{name} made",
        lambda sigma, name=name: getattr(torchcfm, name)(sigma).compute_mu_t(X, Y, T),
        {"sigma": 0.5},
        numbers="sigma",
    )
for method in torchcfm.PLANS:
    case(
        f"torchcfm.OTPlanSampler.get_map {method}",
        torchcfm.OTPlanSampler(method, reg=1.0).get_map,
        PAIR,
        "x0 x1",
        empty=HOST,
    )
PLAN = torchcfm.OTPlanSampler("exact")
case(
    "torchcfm.sample_map", functools.partial(seeded, PLAN.sample_map),
    {"pi": mx.eye(2), "batch_size": 3}, "pi", counts="batch_size", empty=HOST,
)  # fmt: skip
case("torchcfm.sample_plan", functools.partial(seeded, PLAN.sample_plan), PAIR, "x0 x1", empty=HOST)
case(
    "torchcfm.sample_plan_with_labels",
    functools.partial(seeded, PLAN.sample_plan_with_labels),
    {**PAIR, "y0": LABELS, "y1": LABELS},
    "x0 x1",
    labels="y0 y1",
    empty=HOST,
    optional="y0 y1",
)
case("torchcfm.sample_plan_with_scipy", PLAN.sample_plan_with_scipy, PAIR, "x0 x1", empty=HOST)
case(
    "torchcfm.sample_trajectory",
    functools.partial(seeded, PLAN.sample_trajectory),
    {"X": mx.stack([X, Y], axis=1)},
    "X",
    empty=HOST,
)
case(
    "torchcfm.wasserstein", torchcfm.wasserstein, {**PAIR, "power": 2}, "x0 x1", counts="power",
    empty=HOST,
)  # fmt: skip
case("torchcfm.pad_t_like_x", torchcfm.pad_t_like_x, AT, "x", times="t", scalars="t")
mx.random.seed(0)
case("torchcfm.MLP", torchcfm.MLP(2, w=4), {"x": X}, "x")

case(
    "snapshots.snapshot_batches",
    lambda times, batch_size, key: snapshots.snapshot_batches(
        [streams.shuffled(np.array(X)), streams.shuffled(np.array(Y))],
        times,
        batch_size,
        key=key,
        coupling=couplings.independent,
    )(0),
    {"times": mx.array(END), "batch_size": 2, **NORMAL},
    times="times",
    counts="batch_size",
)
case(
    "snapshots.snapshots_loss",
    snapshots.snapshots_loss(regressed),
    {"field": field, **PAIR, "start": NUMBERS, "length": NUMBERS, **NORMAL},
    "x0 x1 start length",
    fields="field",
    empty=HOST,
)
case(
    "snapshots.sample_bridges",
    functools.partial(snapshots.sample_bridges, step_size=0.25),
    {
        "model": model,
        "x": X,
        "sigma": 0.5,
        "times": mx.array(END),
        "ts": mx.array([0.25, 1.0]),
        **NORMAL,
    },
    "x",
    times="times ts",
    fields="model",
    numbers="sigma",
    optional="ts",
)
case(
    "snapshots.arrivals",
    lambda snapshots_, times, most, key: snapshots.arrivals(
        field, snapshots_, times, most=most, key=key
    ),
    {"snapshots_": [np.array(X), np.array(Y)], "times": mx.array(END), "most": 3, **NORMAL},
    times="times",
    counts="most",
)


def fit(**given):
    return semidiscrete.fit_semidiscrete(**{"steps": 8, "batch_size": 512, "tolerance": 9} | given)


case(
    "semidiscrete.fit_semidiscrete",
    fit,
    {"rows": X, "source": toy.normal, "batch_size": 64, "steps": 8, "reg": 0.5, **NORMAL},
    "rows",
    fields="source",
    counts="batch_size steps",
    numbers="reg",
    empty=HOST,
    optional="steps",
)
case(
    "semidiscrete.fit_semidiscrete told",
    fit,
    {"rows": X, "conditions": LABELS, "weight": 2.0, "source": toy.normal, **NORMAL},
    "rows",
    labels="conditions",
    numbers="weight",
    empty=HOST,
    optional="conditions",
)
FITTED = fit(rows=X, source=toy.normal, key=KEY)
case(
    "semidiscrete.semidiscrete",
    lambda rows, x0, key: semidiscrete.semidiscrete(FITTED, rows)(x0, rows, key=key),
    {"rows": X, "x0": Y, **NORMAL},
    "rows x0",
    empty=HOST,
    optional="key",
)
case("plans.plan", plans.plan, {"cost": X, "reg": 2.0}, "cost", numbers="reg", empty=HOST)

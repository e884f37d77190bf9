"""flowmlx's side of the benchmarks, through the functions that a user calls."""

import platform
import time
from functools import lru_cache

import common
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import worker

from flowmlx import __version__, cpu
from flowmlx.couplings import COUPLINGS
from flowmlx.couplings.semidiscrete import fit_semidiscrete, semidiscrete
from flowmlx.data.streams import generated, shuffled, whole
from flowmlx.data.toy import normal
from flowmlx.keys import fold_in
from flowmlx.likelihood import PROBES, log_prob, standard_normal_log_prob
from flowmlx.losses import flow_matching_loss, velocity_loss
from flowmlx.nets import MLP
from flowmlx.paths import Linear
from flowmlx.sampling import PATH_METHODS, sample
from flowmlx.solvers import ADAPTIVE, GRIDS, METHODS, odeint, odeint_per_sample
from flowmlx.training import TrainState, make_step, paired_batches

KEY = mx.random.key(0)
ADAMS = ("ab2", "ab3", "abm2")
PROBES["shared"] = lambda shape, *, key: mx.array(common.probes(shape))


def describe():
    cpu.accelerate()  # as the first use does
    return {
        "name": f"flowmlx {__version__}, mlx {mx.__version__}",
        "device": f"{mx.default_device()} on {platform.machine()}",
        "blas": cpu.blas.status().name,
    }


def model(layers):
    dim = layers[-1][0].shape[0]
    net = MLP(dim, key=KEY, width=layers[0][0].shape[0], depth=len(layers) - 1)
    net.time.weight = mx.array(layers[0][0][:, dim:])
    for k, (weight, bias) in enumerate(layers):
        net.layers[k].weight = mx.array(weight[:, :dim] if k == 0 else weight)
        net.layers[k].bias = mx.array(bias)
    mx.eval(net.parameters())
    return net


def layers_of(net):
    weights = [np.array(layer.weight) for layer in net.layers]
    weights[0] = np.concatenate([weights[0], np.array(net.time.weight)], axis=1)
    return [(w, np.array(layer.bias)) for w, layer in zip(weights, net.layers, strict=True)]


@lru_cache
def to_all_rows(dim):
    """The coupling by semidiscrete transport to the rows of common.data(dim)."""
    rows = common.data(dim)
    fitted = fit_semidiscrete(rows, lambda n, *, key: normal(n, key=key, dim=dim), key=KEY)
    coupling = semidiscrete(fitted, rows)
    x0 = common.points(dim, 200)
    score = fitted.potential - ((x0[:, None] - rows.astype(np.float64)) ** 2).sum(2)
    _, chosen = map(np.array, coupling(x0, rows, key=KEY))
    best = score[np.arange(len(x0)), chosen] >= score.max(1) - 1e-4
    assert best.all(), "the coupling does not choose what comparing all rows does"
    return coupling


def trainer(dim, width, depth, batch_size, coupling):
    net = model(common.weights(dim, width, depth))
    state = TrainState(net, optim.AdamW(1e-3, bias_correction=True))
    source, rows = generated(lambda n, *, key: normal(n, key=key, dim=dim)), common.data(dim)
    if coupling == "semidiscrete":
        target, pairing = whole(rows), to_all_rows(dim)
    else:
        target, pairing = shuffled(rows), COUPLINGS[coupling]
    batches = paired_batches(source, target, batch_size, key=KEY, coupling=pairing)

    step = make_step(state, flow_matching_loss(Linear()))

    def train(steps):
        """The loop of `fit` without its start, in which it traces and compiles the step."""
        for _ in range(steps):
            loss = step(fold_in(KEY, state.step), **batches(state.step))
            mx.async_eval(loss, state.arrays)
            state.step += 1
        mx.eval(loss, state.arrays)
        return state

    return train


def train(dim, width, depth, batch_size, steps, coupling="independent"):
    run = trainer(dim, width, depth, batch_size, coupling)

    def check():
        t, x0, x1 = map(mx.array, common.batch(dim, 64))
        path = Linear().sample(x0, x1, t, key=KEY)
        return [velocity_loss(model(common.weights(dim, width, depth)), path).item()]

    return lambda: run(steps), check


def prepare(dim, width, depth, steps, path):
    """Train a field for the sampling benchmarks and save its weights at `path`."""
    run = trainer(dim, width, depth, 512, "independent")

    def check():
        common.save(path, layers_of(run(steps).model))
        return []

    return lambda: None, check


def problem(path, n, times=2):
    """A trained field, points to start from, and output times."""
    net = model(common.load(path))
    x0 = mx.array(common.points(net.layers[-1].weight.shape[0], n))
    return net, x0, np.linspace(0, 1, times)


def evaluated(solution):
    mx.eval(solution.xs)
    return solution


def end_points(solution):
    return np.array(solution.xs[-1]).ravel().tolist()


def solver(path, n, times, method, rtol=1e-4):
    net, x0, ts = problem(path, n, times)
    return lambda: evaluated(sample(net, x0, ts=ts, method=method, rtol=rtol, atol=rtol))


def solver_per_sample(path, n, times, method, rtol=1e-4):
    net, x0, ts = problem(path, n, times)
    return lambda: evaluated(odeint_per_sample(net, x0, ts, method=method, rtol=rtol, atol=rtol))


def solve(**arguments):
    run = solver(**arguments)
    return run, lambda: end_points(run())[:32]


def ends(**arguments):
    run = solver(**arguments)
    return run, lambda: end_points(run())


def evaluations(**arguments):
    run = solver(**arguments)
    return run, lambda: [run().stats.nfe]


def in_batches(path, n, size, rtol=1e-4):
    """Samples `size` at a time, as `flowmlx sample` makes them."""
    net, x0, _ = problem(path, n)

    def run():
        parts = range(0, n, size)
        return [np.array(sample(net, x0[k : k + size], rtol=rtol, atol=rtol).xs[-1]) for k in parts]

    return run, lambda: run()[0].ravel().tolist()[:32]


def scorer(path, n, divergence, rtol):
    """Log-density of points of the data under a trained field; the sides share their probes."""
    net, _, _ = problem(path, 1)
    x1 = mx.array(common.data(net.layers[-1].weight.shape[0], n))
    options = {"key": KEY, "probe": "shared", "divergence": divergence, "rtol": rtol, "atol": rtol}

    def run():
        scored = log_prob(net, x1, standard_normal_log_prob, **options)
        mx.eval(scored.log_prob)
        return scored

    return run


def score(**arguments):
    run = scorer(**arguments)
    return run, lambda: np.array(run().log_prob).tolist()


def evaluations_score(**arguments):
    run = scorer(**arguments)
    return run, lambda: [run().stats.nfe]


def product(n):
    """A float32 product of n x n matrices, which is as fast as this machine gets."""
    a, b = (mx.random.normal((n, n), key=k) for k in mx.random.split(KEY))
    mx.eval(a, b)
    return lambda: mx.eval(a @ b), list


def per_sample(**arguments):
    run = solver_per_sample(**arguments)
    return run, lambda: end_points(run())[:32]


def evaluations_per_sample(**arguments):
    run = solver_per_sample(**arguments)
    return run, lambda: [run().stats.nfe]


def few(path, n, method, evaluations, grid):
    """Fixed steps, as many as do with that number of evaluations; NaN where not one does."""
    net, x0, _ = problem(path, n)
    steps = steps_for(method, evaluations)
    if method in PATH_METHODS:
        method = PATH_METHODS[method](Linear())

    def check():
        if steps < 1:
            return [float("nan")] * x0.size
        solution = odeint(net, x0, [0.0, 1.0], method=method, grid=GRIDS[grid](steps))
        assert solution.stats.nfe <= evaluations
        return end_points(solution)

    return check, check


def steps_for(method, evaluations):
    """The largest number of steps of a method that takes no more evaluations."""
    chosen = METHODS.get(method)
    if chosen is None:  # one that knows the path
        return evaluations
    if method in ADAMS:
        return evaluations // 2 if chosen.corrector else evaluations - 1
    if chosen.fsal:
        return (evaluations - 1) // (chosen.stages - 1)
    return evaluations // chosen.stages


def overhead(method):
    """Microseconds a step takes beyond the evaluations of a cheap field, with a wait a step."""
    x0 = mx.array(common.points(2, 1024))
    adaptive = method in ADAPTIVE
    options = {"rtol": 1e-5, "atol": 1e-5} if adaptive else {"step_size": 0.1}

    def field(t, x):
        return -x

    def solve():
        return evaluated(odeint(field, x0, [0.0, 10.0], method=method, **options))

    def field_alone(nfe, steps):
        x = x0
        for k in range(nfe):
            x = field(mx.array(0.1), x)
            if adaptive and k % (nfe // steps) == 0:
                mx.eval(x)
        mx.eval(x)

    def check():
        stats = solve().stats
        steps = stats.accepted + stats.rejected
        took = []
        for run in (solve, lambda: field_alone(stats.nfe, steps)):
            start = time.perf_counter()
            for _ in range(10):
                run()
            took.append((time.perf_counter() - start) / 10)
        return [1e6 * (took[0] - took[1]) / steps]

    return check, check


def memory(steps):
    """Resident megabytes after `steps` training steps and after five times as many."""
    run = trainer(2, 64, 2, 512, "independent")

    def check():
        run(steps)
        early = common.resident_mb()
        run(4 * steps)
        return [early, common.resident_mb()]

    return check, check


CASES = {
    "train": train,
    "prepare": prepare,
    "solve": solve,
    "ends": ends,
    "evaluations_solve": evaluations,
    "per_sample": per_sample,
    "evaluations_per_sample": evaluations_per_sample,
    "in_batches": in_batches,
    "score": score,
    "evaluations_score": evaluations_score,
    "product": product,
    "few": few,
    "overhead": overhead,
    "memory": memory,
}

if __name__ == "__main__":
    worker.serve(CASES, describe, [*METHODS, *PATH_METHODS])

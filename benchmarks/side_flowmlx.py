"""flowmlx's side of the benchmarks, through the functions that a user calls."""

import platform
import resource
from pathlib import Path

import common
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import worker

from flowmlx import __version__, blas
from flowmlx.couplings import COUPLINGS
from flowmlx.data.streams import generated, shuffled
from flowmlx.data.toy import normal
from flowmlx.losses import flow_matching_loss, velocity_loss
from flowmlx.nets import MLP
from flowmlx.paths import Linear
from flowmlx.sampling import sample
from flowmlx.training import TrainState, fit, paired_batches

KEY = mx.random.key(0)


def describe():
    library = blas.status()
    return {
        "name": f"flowmlx {__version__}, mlx {mx.__version__}",
        "device": f"{mx.default_device()} on {platform.machine()}",
        "blas": library.name,
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


def trainer(dim, width, depth, batch_size, coupling):
    net = model(common.weights(dim, width, depth))
    state = TrainState(net, optim.AdamW(1e-3, bias_correction=True))
    batches = paired_batches(
        generated(lambda n, *, key: normal(n, key=key, dim=dim)),
        shuffled(common.data(dim)),
        batch_size,
        key=KEY,
        coupling=COUPLINGS[coupling],
    )

    def train(steps):
        loss = flow_matching_loss(Linear())
        return fit(state, batches, loss=loss, steps=state.step + steps, key=KEY)

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


def solve(path, n, times, method, rtol=1e-4):
    net = model(common.load(path))
    x0 = mx.array(common.points(net.layers[-1].weight.shape[0], n))
    ts = np.linspace(0, 1, times)

    def run():
        solution = sample(net, x0, ts=ts, method=method, rtol=rtol, atol=rtol)
        mx.eval(solution.xs)
        return solution

    return run, lambda: np.array(run().xs[-1][:16]).ravel().tolist()


def evaluations(path, n, times, method, rtol=1e-4):
    run, _ = solve(path, n, times, method, rtol)
    return run, lambda: [run().stats.nfe]


def memory(steps):
    """Resident megabytes after `steps` training steps and after five times as many."""
    run = trainer(2, 64, 2, 512, "independent")

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    def check():
        run(steps)
        early = resident()
        run(4 * steps)
        return [early, resident()]

    return check, check


CASES = {
    "train": train,
    "prepare": prepare,
    "solve": solve,
    "evaluations": evaluations,
    "memory": memory,
}

if __name__ == "__main__":
    worker.serve(CASES, describe)

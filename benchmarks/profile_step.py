"""Where the time of a training step goes: a Markdown table, and JSON.

The parts are timed alone, each as its own compiled function on arrays of the step's sizes, and the
whole step as `fit` takes it. Parts can overlap (the host prepares a step while the device is at the
last one), so that what is left over may be below zero.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
from common import data, shapes, step_flops, table, weights
from mlx.utils import tree_flatten
from run import STEPS
from side_flowmlx import KEY, describe, model, trainer

from flowmlx.data.toy import normal
from flowmlx.keys import fold_in
from flowmlx.losses import flow_matching_loss
from flowmlx.nets.activations import ACTIVATIONS
from flowmlx.paths import Linear
from flowmlx.training import TrainState, make_step

REPETITIONS = 7


def product_part(width, depth, batch_size):
    """The products of a step: forward, for weights and, but in the first layer, for inputs."""
    arrays = [
        [mx.random.normal(s, key=KEY) for s in ((batch_size, n), (m, n), (batch_size, m))]
        for n, m in shapes(2, width, depth)
    ]
    mx.eval(arrays)

    def run():
        done = [part for x, w, g in arrays for part in (x @ w.T, g.T @ x)]
        return done + [g @ w for _, w, g in arrays[1:]]

    return run


def activation_part(width, depth, batch_size):
    """Activations of all hidden layers, and their slopes times a gradient."""
    silu = ACTIVATIONS["silu"]
    run = mx.compile(lambda x, g: mx.vjp(silu, [x], [g]))
    x = mx.random.normal((batch_size, width), key=KEY)
    mx.eval(x)
    return lambda: [run(x, x) for _ in range(depth)]


def random_part(width, depth, batch_size):
    """Source points and times, from keys of the step."""

    @mx.compile
    def draw(key):
        return normal(batch_size, key=key), mx.random.uniform(shape=(batch_size,), key=key)

    return lambda: draw(fold_in(KEY, 1))


def fresh_state(width, depth):
    return TrainState(model(weights(2, width, depth)), optim.AdamW(1e-3, bias_correction=True))


def optimizer_part(width, depth, batch_size):
    """AdamW and the moving average, on gradients that cost nothing."""

    def sum_of_weights(net, *, key):
        return sum(w.sum() for _, w in tree_flatten(net.trainable_parameters()))

    state = fresh_state(width, depth)
    step = make_step(state, sum_of_weights)
    return lambda: [step(KEY), state.arrays]


def host_seconds(width, depth, batch_size, steps):
    """Seconds of building the graph of a step, which the device does not wait for."""
    state = fresh_state(width, depth)
    step = make_step(state, flow_matching_loss(Linear()))
    x = mx.array(data(2, batch_size))
    mx.eval(step(KEY, x, x), state.arrays)
    took = []
    for number in range(steps):
        start = time.perf_counter()
        value = step(fold_in(KEY, number), x, x)
        took.append(time.perf_counter() - start)
        mx.eval(value, state.arrays)
    return statistics.median(took)


PARTS = {
    "matrix products": product_part,
    "activations": activation_part,
    "random numbers": random_part,
    "optimizer and average": optimizer_part,
}


def seconds_each(run, count):
    """Median seconds of a call in a row of `count`, as steps of `fit` follow each other."""
    took = []
    for _ in range(REPETITIONS + 1):
        start = time.perf_counter()
        for _ in range(count):
            mx.async_eval(run())
        mx.synchronize()
        took.append((time.perf_counter() - start) / count)
    return statistics.median(took[1:])


def whole_step(width, depth, batch_size, steps):
    run = trainer(2, width, depth, batch_size, "independent")
    run(steps)
    took = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run(steps)
        took.append((time.perf_counter() - start) / steps)
    return statistics.median(took)


def rows():
    for (width, depth, batch_size), steps in STEPS.items():
        sizes = (width, depth, batch_size)
        whole = whole_step(*sizes, steps)
        parts = [seconds_each(make(*sizes), min(steps, 20)) for make in PARTS.values()]
        parts.append(host_seconds(*sizes, min(steps, 50)))
        parts.append(whole - sum(parts))
        speed = step_flops(2, *sizes) / parts[0] / 1e9
        shares = (f"{1e6 * part:,.0f} ({part / whole:.0%})" for part in parts)
        name = f"MLP {depth}x{width}, batch {batch_size:,}"
        yield [name, f"{1e6 * whole:,.0f}", *shares, f"{speed:.0f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="profile.json", help="where to save the table")
    options = parser.parse_args()
    side = describe()
    print(f"- {side['name']}; {side['device']}; BLAS {side['blas']}")
    header = ["step", "whole", *PARTS, "graph on the host", "left over", "GFLOP/s of products"]
    done = table("Microseconds of a training step (share)", header, rows())
    Path(options.json).write_text(json.dumps({"side": side, "tables": [done]}, indent=1) + "\n")


if __name__ == "__main__":
    main()

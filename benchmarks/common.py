"""What the benchmarks share: weights and data as NumPy arrays, counts of operations, tables."""

import math
import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np


def weights(dim, width, depth, seed=0):
    """Layers [(W, b), ...] of a perceptron on (x, t), t last: W (out, in)."""
    rng = np.random.default_rng(seed)
    layers = []
    for n, m in shapes(dim, width, depth):
        bound = 1 / math.sqrt(n)
        sizes = ((m, n), m)
        layers.append(tuple(rng.uniform(-bound, bound, s).astype(np.float32) for s in sizes))
    return layers


def shapes(dim, width, depth):
    """Numbers that go into and out of each layer."""
    return list(pairwise([dim + 1] + [width] * depth + [dim]))


def step_flops(dim, width, depth, batch_size):
    """Additions and multiplications in the matrix products of a training step.

    Three products per layer: forward, for the gradient of its weights and, but in the first layer,
    for that of its input.
    """
    sizes = [n * m for n, m in shapes(dim, width, depth)]
    return 2 * batch_size * (3 * sum(sizes) - sizes[0])


def save(path, layers):
    np.savez(
        path,
        **{
            f"{kind}{k}": a
            for k, pair in enumerate(layers)
            for kind, a in zip("wb", pair, strict=True)
        },
    )


def load(path):
    with np.load(path) as file:
        return [(file[f"w{k}"], file[f"b{k}"]) for k in range(len(file.files) // 2)]


def data(dim, count=10_000, seed=1):
    """Rows (count, dim) to train on: two interleaved arcs, and noise in further dimensions."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * math.pi, count)
    lower = (angle >= math.pi)[:, None]
    x = np.stack([np.cos(angle), np.sin(angle)], 1) + lower * np.array([1.0, 0.5])
    x = 2 * (x + 0.05 * rng.normal(size=x.shape)) - 1
    return np.concatenate([x, rng.normal(size=(count, dim - 2))], 1).astype(np.float32)


def points(dim, n, seed=3):
    """Points (n, dim) to start sampling from."""
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def probes(shape, seed=4):
    """Random signs for divergences, the same on both sides."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), shape)


def batch(dim, n, seed=2):
    """One fixed batch (t, x0, x1) on which both sides must find the same loss."""
    t = np.random.default_rng(seed).uniform(size=n).astype(np.float32)
    return t, points(dim, n, seed), data(dim, n, seed)


def resident_mb():
    """Megabytes of memory that this process holds."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    words = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1024


def peak_mb():
    """Most megabytes of memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def table(title, header, rows):
    """Print rows as they come; return the table for the JSON file."""
    print(f"\n{title}\n\n{line(header)}\n|{'---|' * len(header)}")
    done = []
    for row in rows:
        print(line(row), flush=True)
        done.append([str(cell) for cell in row])
    return {"title": title, "header": [str(cell) for cell in header], "rows": done}


def line(cells):
    return f"| {' | '.join(map(str, cells))} |"

"""TorchCFM on a problem of `flowmlx reproduce 2d`, by the same protocol and measured the same way.

    .bench-venv/bin/python benchmarks/torchcfm_2d.py --problem "N->8gaussians" --seed 42

To see whether a difference from the published numbers lies in the method or in how it is measured.
"""

import argparse
import json

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
from torchcfm.models import MLP

STEPS, BATCH, POINTS = 20_000, 512, 10_000
MATCHERS = {
    "I-CFM": ConditionalFlowMatcher,
    "OT-CFM": ExactOptimalTransportConditionalFlowMatcher,
}


def normal(n, rng):
    return rng.normal(size=(n, 2))


def eight_gaussians(n, rng, radius=5.0, std=1.0):
    angle = rng.integers(0, 8, n) * (np.pi / 4)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return radius * circle + std * rng.normal(size=(n, 2))


def moons(n, rng):
    angle = 2 * np.pi * rng.random(n)
    curve = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    curve += (angle >= np.pi)[:, None] * [1.0, 0.5]
    return 2 * (curve + 0.05 * rng.normal(size=(n, 2))) - 1


PROBLEMS = {
    "N->8gaussians": (normal, eight_gaussians),
    "8gaussians->moons": (eight_gaussians, moons),
    "N->moons": (normal, moons),
}


def w2(x, y):
    cost = cdist(x, y, "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean() ** 0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", choices=PROBLEMS, default="N->8gaussians")
    parser.add_argument("--method", choices=MATCHERS, default="OT-CFM")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002  TorchCFM draws pairs with it
    rng = np.random.default_rng(options.seed)
    ends = [draw(POINTS, rng) for draw in PROBLEMS[options.problem]]
    train = [torch.tensor(x, dtype=torch.float32) for x in ends]
    model = MLP(dim=2, w=64, time_varying=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    matcher = MATCHERS[options.method](sigma=0.1)
    for _ in range(STEPS):
        x0, x1 = (x[torch.from_numpy(rng.integers(0, POINTS, BATCH))] for x in train)
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        loss = torch.mean((model(torch.cat([xt, t[:, None]], dim=1)) - ut) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x0, x1, more = (
        draw(POINTS, rng) for draw in (*PROBLEMS[options.problem], PROBLEMS[options.problem][1])
    )
    x = torch.tensor(x0, dtype=torch.float32)
    with torch.no_grad():
        for k in range(100):
            t = torch.full((len(x), 1), k / 100)
            x = x + model(torch.cat([x, t], dim=1)) / 100
    found = {"w2": w2(x.numpy(), x1), "floor": w2(more, x1)}
    for n in (2_000, 5_000):
        found[f"w2 of {n} points"] = w2(x.numpy()[:n], x1[:n])
    print(json.dumps({**vars(options), **found}))


if __name__ == "__main__":
    main()

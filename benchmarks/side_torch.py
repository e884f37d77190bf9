"""The side of PyTorch, TorchCFM and torchdiffeq, as their documentation uses them."""

import platform

import common
import numpy as np
import torch
import torchcfm
import torchdiffeq
import worker
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)

MATCHERS = {
    "independent": ConditionalFlowMatcher,
    "exact_ot": ExactOptimalTransportConditionalFlowMatcher,
}


def describe():
    return {
        "name": f"torch {torch.__version__}, torchcfm {torchcfm.__version__}, "
        f"torchdiffeq {torchdiffeq.__version__}",
        "device": f"cpu on {platform.machine()}, {torch.get_num_threads()} threads",
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
    }


class Field(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        modules = []
        for weight, bias in layers:
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data = torch.from_numpy(weight.copy())
            linear.bias.data = torch.from_numpy(bias.copy())
            modules += [linear, torch.nn.SiLU()]
        self.net = torch.nn.Sequential(*modules[:-1])
        self.nfe = 0

    def forward(self, t, x):
        self.nfe += 1
        return self.net(torch.cat([x, t.expand(len(x))[:, None]], -1))


def train(dim, width, depth, batch_size, steps, coupling="independent"):
    field = Field(common.weights(dim, width, depth))
    optimizer = torch.optim.AdamW(field.parameters(), lr=1e-3)
    matcher = MATCHERS[coupling](sigma=0.0)
    rows = torch.from_numpy(common.data(dim))

    def repetition():
        for _ in range(steps):
            optimizer.zero_grad()
            x1 = rows[torch.randint(len(rows), (batch_size,))]
            x0 = torch.randn_like(x1)
            t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
            loss = torch.mean((field(t, xt) - ut) ** 2)
            loss.backward()
            optimizer.step()

    def check():
        t, x0, x1 = map(torch.from_numpy, common.batch(dim, 64))
        xt = t[:, None] * x1 + (1 - t[:, None]) * x0
        vt = Field(common.weights(dim, width, depth))(t, xt)
        return [torch.mean((vt - (x1 - x0)) ** 2).item()]

    return repetition, check


def solve(path, n, times, method, rtol=1e-4):
    layers = common.load(path)
    field = Field(layers)
    x0 = torch.from_numpy(common.points(len(layers[-1][1]), n))
    ts = torch.linspace(0, 1, times)

    def run():
        with torch.no_grad():
            return torchdiffeq.odeint(field, x0, ts, method=method, rtol=rtol, atol=rtol)

    return run, lambda: np.array(run()[-1][:16]).ravel().tolist()


def evaluations(path, n, times, method, rtol=1e-4):
    layers = common.load(path)
    field = Field(layers)
    x0 = torch.from_numpy(common.points(len(layers[-1][1]), n))

    def check():
        field.nfe = 0
        with torch.no_grad():
            ts = torch.linspace(0, 1, times)
            torchdiffeq.odeint(field, x0, ts, method=method, rtol=rtol, atol=rtol)
        return [field.nfe]

    return check, check


CASES = {"train": train, "solve": solve, "evaluations": evaluations}

if __name__ == "__main__":
    worker.serve(CASES, describe)

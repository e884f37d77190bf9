"""The side of PyTorch, TorchCFM and torchdiffeq, as their documentation uses them."""

import math
import platform
import time

import common
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


def solver(path, n, times, method, rtol=1e-4):
    layers = common.load(path)
    field = Field(layers)
    x0 = torch.from_numpy(common.points(len(layers[-1][1]), n))
    ts = torch.linspace(0, 1, times)

    def run():
        with torch.no_grad():
            return torchdiffeq.odeint(field, x0, ts, method=method, rtol=rtol, atol=rtol)

    return field, run


def end_points(xs):
    return xs[-1].numpy().ravel().tolist()


def solve(**arguments):
    _, run = solver(**arguments)
    return run, lambda: end_points(run())[:32]


def ends(**arguments):
    _, run = solver(**arguments)
    return run, lambda: end_points(run())


def evaluations(**arguments):
    return counted(*solver(**arguments))


def counted(field, run):
    def check():
        field.nfe = 0
        run()
        return [field.nfe]

    return check, check


def by_columns(field, t, x):
    """Velocity and exact divergence, by a backward pass for each column."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = field(t, x)
        columns = [
            torch.autograd.grad(v[:, k].sum(), x, retain_graph=True)[0][:, k]
            for k in range(x.shape[1])
        ]
    return v.detach(), sum(columns)


def by_jacobian(field, t, x):
    """Velocity and exact divergence, by the Jacobian of each sample."""

    def one(x):
        v = field(t, x[None])[0]
        return v, v

    jacobian, v = torch.func.vmap(torch.func.jacrev(one, has_aux=True))(x)
    return v, jacobian.diagonal(dim1=1, dim2=2).sum(1)


def by_probe(e):
    def divergence(field, t, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = field(t, x)
            (pullback,) = torch.autograd.grad(v, x, e)
        return v.detach(), (pullback * e).sum(1)

    return divergence


def seconds(function, *arguments):
    function(*arguments)
    start = time.perf_counter()
    for _ in range(5):
        function(*arguments)
    return time.perf_counter() - start


def scorer(path, n, divergence, rtol):
    layers = common.load(path)
    field = Field(layers).requires_grad_(False)
    dim = len(layers[-1][1])
    x1 = torch.from_numpy(common.data(dim, n))
    if divergence == "hutchinson":
        divergences = by_probe(torch.from_numpy(common.probes((n, dim))))
    else:  # whichever is faster here
        both = (by_columns, by_jacobian)
        divergences = min(both, key=lambda d: seconds(d, field, torch.tensor(0.5), x1))

    def run():
        with torch.no_grad():
            x0, integral = torchdiffeq.odeint(
                lambda t, pair: divergences(field, t, pair[0]),
                (x1, torch.zeros(n)),
                torch.tensor([1.0, 0.0]),
                method="dopri5",
                rtol=rtol,
                atol=rtol,
            )
        source = -0.5 * (x0[-1] ** 2 + math.log(2 * math.pi)).sum(1)
        return source + integral[-1]

    return field, run


def score(**arguments):
    _, run = scorer(**arguments)
    return run, lambda: run().tolist()


def evaluations_score(**arguments):
    return counted(*scorer(**arguments))


def product(n):
    a, b = torch.randn(2, n, n)
    return lambda: a @ b, list


def overhead(method):
    """Microseconds a step takes beyond the evaluations of a cheap field; see side_flowmlx.py."""
    x0 = torch.from_numpy(common.points(2, 1024))
    counted = {"nfe": 0}
    stages = {"euler": 1, "rk4": 4, "bosh3": 3, "dopri5": 6}[method]
    adaptive = method in ("bosh3", "dopri5")

    def field(t, x):
        counted["nfe"] += 1
        return -x

    def solve():
        options = {} if adaptive else {"options": {"step_size": 0.1}}
        ts = torch.tensor([0.0, 10.0])
        with torch.no_grad():
            torchdiffeq.odeint(field, x0, ts, method=method, rtol=1e-5, atol=1e-5, **options)

    def field_alone(nfe):
        x = x0
        for _ in range(nfe):
            x = field(None, x)

    def check():
        counted["nfe"] = 0
        solve()
        nfe = counted["nfe"]
        took = []
        for run in (solve, lambda: field_alone(nfe)):
            start = time.perf_counter()
            for _ in range(10):
                run()
            took.append((time.perf_counter() - start) / 10)
        return [1e6 * (took[0] - took[1]) / (nfe // stages)]

    return check, check


METHODS = ("euler", "midpoint", "rk4", "bosh3", "dopri5", "dopri8")
CASES = {
    "train": train,
    "solve": solve,
    "ends": ends,
    "evaluations_solve": evaluations,
    "score": score,
    "evaluations_score": evaluations_score,
    "product": product,
    "overhead": overhead,
}

if __name__ == "__main__":
    worker.serve(CASES, describe, METHODS)

"""Likelihoods: the log-density that a flow gives to data, by the change of variables.

Along the path of the flow that ends in x1, log p1(x1) = log p0(x(0)) - integral of div v dt over
[0, 1] (Chen et al. 2018, arXiv 1806.07366, theorem 1). The state and the integral are solved as one
pair from t = 1 to t = 0. Divergences come from vector-Jacobian products alone, so that any field
that can be trained can be scored.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from flowmlx.fields import in_eval_mode
from flowmlx.names import look_up
from flowmlx.solvers import Stats, odeint, per_sample_max
from flowmlx.solvers.arrays import (
    as_array,
    as_batch,
    as_tree,
    check_callable,
    check_count,
    check_key,
    check_number,
    check_returned,
    entry,
    samplewise,
)
from flowmlx.solvers.tracing import tracing

# Values in the cotangents of one vectorised pullback of the exact divergence. More is no faster,
# and inside a network the pullback takes many times their memory.
CHUNK = 2**18
LOG_2PI = math.log(2 * math.pi)


class Likelihood(NamedTuple):
    """What `log_prob` returns.

    `log_prob`: (batch,), nats per sample. `standard_error`: (batch,), nats, of the random
    divergences alone; None where fewer than two were drawn. `x0`: the source points, like x1.
    `stats`: of the solve; nfe counts evaluations of the field with their pullbacks.
    """

    log_prob: mx.array
    standard_error: mx.array | None
    x0: Any
    stats: Stats


@in_eval_mode
def log_prob(
    field: Callable[[mx.array, Any], Any],
    x1: Any,
    log_p0: Callable[[Any], mx.array],
    *,
    key: mx.array | None = None,
    divergence: str = "hutchinson",
    samples: int = 1,
    probe: str = "rademacher",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    step_size: float | None = None,
    max_steps: int = 10_000,
) -> Likelihood:
    """Log-density of data `x1` under the flow of `field(t, x)`, and the points it comes from.

    `x1`: (batch, ...) or a tree of such arrays; the field must treat samples independently.
    `log_p0`: log-density of the source, a function from states like x1 to (batch,) nats, such as
    `standard_normal_log_prob`. `divergence`: "exact" needs one vector-Jacobian product for each
    number in a sample. "hutchinson" is an unbiased random estimate that needs `samples` of them,
    one for each random probe. The probes, of the kind `probe` (a name in PROBES), are drawn from
    `key` once for the whole solve; with two or more there is a standard error. `method`,
    `step_size`, `max_steps`: as in `solvers.odeint`.

    `rtol` and `atol` bound the local errors of both the state and the integral of the divergence,
    for every sample of the batch: the integral may have an error of atol nats per step, plus rtol
    times its value. The error of the state also enters through log_p0, so the error grows with the
    size of a sample: 1e-5 gave log-densities within 4e-5 nats for 8 numbers and 4e-4 for 192. A
    float32 log-density of 1000 nats has rounding errors of 1e-4. Where matrix products round to ten
    bits (TF32), start with MLX_ENABLE_TF32=0. Networks in the field are in eval mode while this
    runs (see `flowmlx.fields`).

    `mx.grad` differentiates it with respect to x1 and the parameters of the field. Inside a
    compiled function, such as the step of `training.fit`, use fixed steps: `method="rk4"`.

    Raises ValueError for unknown names, a missing key and wrong shapes; otherwise as odeint.
    """
    check_callable(field, "field", "field(t, x)")
    check_callable(log_p0, "log_p0", "of the states at t = 0, log_p0(x0)")
    x1 = as_tree(x1, "x1")
    batch = _batch_size(x1, "x1")
    divergences, count = look_up(DIVERGENCES, divergence, "divergence"), 1
    if divergence == "hutchinson":
        probes, count = _probes(x1, key, samples, probe), samples
        divergences = functools.partial(divergences, probes=probes)
    leaves = _leaves(x1)
    dtype = mx.float64 if any(x.dtype == mx.float64 for x in leaves) else mx.float32
    weight = _weight(leaves, count)
    at = _fused(lambda t, x: divergences(field, t, x))
    solution = odeint(
        lambda t, pair: at(t, pair[0]),
        (x1, mx.zeros((batch, count), dtype=dtype)),
        [1.0, 0.0],
        method=method,
        rtol=(tree_map(lambda _: rtol, x1), weight * rtol),
        atol=(tree_map(lambda _: atol, x1), weight * atol),
        step_size=step_size,
        max_steps=max_steps,
        norm=per_sample_max,
    )
    # Integrated from t = 1 down to 0, the integral has its minus sign already.
    x0, integrals = tree_map(lambda xs: entry(xs, -1), solution.xs)
    source = _source_log_prob(log_p0, x0, batch)
    error = mx.sqrt(mx.var(integrals, axis=1, ddof=1) / count) if count > 1 else None
    return Likelihood(source + mx.mean(integrals, axis=1), error, x0, solution.stats)


def _source_log_prob(log_p0: Callable[[Any], mx.array], x0: Any, batch: int) -> mx.array:
    source = check_returned(log_p0(x0), "log_p0(x0)")
    if source.shape != (batch,):
        raise ValueError(
            f"log_p0 returned shape {source.shape}; expected ({batch},), one number per sample: "
            "sum over all other axes, as flowmlx.likelihood.standard_normal_log_prob does"
        )
    return source


def _weight(leaves: list[mx.array], count: int) -> float:
    """Of the tolerance of the integrals, `count` a sample, beside that of a state.

    The norm of the error is a mean over all numbers, which would count the integral as one more
    pixel of an image. With this weight it counts as much as all of them.
    """
    return math.sqrt(count / sum(math.prod(x.shape[1:]) for x in leaves))


def _fused(function: Callable) -> Callable:
    """`function` compiled, or as it is where a field in it cannot be.

    MLX fuses nothing inside a pullback that is not itself compiled, and an activation is a dozen
    operations: on the CPU an evaluation takes four times as long. A field that reads numbers on the
    host, such as the time, cannot be compiled; and while MLX differentiates the solve nothing is,
    as what a compiled function captures has no gradient.
    """
    compiled, fits = mx.compile(function), not tracing()

    def call(*arrays):
        nonlocal fits
        if fits:
            try:
                return compiled(*arrays)
            except (ValueError, RuntimeError, TypeError):
                fits = False  # or the error is the field's own, and comes again
        return function(*arrays)

    return call


def exact_divergence(field: Callable, t: mx.array, x: Any) -> tuple[Any, mx.array]:
    """Velocity and divergence (batch, 1) of `field` at `t` and `x`, the trace of its Jacobian.

    `x`: (batch, ...) or a tree of such arrays. The trace is the sum of e^T J e over the unit
    vectors e, as many at once as CHUNK allows.
    """
    check_callable(field, "field", "field(t, x)")
    t, x = as_array(t, "t"), as_tree(x, "x")
    batch, leaves = _batch_size(x, "x"), _leaves(x)
    dims = [math.prod(leaf.shape[1:]) for leaf in leaves]
    offsets = [0, *itertools.accumulate(dims)]
    rows = max(1, CHUNK // max(batch * offsets[-1], 1))
    v, parts = None, []
    for start in range(0, offsets[-1], rows):
        # Rows start, start + 1, ... of the identity matrix, a block of columns for each leaf.
        n = min(rows, offsets[-1] - start)
        blocks = [
            mx.eye(n, dim, k=start - offset, dtype=leaf.dtype).reshape(n, 1, *leaf.shape[1:])
            for leaf, dim, offset in zip(leaves, dims, offsets, strict=False)
        ]
        units = [
            mx.broadcast_to(e, (n, *leaf.shape)) for e, leaf in zip(blocks, leaves, strict=True)
        ]
        v, forms = quadratic_forms(field, t, x, units)
        parts.append(mx.sum(forms, axis=1))
    return v, _total(parts)[:, None]


def quadratic_forms(
    field: Callable, t: mx.array, x: Any, probes: list[mx.array]
) -> tuple[Any, mx.array]:
    """Velocity, and e^T J e (batch, n) for `probes` e and the Jacobian J of `field` at `t`, `x`.

    For a random e with E[e e^T] = I each is an unbiased estimate of the divergence (Hutchinson
    1990; Grathwohl et al. 2019, arXiv 1810.01367, Eq. 7). `x`: (batch, ...) or a tree of such
    arrays; `probes`: for each leaf of x one array (n, batch, ...). One evaluation of the field
    serves all pullbacks: vmap repeats only what depends on e.
    """
    t, x = as_array(t, "t"), as_tree(x, "x")
    leaves = _leaves(x)

    def flat(*leaves: mx.array) -> list[mx.array]:
        v = [check_returned(k, "field(t, x)") for k in _leaves(field(t, _like(x, leaves)))]
        if [k.shape for k in v] != [leaf.shape for leaf in leaves]:
            raise ValueError(
                f"field(t, x) returned shapes {[k.shape for k in v]}; expected those of x1, "
                f"{[leaf.shape for leaf in leaves]}"
            )
        return v

    def form(e: list[mx.array]) -> tuple[list[mx.array], mx.array]:
        v, pullback = mx.vjp(flat, leaves, e)
        return v, _total(map(_inner, e, pullback))

    try:
        v, forms = mx.vmap(form, out_axes=(0, 1))(probes)
    except (ValueError, RuntimeError):
        # Some operations, such as quantised matrix products, have no vmap.
        pairs = [form([e[k] for e in probes]) for k in range(len(probes[0]))]
        return _like(x, pairs[0][0]), mx.stack([f for _, f in pairs], axis=1)
    return _like(x, [entry(k, 0) for k in v]), forms


def _inner(a: mx.array, b: mx.array) -> mx.array:
    """Inner products sample by sample, (batch,), in float32 at least."""
    dtype = mx.float64 if a.dtype == mx.float64 else mx.float32
    return mx.sum(samplewise(a.astype(dtype) * b.astype(dtype)), axis=1)


def _total(terms: Iterable[mx.array]) -> mx.array:
    return functools.reduce(mx.add, terms)


def standard_normal_log_prob(x: Any) -> mx.array:
    """Log-density of N(0, I) at `x`, an array (batch, ...) or a tree of them: (batch,) nats."""
    leaves = [as_batch(leaf, "x") for leaf in _leaves(as_tree(x, "x"))]
    terms = [-0.5 * (_inner(x, x) + math.prod(x.shape[1:]) * LOG_2PI) for x in leaves]
    return _total(terms)


def bits_per_dim(log_prob: mx.array, dim: int, *, bin_width: float) -> mx.array:
    """Bits per number of discrete data, from the log-density of their uniform dequantisation.

    `log_prob`: nats of samples of `dim` numbers, any shape. `bin_width`: distance between
    neighbouring values in the units in which the density was computed, such as 2 / 256 for 8-bit
    images scaled to (k + u) / 128 - 1. Assumes that u, uniform on [0, 1), was added to the integers
    k before scaling; the result is then in expectation no less than the bits of the discrete model
    (Theis et al. 2016, arXiv 1511.01844, Eq. 5-8). Without that noise the number means nothing.
    Raises ValueError where `dim` or `bin_width` is not positive.
    """
    dim = check_count(dim, "dim")
    expected = "a number above 0, such as 2 / 256"
    check_number(bin_width, "bin_width", expected, lambda width: 0 < width < math.inf)
    if not isinstance(log_prob, int | float):
        log_prob = as_array(log_prob, "log_prob")
    return -log_prob / (dim * math.log(2)) - math.log2(bin_width)


def _probes(x: Any, key: mx.array | None, samples: int, probe: str) -> list[mx.array]:
    """For each leaf of `x` one array (samples, *leaf.shape)."""
    draw = look_up(PROBES, probe, "probe")
    if key is None:
        raise ValueError(
            'divergence="hutchinson" draws at random and key is None; write key=mx.random.key(0), '
            'or divergence="exact"'
        )
    check_count(samples, "samples")
    leaves = _leaves(x)
    keys = mx.random.split(check_key(key), len(leaves))
    return [
        draw((samples, *leaf.shape), key=k).astype(leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]


def rademacher(shape: tuple[int, ...], *, key: mx.array) -> mx.array:
    """Fair signs, -1 or 1: the least variance of all independent entries (Hutchinson 1990)."""
    return 2 * mx.random.bernoulli(0.5, shape, key=key) - 1


def _leaves(tree: Any) -> list[mx.array]:
    flat: Any = tree_flatten(tree)
    return [leaf for _, leaf in flat]


def _like(tree: Any, leaves: Any) -> Any:
    """A tree like `tree` with other leaves."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)


def _batch_size(x: Any, name: str) -> int:
    shapes = [leaf.shape for leaf in _leaves(x)]
    batches = {shape[:1] for shape in shapes}
    if len(batches) != 1 or any(0 in shape[1:] or not shape for shape in shapes):
        raise ValueError(
            f"{name} has shapes {shapes}; expected (batch, ...) with one batch for all, and "
            "numbers in each sample"
        )
    return shapes[0][0]


DIVERGENCES: dict[str, Callable[..., tuple[Any, mx.array]]] = {
    "hutchinson": quadratic_forms,
    "exact": exact_divergence,
}

PROBES: dict[str, Callable[..., mx.array]] = {
    "rademacher": rademacher,
    "gaussian": mx.random.normal,
}

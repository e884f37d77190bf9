"""Populations seen at several times: one flow through all of them.

Snapshots at t_0 < ... < t_k, such as cells collected on different days, of which no point is seen
twice. Between each two a path and a coupling as always; one field v(t, x) is trained on all
(compare Tong et al. 2024, arXiv 2302.00482, section 5.3, and [SF]2M, arXiv 2307.03672).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from flowmlx import metrics
from flowmlx.bridges import Model, sample_bridge
from flowmlx.conditions import conditioned
from flowmlx.couplings import Coupling
from flowmlx.data.streams import Labelled
from flowmlx.fields import in_eval_mode
from flowmlx.keys import fold_in
from flowmlx.sampling import sample
from flowmlx.solvers import Solution, Stats
from flowmlx.solvers.arrays import (
    as_array,
    as_batch,
    as_numpy,
    as_rows,
    check_callable,
    check_count,
    check_key,
    check_number,
    check_returned,
    describe,
)
from flowmlx.training import paired_batches


def snapshot_batches(
    streams: Sequence[Callable],
    times: Sequence[float],
    batch_size: int,
    *,
    key: mx.array,
    coupling: Coupling,
    block: int | None = None,
) -> Callable[[int], dict[str, mx.array]]:
    """Batches for `fit`, step -> {"x0", "x1", "start", "length"}, for `snapshots_loss`.

    `streams`: one stream of rows per snapshot, such as those of `flowmlx.data.streams`. `times`:
    times of the snapshots, increasing. Each batch has `batch_size` pairs, divided as evenly as
    possible among the intervals between neighbouring snapshots. Each interval is paired by
    `coupling`, `block` steps at once (see `paired_batches`). "start" and "length" (batch,) belong
    to the interval of each pair. If streams are `Labelled`, both points of a pair have the same
    label, "cond": x0 is drawn from the rows with the label of x1. Then use a coupling that respects
    labels: `independent` or `couplings.conditional`. Raises ValueError for fewer than two
    snapshots, times that do not increase, labels for some snapshots only, and a batch smaller than
    the number of intervals; and, at the step of the batch, for a label that the earlier snapshot
    does not have.
    """
    starts, lengths = _intervals(times)
    _check_streams(streams, len(times))
    batch_size, key = check_count(batch_size, "batch_size"), check_key(key)
    if batch_size < len(starts):
        raise ValueError(
            f"batch_size is {batch_size}; expected at least {len(starts)}, a pair for each interval"
        )
    counts = [len(part) for part in np.array_split(np.arange(batch_size), len(starts))]
    parts = [
        paired_batches(
            *_ends(streams[i], streams[i + 1], fold_in(key, "rows", i)),
            n,
            key=fold_in(key, "interval", i),
            coupling=coupling,
            block=block,
        )
        for i, n in enumerate(counts)
    ]

    def batches(step: int) -> dict[str, mx.array]:
        drawn = [part(step) for part in parts]
        paired = [len(part["x0"]) for part in drawn]  # fewer where a coupling leaves some out
        start, length = (mx.array(np.repeat(x, paired), mx.float32) for x in (starts, lengths))
        joined = {name: mx.concatenate([part[name] for part in drawn]) for name in drawn[0]}
        return {**joined, "start": start, "length": length}

    return batches


def _check_streams(streams: Sequence[Callable], count: int) -> None:
    if len(streams) != count:
        raise ValueError(f"{len(streams)} streams and {count} times; expected one for each")
    plain = [k for k, stream in enumerate(streams) if not isinstance(stream, Labelled)]
    if 0 < len(plain) < count:
        raise ValueError(
            f"streams[{plain[0]}] has no labels and others have; expected all Labelled, or none"
        )


def _ends(before: Callable, after: Callable, rows_key: mx.array) -> tuple[Callable, Callable]:
    """The streams of an interval: rows of the later snapshot, and those that they are to meet."""
    if not (isinstance(before, Labelled) and isinstance(after, Labelled)):
        return before, after

    def target(n: int, step: int, *, key: mx.array) -> dict[str, mx.array]:
        return after(n, step, key=rows_key)  # the same for both ends

    def source(n: int, step: int, *, key: mx.array) -> mx.array:
        return before.alike(target(n, step, key=key)["cond"], key=fold_in(key, step))

    return source, target


def snapshots_loss(loss: Callable) -> Callable:
    """Loss `(field, x0, x1, start, length, *, key) -> scalar` from one between two ends.

    What the loss takes beside x0 and x1 is handed on by name. With labels, `conditions.conditional`
    goes around it.

    `loss(field, x0, x1, *, key)`: such as `flow_matching_loss(Linear())`; it sees each interval as
    [0, 1], in whose time the field is `length` times faster, and the path's noise as between two
    ends. An error of the velocity counts by the distance that it leads astray over its interval.
    So for a model of `bridges`, whose score is in the drift: see `sample_bridges`.
    """

    check_callable(loss, "loss", "loss(field, x0, x1, key=key)")

    def total(
        field, x0, x1, start: mx.array, length: mx.array, *, key: mx.array, **others: Any
    ) -> mx.array:
        check_callable(field, "field", "field(t, x)")
        start, length = as_batch(start, "start"), as_batch(length, "length")

        def within(t: mx.array, x: mx.array) -> mx.array:
            long = length.reshape(-1, *(1,) * (x.ndim - 1))
            v = field(start + t * length, x)
            return tree_map(lambda part: long * check_returned(part, "field(t, x)", x.shape), v)

        return loss(within, x0, x1, key=key, **others)

    return total


def sample_bridges(
    model: Model,
    x: mx.array,
    *,
    sigma: float,
    times: Sequence[float],
    key: mx.array,
    ts: Sequence[float] | np.ndarray | None = None,
    method: str = "euler_maruyama",
    step_size: float | None = None,
) -> Solution:
    """Carry points along the process with noise of a model that was trained on snapshots.

    `x` (batch, ...): points at ts[0]; `ts`: increasing, from the first of `times` to the last at
    most, None for these two. `sigma`, `times`: those of the training. An interval of length l was
    seen as [0, 1], with the noise of `sigma`: in the model's time that is sigma / sqrt(l). Each is
    solved by itself, in steps of at most `step_size`, None for 1/64 of the shortest; `key`,
    `method` as in `solvers.sdeint`. Raises ValueError for times that do not increase or ts outside
    of them; else as `bridges.sample_bridge` does.
    """
    starts, lengths = _intervals(times)
    times = [*starts.tolist(), float(starts[-1] + lengths[-1])]
    x, key = as_batch(x, "x"), check_key(key)
    sigma = check_number(sigma, "sigma", "a number above 0", lambda s: 0 < s < math.inf)
    wanted = as_numpy((times[0], times[-1]) if ts is None else ts, "ts", np.float64)
    _intervals(wanted, "ts")
    if wanted[0] < times[0] or wanted[-1] > times[-1]:
        raise ValueError(f"ts runs from {wanted[0]} to {wanted[-1]}; expected times in {times!r}")
    shortest = float(lengths.min()) / 64
    xs, stats, solution = [x], [], None
    inner = [t for t in times if wanted[0] < t < wanted[-1]]
    for start, end in pairwise([wanted[0], *inner, wanted[-1]]):
        k = int(np.searchsorted(starts, start, side="right")) - 1
        there = wanted[(wanted > start) & (wanted <= end)]
        solution = sample_bridge(
            model,
            x,
            sigma=sigma / math.sqrt(lengths[k]),
            key=fold_in(key, "interval", k),
            ts=np.unique([start, *there, end]),
            method=method,
            step_size=step_size or shortest,
        )
        x = solution.xs[-1]
        xs += list(solution.xs[1 : 1 + len(there)])
        stats.append(solution.stats)
    assert solution is not None
    nfe, accepted, rejected, smallest, largest = zip(*stats, strict=True)
    total = Stats(sum(nfe), sum(accepted), sum(rejected), min(smallest), max(largest))
    return Solution(mx.array(wanted, solution.ts.dtype), mx.stack(xs), total, solution.status)


class Arrival(NamedTuple):
    """How far points carried from one snapshot to the time of the next are from that.

    `w1`, `w2`: distances to it. `w1_before`, `w2_before`: those of the snapshot that they started
    from, which no flow at all would have. `points`: how many of each were compared.
    """

    time: float
    start: float
    points: int
    w1: float
    w2: float
    w1_before: float
    w2_before: float


@in_eval_mode
def arrivals(
    field: Callable,
    snapshots: Sequence[np.ndarray],
    times: Sequence[float],
    *,
    heldout: Sequence[np.ndarray] | None = None,
    labels: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
    under: Callable = conditioned,
    key: mx.array,
    most: int = 1_000,
    solve: Callable[..., Solution] = sample,
) -> list[Arrival]:
    """Carry each snapshot but the last to the time of the next, and compare.

    For a snapshot that the field was not trained on this is the leave-one-out evaluation of
    trajectory inference. `snapshots`: arrays (n, d) to start from; `heldout`: such to compare with,
    None for the same. At most `most` rows of each are compared, drawn from `key`, as many of one as
    of the other. `labels`: of the rows of both, for a conditional field; then the rows to start
    from are drawn with the labels of those that they are compared with, and `under(field, labels)`
    is solved. `solve`: a function (field, x0, *, ts), such as `sampling.sample` with options of
    your own.
    """
    starts, _ = _intervals(times)
    most, key = check_count(most, "most"), check_key(key)
    snapshots = _rows(snapshots, "snapshots")
    heldout = snapshots if heldout is None else _rows(heldout, "heldout")
    if not len(snapshots) == len(heldout) == len(starts) + 1:
        raise ValueError(
            f"{len(snapshots)} snapshots, {len(heldout)} held out and {len(starts) + 1} times; "
            "expected one of each"
        )
    results = []
    for i, (before, after) in enumerate(zip(snapshots, heldout[1:], strict=False)):
        n = min(len(before), len(after), most)
        start, end = (
            as_numpy(mx.random.permutation(len(rows), key=fold_in(key, i, which)))[:n]
            for which, rows in (("from", before), ("to", after))
        )
        x0, x1, cond = before[start], after[end], None
        if labels is not None:
            cond = mx.array(as_numpy(labels[1][i + 1], "labels")[end])
            drawn = Labelled(before, labels[0][i]).alike(cond, key=fold_in(key, i, "alike"))
            x0 = as_numpy(drawn)
        ts = (float(times[i]), float(times[i + 1]))
        moved = as_numpy(solve(under(field, cond), as_array(x0, "snapshots"), ts=ts).xs[-1])
        distances = [metrics.wasserstein(x, x1, p=p) for x in (moved, x0) for p in (1, 2)]
        results.append(Arrival(ts[1], ts[0], n, *distances))
    return results


def _rows(snapshots: Sequence[np.ndarray], name: str) -> list[np.ndarray]:
    if not isinstance(snapshots, list | tuple):
        raise TypeError(f"{name} is {describe(snapshots)}; expected a list of arrays (n, d)")
    return [as_rows(rows, name) for rows in snapshots]


def _intervals(times: Any, name: str = "times") -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the intervals between neighbouring times."""
    numbers = as_numpy(times, name, np.float64)
    rising = numbers.ndim == 1 and len(numbers) > 1 and (np.diff(numbers) > 0).all()
    if not (rising and np.isfinite(numbers).all()):
        raise ValueError(f"{name} are {describe(times)}; expected two or more that increase")
    return numbers[:-1], np.diff(numbers)

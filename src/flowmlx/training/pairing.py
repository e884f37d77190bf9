"""Batches of pairs: two streams of points, joined by a coupling."""

import contextlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from flowmlx.couplings import Coupling, HostCoupling, independent, on_host
from flowmlx.keys import fold_in, generator, global_of
from flowmlx.solvers.arrays import (
    as_points,
    as_rows,
    check_callable,
    check_count,
    check_key,
)
from flowmlx.training.background import in_background

# Arrays by name: x0 and x1, and what goes with x1. MLX's, or NumPy's for a coupling on the host.
Parts = dict[str, Any]

# Steps whose points a pointwise coupling pairs at once: a call of NumPy costs as much as the
# arithmetic of a small batch.
POINTWISE_BLOCK = 32


def paired_batches(
    source: Callable,
    target: Callable,
    batch_size: int,
    *,
    key: mx.array,
    coupling: Coupling,
    block: int | None = None,
    ahead: int | None = None,
) -> Callable[[int], dict[str, mx.array]]:
    """Batches for `fit`, step -> {"x0", "x1"}: points of two data sets, paired by `coupling`.

    `source` and `target` are functions `(n, step, *, key) -> (n, ...)`; see `flowmlx.data`. The
    target may also return a dict: its points as "x1", and further arrays that belong to the points,
    which are then in the batch as well. A tuple (points, cond) means {"x1": points, "cond": cond}.
    A conditional coupling also gets "cond".

    `block`: number of steps whose points are drawn and paired at once. With optimal transport, each
    batch is then a random part of a larger plan. None is 1, or 32 for a `pointwise` coupling, whose
    pairs have the same distribution for any block. `ahead`: number of blocks that threads compute
    in advance for a `HostCoupling`. None is the number of processors, at most 8, or 0 for a
    `pointwise` coupling, which is so fast that threads would slow it down. `ahead` does not change
    the pairs. Raises ValueError for `block` below 1. Errors of the coupling are raised at the step
    that needs the pairs.
    """
    pointwise = isinstance(coupling, HostCoupling) and coupling.pointwise
    if block is None:
        block = POINTWISE_BLOCK if pointwise else 1
    block, batch_size = check_count(block, "block"), check_count(batch_size, "batch_size")
    key = check_key(key)
    check_callable(source, "source", "source(n, step, key=key)")
    check_callable(target, "target", "target(n, step, key=key)")
    check_callable(coupling, "coupling", "coupling(x0, x1, key=key)")
    draw = _drawing(source, target, batch_size * block, key)
    if isinstance(coupling, HostCoupling):
        prepare = _paired_on_host(coupling, _drawn_before(draw), key, block)
        ahead = 0 if pointwise and ahead is None else ahead
    else:
        prepare, ahead = _paired_on_device(coupling, draw, key), 0
    paired = in_background(prepare, ahead=ahead)

    def batches(step: int) -> dict[str, mx.array]:
        number, place = divmod(step, block)
        parts = paired(number)
        if block > 1:
            size = len(parts["x0"]) // block
            parts = {k: x[place * size : (place + 1) * size] for k, x in parts.items()}
        return {k: x if isinstance(x, mx.array) else mx.array(x) for k, x in parts.items()}

    return batches


def _drawing(source: Callable, target: Callable, n: int, key: mx.array) -> Callable[[int], Parts]:
    """The function from a block's number to its points, not yet paired."""

    def draw(number: int) -> Parts:
        with global_of(key, "drawn", number):  # a block is not always drawn at the same step
            x0 = source(n, number, key=fold_in(key, "source"))
            following = _following(target(n, number, key=fold_in(key, "target")))
        if isinstance(x0, dict | tuple):
            raise ValueError(
                f"the source gives {_what(x0)}; expected points alone, such as by "
                "data.streams.shuffled(rows): others go with the points of the target"
            )
        points = {
            "x0": as_points(x0, "the source's batch"),
            "x1": as_points(following["x1"], "the target's batch"),
        }
        return {**points, **{k: x for k, x in following.items() if k != "x1"}}

    return draw


def _following(drawn: Any) -> Parts:
    """What a target has drawn, by name."""
    if isinstance(drawn, tuple) and len(drawn) == 2:
        return dict(zip(("x1", "cond"), drawn, strict=True))
    if isinstance(drawn, dict) and "x1" in drawn and not drawn.keys() & {"x0", "key"}:
        return drawn
    if isinstance(drawn, dict | tuple):
        raise ValueError(
            f"the target gives {_what(drawn)}; expected points, a tuple (points, cond), or a dict "
            'with points as "x1" and other names for what goes with them, but x0 and key'
        )
    return {"x1": drawn}


def _what(drawn: dict | tuple) -> str:
    names = ", ".join(map(str, drawn)) if isinstance(drawn, dict) else len(drawn)
    return f"a dict of {names}" if isinstance(drawn, dict) else f"a tuple of {names}"


def _drawn_before(draw: Callable[[int], Parts]) -> Callable[[int], Parts]:
    """`draw`, with arrays of NumPy.

    The block after it is drawn by the device meanwhile: the host would wait for all steps under
    way, and then the device for the host.
    """
    drawn: dict[int, Parts] = {}

    def draw_on_host(number: int) -> Parts:
        parts = drawn.pop(number, None) or draw(number)
        drawn.clear()
        with contextlib.suppress(Exception):  # of a block that may never be asked for
            drawn[number + 1] = draw(number + 1)
            mx.async_eval([x for x in drawn[number + 1].values() if isinstance(x, mx.array)])
        x0, x1 = on_host(parts["x0"], parts["x1"])
        return {**{k: as_rows(x, k) for k, x in parts.items()}, "x0": x0, "x1": x1}

    return draw_on_host


def _paired_on_device(
    coupling: Coupling, draw: Callable[[int], Parts], key: mx.array
) -> Callable[[int], Callable[[], Parts]]:
    def prepare(number: int) -> Callable[[], Parts]:
        parts = draw(number)
        x0, x1 = parts["x0"], parts["x1"]
        if coupling is independent and len(x0) == len(x1):  # in order: nothing to gather
            return lambda: parts
        with global_of(key, "paired", number):
            i, j = coupling(x0, x1, key=fold_in(key, "coupling", number))
        return lambda: {k: x[i if k == "x0" else j] for k, x in parts.items()}

    return prepare


def _paired_on_host(
    coupling: HostCoupling, draw: Callable[[int], Parts], key: mx.array, block: int
) -> Callable[[int], Callable[[], Parts]]:
    def prepare(number: int) -> Callable[[], Parts]:
        return _pairing(coupling, draw(number), fold_in(key, "coupling", number), block)

    return prepare


def _pairing(
    coupling: HostCoupling, parts: Parts, key: mx.array, block: int
) -> Callable[[], Parts]:
    """The work of pairing arrays of NumPy, for another thread."""
    if coupling.conditional and "cond" not in parts:
        raise ValueError(
            "the coupling takes conditions, and the target gives none; stream both, such as by "
            "data.streams.shuffled(x1=rows, cond=labels)"
        )
    rng = generator(key)
    given = [parts[k] for k in ("x0", "x1", "cond")[: 2 + coupling.conditional]]

    def work() -> Parts:
        i, j = coupling.pair(*given, rng=rng)
        if coupling.pointwise:  # each x0 in its place
            return {k: x if k == "x0" else x.take(j, axis=0) for k, x in parts.items()}
        if block > 1:  # neighbouring pairs may be alike
            order = rng.permutation(len(i))
            i, j = i[order], j[order]
        return {k: x[i if k == "x0" else j] for k, x in parts.items()}

    return work

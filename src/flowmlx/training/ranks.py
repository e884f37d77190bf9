"""Several processes that train one model, the ranks of a group: each takes its part of every batch.

A launcher such as `mlx.launch` starts the processes, and MLX connects them (`mx.distributed`). None
in place of a group, like a group of one, is this process alone: all here then hands on what it got.
What one rank does in a group all must do, in the same order, or they wait for each other for ever.
"""

import contextlib
import os
import signal
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from flowmlx.native.launchers import LAUNCHED
from flowmlx.solvers.arrays import as_numpy
from flowmlx.training.batches import Batch, count_rows, take_rows

Group = mx.distributed.Group

# Steps between agreements to stop: each makes the host wait for the device and for the other ranks.
AGREE_EVERY = 10
# Bytes of a text that one rank tells the others.
WORD = 2_000


class Agreed(RuntimeError):
    """An error that stops all ranks at the same place."""


class Elsewhere(Agreed):
    """An error that another rank tells."""


def launched() -> Group | None:
    """The group that a launcher started this process in; None without one, or without others.

    Raises RuntimeError where the others cannot be reached.
    """
    if not any(name in os.environ for name in LAUNCHED):
        return None
    hostfile = os.environ.get("MLX_HOSTFILE", "")
    if hostfile and not Path(hostfile).read_text().strip():  # of mlx.launch -n 1; MLX refuses it
        return None
    group = mx.distributed.init()
    return group if group.size() > 1 else None


def number(group: Group | None) -> int:
    """Which rank this is: 0 is the first, which writes and speaks for all."""
    return 0 if group is None else group.rank()


def count(group: Group | None) -> int:
    """How many ranks there are."""
    return 1 if group is None else group.size()


def on_this_machine(group: Group | None) -> int:
    """How many of the ranks run on this machine."""
    if count(group) == 1:
        return 1
    name = zlib.crc32(socket.gethostname().encode())
    names = mx.distributed.all_gather(mx.array([name], mx.uint32), group=group)
    return int((as_numpy(names) == name).sum())


def share(batches: Callable[[int], Batch], group: Group | None) -> Callable[[int], Batch]:
    """This rank's part of `batches`, which must be the same on all ranks.

    Ranks take the rows of each part in turn, as many each; those that remain, fewer than there are
    ranks, are left out. Raises ValueError, at its step, for a batch with fewer rows than ranks.
    """
    if count(group) == 1:
        return batches
    rank, ranks = number(group), count(group)

    def part(step: int) -> Batch:
        batch = batches(step)
        rows = count_rows(batch)
        if rows < ranks:
            raise ValueError(f"a batch of {rows} for {ranks} ranks; expected at least one for each")
        return take_rows(batch, slice(rank, rows - rows % ranks, ranks))

    return part


def average(tree: Any, group: Group | None) -> Any:
    """Arrays averaged over the ranks, the same on all, such as gradients."""
    return tree if count(group) == 1 else nn.average_gradients(tree, group)


def total(array: mx.array, group: Group | None) -> mx.array:
    """An array summed over the ranks, the same on all."""
    return array if count(group) == 1 else mx.distributed.all_sum(array, group=group)


def from_first(tree: Any, group: Group | None) -> Any:
    """Arrays as the first rank has them."""
    if count(group) == 1:
        return tree
    flat, arrays = cast(list[tuple[str, mx.array]], tree_flatten(tree)), {}
    # By name, one after the other: a rank may have them in another order, as from a checkpoint, and
    # within one graph MLX chooses the order.
    for name, own in sorted(flat, key=lambda pair: pair[0]):
        given = own if number(group) == 0 else mx.zeros_like(own)
        arrays[name] = mx.distributed.all_sum(given, group=group)
        mx.eval(arrays[name])
    return tree_unflatten(list(arrays.items()))


def alike(arrays: dict[str, mx.array], group: Group | None) -> dict[str, mx.array]:
    """What each rank's network has noted of its own part of the data, the same on all.

    Numbers such as running statistics are averaged; of counts it is the largest.
    """
    if count(group) == 1:
        return arrays
    measured = {k: x for k, x in arrays.items() if mx.issubdtype(x.dtype, mx.inexact)}
    counted = {
        k: mx.distributed.all_max(x.astype(mx.int32), group=group).astype(x.dtype)
        for k, x in arrays.items()
        if k not in measured
    }
    return {**average(measured, group), **counted}


def first_word(text: str, group: Group | None) -> str:
    """The text of the first rank that has one; "" where none has."""
    if count(group) == 1:
        return text
    speaker = _least(number(group) if text else count(group), group)
    letters = text.encode()[:WORD] if speaker == number(group) else b""
    told = mx.array([*letters, *[0] * (WORD - len(letters))], dtype=mx.int32)
    heard = as_numpy(mx.distributed.all_sum(told, group=group))
    return bytes(heard[heard > 0].tolist()).decode(errors="ignore")


def agreed(stop: Callable[[int], bool], group: Group | None) -> Callable[[int], bool]:
    """`stop` for all ranks: True on all at one step, within `AGREE_EVERY` of the first True."""
    if count(group) == 1:
        return stop
    asked = False

    def all_stop(step: int) -> bool:
        nonlocal asked
        asked = stop(step) or asked
        return step % AGREE_EVERY == 0 and _least(not asked, group) == 0

    return all_stop


@contextlib.contextmanager
def together(group: Group | None) -> Iterator[None]:
    """Do what is within on all ranks or on none: an exception of one raises `Agreed` on all.

    The first rank that has one has its message; on the others it is `Elsewhere`.
    """
    error = None
    try:
        yield
    except Exception as own:
        if count(group) == 1:
            raise
        error = own
    if count(group) == 1:
        return
    failed = _least(number(group) if error else count(group), group)
    if failed == number(group):
        raise Agreed(str(error)) from error
    if failed < count(group):
        raise Elsewhere from error


def leave(group: Group | None) -> None:
    """Wait until all ranks are about to end with an error, so that each ends by itself.

    A launcher sends SIGTERM to the others as soon as one has ended so; from here on it is ignored.
    """
    if count(group) > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _least(0, group)


@contextlib.contextmanager
def first_speaks(group: Group | None) -> Iterator[None]:
    """Let what is within print on the first rank only."""
    if number(group) == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _least(value: int, group: Group | None) -> int:
    """The least value of all ranks."""
    return int(as_numpy(mx.distributed.all_min(mx.array(value, mx.int32), group=group)))

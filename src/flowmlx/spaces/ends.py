"""Where flows start and the rows they lead to, in model space."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.data import streams
from flowmlx.data.arrays import READERS, Table, table_of
from flowmlx.data.toy import TOY, eight_gaussians_log_prob
from flowmlx.files.fingerprints import fingerprint
from flowmlx.likelihood import standard_normal_log_prob
from flowmlx.names import look_up, suggest
from flowmlx.solvers.arrays import as_numpy

# Sources whose log-density has a formula.
SOURCE_DENSITIES: dict[str, Callable[[mx.array], mx.array]] = {
    "normal": standard_normal_log_prob,
    "8gaussians": eight_gaussians_log_prob,
}

# The name of a target that a Python user handed over as an object, of whatever kind.
MEMORY = "memory"


class Rows(NamedTuple):
    """Points in model space (n, dim), float32, and the condition of each (n, ...), if any."""

    points: np.ndarray
    cond: np.ndarray | None = None

    def stream(self, stream: Callable[..., streams.Stream] = streams.shuffled) -> streams.Stream:
        """A stream of x1 and, where there are conditions, of cond."""
        return stream(**self.named())

    def named(self, points: str = "x1") -> dict[str, np.ndarray]:
        """The parts that there are, by name."""
        parts = {points: self.points, "cond": self.cond}
        return {name: part for name, part in parts.items() if part is not None}

    def conditions(self, n: int) -> mx.array | None:
        """Conditions of `n` points: those of the rows in turn."""
        if self.cond is None:
            return None
        return mx.array(np.resize(self.cond, (n, *self.cond.shape[1:])))


class Source(NamedTuple):
    """Where flows start.

    `dim`: numbers in a point; `stream(n, step, *, key)` gives training batches; `start(n, cond, *,
    key)` draws points, under a condition for all or one for each, or without; `fingerprint` tells
    one source from another. `log_prob(x)`: the log-density (n,) of x (n, dim), None where it has no
    formula; `rows`: those that it draws from, None where it makes points anew.
    """

    dim: int
    stream: streams.Stream
    start: Callable[..., mx.array]
    fingerprint: str
    log_prob: Callable[[mx.array], mx.array] | None = None
    rows: Rows | None = None


def drawn_source(
    draw: Callable[..., Any],
    dim: int,
    fingerprint: str,
    log_prob: Callable[[mx.array], mx.array] | None = None,
) -> Source:
    """The source of a generator `draw(n, *, key) -> (n, dim)`, the same under every condition."""
    return Source(dim, streams.generated(draw), _whatever(draw), fingerprint, log_prob)


def source_of_rows(rows: Rows, fingerprint: str) -> Source:
    """The source that draws from rows: those of a class under that class."""
    points, cond = rows
    start = _whatever(streams.resampled(points)) if cond is None else _alike(points, cond)
    return Source(points.shape[1], streams.shuffled(points), start, fingerprint, rows=rows)


def _whatever(draw: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Draw the same whatever the condition is."""

    def start(n: int, cond: mx.array | None = None, *, key: mx.array) -> mx.array:
        return draw(n, key=key)

    return start


def _alike(points: np.ndarray, labels: np.ndarray) -> Callable[..., mx.array]:
    """Draw those of a class, or of each class that is asked for."""
    plain, alike = streams.resampled(points), streams.Labelled(points, labels).alike

    def start(n: int, cond: mx.array | None = None, *, key: mx.array) -> mx.array:
        return plain(n, key=key) if cond is None else alike(mx.broadcast_to(cond, (n,)), key=key)

    return start


def named_source(source: Any, transform: Any) -> Source:
    """The source that a user names, for points of `transform`: noise, a toy, rows or a generator.

    Rows of a file or in memory are in the units of the target. Raises ValueError for rows of other
    columns and for a toy that has not the dimensions of the target.
    """
    dim = len(transform.modelled)
    if callable(source):
        return drawn_source(source, dim, getattr(source, "__name__", "own"))
    if not isinstance(source, str) or is_file(source):
        return _source_of_table(source, transform)
    generator = look_up(TOY, source, "source")
    if source == "normal":
        generator = partial(generator, dim=dim)
    elif dim != 2:
        raise ValueError(
            f"--source {source} has 2 dimensions and the target {dim}; use --source normal"
        )
    return drawn_source(generator, dim, source, SOURCE_DENSITIES.get(source))


def _source_of_table(source: Any, transform: Any) -> Source:
    table = table_of(source, what="source")
    if table.columns != transform.columns:
        ours, theirs = (", ".join(map(repr, c)) for c in (table.columns, transform.columns))
        what = source if isinstance(source, str) else "source"
        raise ValueError(
            f"{what} has the columns {ours} and the target {theirs}; a source needs the target's "
            "columns, in its order"
        )
    rows = Rows(as_numpy(transform.transform(table.values)))
    return source_of_rows(rows, fingerprint_of(table))


def read_rows(target: Any, text: Collection[str] = ()) -> Table:
    """The table of a file or of rows in memory. Raises ValueError as `data.arrays.table_of`."""
    if isinstance(target, str) and target == MEMORY:
        raise ValueError(
            f"{MEMORY!r} stands for an object in Python, rows or a function that draws some, which "
            "is needed again; hand it over: flowmlx.train(target, ...)"
        )
    return table_of(target, text, "target")


def fingerprint_of(table: Table) -> str:
    """Tells the rows of one table from those of another."""
    names = table.columns + tuple(table.labels.items())
    return fingerprint(repr(names), table.values)


def is_file(name: str) -> bool:
    """Whether `name` means a file. Raises ValueError where it means nothing."""
    if name in TOY or name == MEMORY:
        return False
    if Path(name).suffix or "/" in name or Path(name).exists():
        return True
    raise ValueError(
        f"{name!r} is neither a toy data set{suggest(name, TOY)} nor a file; toy data sets: "
        f"{', '.join(TOY)}; files end in {', '.join(READERS)}"
    )

"""Snapshots: rows seen at several times, which one flow goes through."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.bridges import under
from flowmlx.couplings import Coupling
from flowmlx.data import streams
from flowmlx.data.arrays import Standardizer, Table, by_value, form_of, split, take_columns
from flowmlx.data.conditions import ConditionColumns
from flowmlx.keys import fold_in
from flowmlx.snapshots import arrivals, sample_bridges, snapshot_batches, snapshots_loss
from flowmlx.solvers.arrays import as_numpy
from flowmlx.spaces.conditioning import UNCONDITIONAL, Conditioning, OnColumns
from flowmlx.spaces.ends import Rows, Source, fingerprint_of, read_rows, source_of_rows
from flowmlx.spaces.kind import Bridge, Kind, Request
from flowmlx.spaces.space import Space


class Snapshots(NamedTuple):
    """Snapshots by the time in the file at which they were seen.

    `training`: rows to train on, none of the time that was left out; `heldout`: rows that were not
    trained on, all of them for that time. `rows`: the fingerprint of the file.
    """

    space: Space
    source: Source
    training: dict[float, Rows]
    heldout: dict[float, Rows]
    rows: str

    @property
    def train(self) -> Rows:
        """Training rows of the last time."""
        return self.training[self.space.times[-1]]

    @property
    def test(self) -> Rows:
        """Held-out rows of the last time."""
        return self.heldout[self.space.times[-1]]

    @property
    def fingerprint(self) -> str:
        """Tells this data from other data."""
        return f"{self.rows} -> {self.rows}"

    def batches(self, coupling: Coupling, size: int, **options: Any) -> Callable[[int], Any]:
        """Pairs of each two neighbouring snapshots that are trained on."""
        return self._batches(self.training, size, coupling=coupling, **options)

    def test_batches(
        self, coupling: Coupling, size: int, **options: Any
    ) -> Callable[[int], Any] | None:
        """The same of their held-out rows; of a class that some snapshot lacks none."""
        rows = _of_shared_classes({t: self.heldout[t] for t in self.training})
        if not all(len(part.points) for part in rows.values()):
            return None
        return self._batches(rows, max(size, len(rows) - 1), coupling=coupling, **options)

    def _batches(self, rows: dict[float, Rows], size: int, **options: Any) -> Callable[[int], Any]:
        times = [self.space.unit_time(t) for t in rows]
        return snapshot_batches([_stream(*part) for part in rows.values()], times, size, **options)

    def loss(self, loss: Callable) -> Callable:
        """The loss of every interval between snapshots."""
        return snapshots_loss(loss)

    def shown(self) -> np.ndarray:
        """Rows of all times."""
        rows = [*self.heldout.values(), *self.training.values()]
        return np.concatenate([part.points for part in rows])

    def along(self, field: Callable, solve: Callable, *, key: mx.array) -> dict[str, Any]:
        """How well each snapshot is predicted from the one before."""
        times = self.space.times
        start = [self.training.get(t, self.heldout[t]) for t in times]
        end = [self.heldout[t] for t in times]
        labels: Any = None
        if self.space.conditioning.size is not None:
            labels = tuple([rows.cond for rows in part] for part in (start, end))
        found = arrivals(
            field,
            [rows.points for rows in start],
            [self.space.unit_time(t) for t in times],
            heldout=[rows.points for rows in end],
            labels=labels,
            under=under,
            key=key,
            solve=solve,
        )
        return {
            "snapshots": [
                {**arrival._asdict(), "time": t, "start": s, "left_out": t not in self.training}
                for arrival, (s, t) in zip(found, pairwise(times), strict=True)
            ]
        }


def read(request: Request) -> Snapshots:
    """Read a table with a column of times, and hold out rows of each time.

    Raises ValueError as `table.read` does, and for snapshots that do not go together.
    """
    table = _table(request)
    parts = {
        time: take_columns(part, request.condition)
        for time, part in by_value(table, request.time_column or "").items()
    }
    _check_times(tuple(parts), request)
    seen = [points for time, (_, points) in parts.items() if time != request.leave_out]
    units = Standardizer.fit(_stacked(seen))
    conditioning = _conditioning([conditions for conditions, _ in parts.values()], request)
    training, heldout = _split(parts, units, conditioning, request)
    space = Space("snapshots", units, conditioning, tuple(parts), form_of(request.target))
    rows = fingerprint_of(table)
    return Snapshots(space, source_of_rows(training[min(parts)], rows), training, heldout, rows)


def source(request: Request, space: Space) -> Source:
    """The rows of the first snapshot, which are read again."""
    return read(request).source


def _table(request: Request) -> Table:
    column = request.time_column or ""
    table = read_rows(request.target, [*request.condition, column])
    if column in table.labels:
        raise ValueError(f"'{column}' holds text; expected a number, such as the day")
    return table


def _check_times(times: Sequence[float], request: Request) -> None:
    inner = times[1:-1]
    if len(times) < 2:
        raise ValueError(f"'{request.time_column}' holds one time only; expected two or more")
    if request.leave_out is not None and request.leave_out not in inner:
        raise ValueError(
            f"--leave-out is {request.leave_out:g}; expected a time between the first and the "
            f"last: {', '.join(f'{t:g}' for t in inner) or 'there is none'}"
        )


def _conditioning(conditions: Sequence[Table], request: Request) -> Conditioning:
    """Classes, within which the rows of one time meet those of the next."""
    if not request.condition:
        return UNCONDITIONAL
    columns = ConditionColumns.fit(_stacked(conditions))
    if columns.labels is None:
        raise ValueError(
            f"--condition {','.join(columns.columns)} holds numbers; with --time-column it has to "
            "be one column of classes, within which the rows of one time meet those of the next"
        )
    return OnColumns(columns)


def _split(
    parts: dict[float, tuple[Table, Table]],
    units: Standardizer,
    conditioning: Conditioning,
    request: Request,
) -> tuple[dict[float, Rows], dict[float, Rows]]:
    """Hold out rows of each snapshot, and all of the one that is left out."""
    training, heldout = {}, {}

    def rows(conditions: Table, points: Table) -> Rows:
        return Rows(
            as_numpy(units.transform(points.values)), conditioning.encode(conditions.values)
        )

    for k, (time, tables) in enumerate(parts.items()):
        # One key splits both alike.
        key = fold_in(request.key, "split", k)
        seen, unseen = zip(*(split(part, request.holdout, key=key) for part in tables), strict=True)
        if time == request.leave_out:
            unseen = tables
        else:
            training[time] = rows(*seen)
        heldout[time] = rows(*unseen)
    if isinstance(conditioning, OnColumns):
        _check_classes(conditioning.columns, {**heldout, **training})
    return training, heldout


def _check_classes(columns: ConditionColumns, parts: dict[float, Rows]) -> None:
    """Refuse a class that some snapshot has no row of to start from."""
    for time, rows in parts.items():
        for label, name in enumerate(columns.labels or ()):
            if not (rows.cond == label).any():
                raise ValueError(
                    f"{columns.columns[0]} {name if columns.text else format(name, 'g')} has no "
                    f"row at time {time:g} that is not held out; expected some of every class at "
                    "every time, as those of one time lead to those of the next: leave the class "
                    "out, or hold out fewer rows with --holdout"
                )


def _of_shared_classes(parts: dict[float, Rows]) -> dict[float, Rows]:
    """The rows of those classes that there are at every time."""
    labels = {t: part.cond for t, part in parts.items() if part.cond is not None}
    if not labels:
        return parts
    shared = reduce(np.intersect1d, labels.values())
    kept = {t: np.isin(cond, shared) for t, cond in labels.items()}
    return {t: Rows(parts[t].points[kept[t]], cond[kept[t]]) for t, cond in labels.items()}


def _stream(points: np.ndarray, cond: np.ndarray | None) -> streams.Stream:
    return streams.shuffled(points) if cond is None else streams.Labelled(points, cond)


def _stacked(parts: Sequence[Table]) -> Table:
    return parts[0]._replace(values=np.concatenate([part.values for part in parts]))


def _bridge(space: Space, leave_out: float | None) -> Bridge:
    """The process with noise through the times that were trained on."""
    times = [space.unit_time(t) for t in space.times if t != leave_out]
    shortest = float(np.diff(times).min())
    return Bridge(partial(sample_bridges, times=times), shortest)


KIND = Kind(
    takes=lambda target, time_column: time_column is not None,
    read=read,
    source=source,
    source_name="auto",
    bridge=_bridge,
)

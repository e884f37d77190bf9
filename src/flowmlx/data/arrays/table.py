"""A table of numbers with names, and parts of it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.data.arrays.words import quoted, repair, shown
from flowmlx.names import suggest
from flowmlx.solvers.arrays import as_numpy, check_key, check_number


class Table(NamedTuple):
    """Named numeric columns: the names `columns` and `values` (rows, columns), float64, finite.

    `labels`: of a column of text, by its name, the distinct texts in order; its values are places
    among them.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    labels: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def take_columns(table: Table, names: Sequence[str]) -> tuple[Table, Table]:
    """Split a table into that of the columns `names` and that of the others.

    Raises ValueError for a column that the table does not have, and where no other is left.
    """
    check_there(names, table.columns)
    others = [name for name in table.columns if name not in names]
    if not others:
        raise ValueError(f"there is no column beside {quoted(names)}, so nothing left to learn")
    return select(table, names), select(table, others)


def select(table: Table, names: Sequence[str]) -> Table:
    """The columns `names` of a table, in that order."""
    place = {name: k for k, name in enumerate(table.columns)}
    values = table.values[:, [place[name] for name in names]]
    labels = {name: table.labels[name] for name in names if name in table.labels}
    return Table(tuple(names), values, labels)


def by_value(table: Table, column: str) -> dict[float, Table]:
    """Split a table into those of the rows with one value in `column`, without it, by that value.

    The values are in increasing order. Raises ValueError as `take_columns` does, and for a value
    with a single row.
    """
    taken, rest = take_columns(table, [column])
    values = taken.values[:, 0]
    parts = {
        value: rest._replace(values=rest.values[values == value])
        for value in np.unique(values).tolist()
    }
    for value, part in parts.items():
        if len(part.values) < 2:
            raise ValueError(
                f"only one row has '{column}' = {value:g}; expected two or more for each value, so "
                "round the column or leave the row out"
            )
    return parts


def split(table: Table, holdout: float, *, key: mx.array) -> tuple[Table, Table]:
    """Split rows at random into (training, held-out), each in random order and not empty.

    `holdout`: fraction of the rows to hold out, between 0 and 1; `key` fixes the choice. Raises
    ValueError for another fraction.
    """
    expected = "a fraction between 0 and 1, such as 0.1"
    holdout = check_number(holdout, "holdout", expected, lambda part: 0 < part < 1)
    rows = len(table.values)
    held = min(max(1, round(holdout * rows)), rows - 1)
    order = as_numpy(mx.random.permutation(rows, key=check_key(key)))
    training, test = table.values[order[held:]], table.values[order[:held]]
    return table._replace(values=training), table._replace(values=test)


def check_there(names: Iterable[str], columns: Sequence[str]) -> None:
    """Raise ValueError for the first of `names` that is not among `columns`."""
    for name in names:
        if name not in columns:
            raise ValueError(
                f"there is no column '{name}'{suggest(name, columns)}; the table has "
                f"{quoted(columns)}"
            )


def check_finite(what: str | Path, table: Table) -> None:
    """Raise ValueError for the first value of a table that is missing or infinite."""
    finite = np.isfinite(table.values)
    if finite.all():
        return
    row, column = divmod(int(finite.argmin()), finite.shape[1])
    name = table.columns[column]
    problem = "is infinite" if np.isinf(table.values[row, column]) else "is NaN or missing"
    raise ValueError(
        f"{what}, row {row + 1}: column '{shown(name)}' {problem}; {repair(name in table.labels)}"
    )

"""Rows in the forms that people hold them: files, tables of Arrow, data frames and arrays.

`table_of` reads rows of any form for training, `rows_for` those that go with a trained flow, and
`in_form` gives rows back in the form that `form_of` found. A form is a line of `FORMS`. pandas and
polars are imported only where rows are given back in their form.
"""

import os
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.data.arrays.columns import check_types, from_arrow, record_batch
from flowmlx.data.arrays.names import Wanted, kept
from flowmlx.data.arrays.npy import array_size, array_table
from flowmlx.data.arrays.readers import read_wanted
from flowmlx.data.arrays.sources import check_columns, check_shape
from flowmlx.data.arrays.standardizer import rows_of
from flowmlx.data.arrays.table import Table, check_finite, select
from flowmlx.data.arrays.words import quoted, say, shown, warn
from flowmlx.names import look_up
from flowmlx.solvers.arrays import as_numpy, describe

# What is nearly of a form, by the name of its type, and what to write instead.
NEARLY = {
    "Series": "a data frame: .to_frame() for a column, df.iloc[[k]] (pandas) or df[k] (polars) for "
    "a row",
    "LazyFrame": "a data frame, as .collect() gives",
    "dict": "a table, as pyarrow.table(...) or pandas.DataFrame(...) makes of it",
}


class Form(NamedTuple):
    """A form of rows.

    `holds(data)`: whether an object is of it. `read(data, what, wanted)`: the table of an object,
    called `what` in messages. `make(columns, rows)`: the object of rows (n, columns), float64.
    """

    holds: Callable[[Any], bool]
    read: Callable[[Any, str, Wanted], Table]
    make: Callable[[Sequence[str], np.ndarray], Any]


def table_of(data: Any, text: Collection[str] = (), what: str = "data") -> Table:
    """Read rows in any form: a path, a data frame of pandas or polars, a table of Arrow, an array.

    `text`: names of columns that may hold text, as in `read`. `what`: the name of `data` in
    messages. A table of Arrow is whatever has `__arrow_c_stream__`; an array is one of MLX, or
    whatever NumPy reads.

    A path goes to `read`, and its rules hold for all forms: numbers are finite, there are two rows
    or more, no name is there twice, columns that pandas names as an index are left out with a
    warning. Integers, booleans and decimals become float64. Categories are text, and numbers where
    they are categories of numbers. Names become text: 0 is '0'. An index of pandas is left out,
    with a warning unless it has no name and counts the rows. Arrays are (rows, columns) or (rows,),
    and their columns are called x0, x1, ...

    Raises ValueError as `read` does, and TypeError for another type and for complex numbers.
    """
    return _read(data, what, Wanted(text))


def rows_for(columns: Sequence[str], data: Any, what: str) -> np.ndarray:
    """The values (n, columns) float64 of `columns` in rows of any form that `table_of` takes.

    Files with names, data frames and tables are matched by name: in any order, and other columns do
    not matter. Arrays, and files of arrays, are matched by position: (n, columns), or a single row
    (columns,); where there is one column, (n,) is n rows. There may be no rows at all. `what`: the
    name of `data` in messages. Raises ValueError for columns that are missing, and as `table_of`.
    """
    return table_for(columns, data, what).values


def table_for(
    columns: Sequence[str], data: Any, what: str, optional: Collection[str] = ()
) -> Table:
    """As `rows_for`, but with the columns of `optional` that are there behind the others.

    `optional`: names of columns that may hold text, such as those of a condition. Arrays have none.
    `take_columns` parts the two, and `ConditionColumns.encode_table` makes conditions of them.
    """
    table = _read(data, what, Wanted(optional, tuple(columns), rows=0))
    return select(table, [*columns, *(name for name in optional if name in table.columns)])


def form_of(data: Any) -> str:
    """The name in `FORMS` of the form that rows are in; that of a path is "arrow".

    Raises TypeError for an object of no form.
    """
    return "arrow" if isinstance(data, str | os.PathLike) else _form(data, "data")


def in_form(form: str, columns: Sequence[str], values: mx.array | np.ndarray) -> Any:
    """Rows (n, columns) as an object of `form`, a name in `FORMS`.

    Data frames and tables hold float64 under `columns`; arrays of MLX are float32. Where pandas or
    polars is not installed, as may be where a flow is loaded on another machine, the rows come as a
    pyarrow.Table, with a warning.
    """
    made = look_up(FORMS, form, "form").make
    rows = rows_of(values, "values", columns)
    try:
        return made(columns, rows)
    except ModuleNotFoundError as error:
        if error.name != form:
            raise
        warn(f"{form} is not installed, so the rows are a pyarrow.Table; pip install {form}")
        return _to_arrow(columns, rows)


def _read(data: Any, what: str, wanted: Wanted) -> Table:
    if isinstance(data, str | os.PathLike):
        return read_wanted(data, wanted)
    table = FORMS[_form(data, what)].read(data, what, wanted)
    check_finite(what, table)
    return table


def _form(data: Any, what: str) -> str:
    kind = type(data).__name__
    if kind in NEARLY:
        raise TypeError(f"{what} is of type {kind}; expected {NEARLY[kind]}")
    for name, form in FORMS.items():
        if form.holds(data):
            return name
    raise TypeError(
        f"{what} is {describe(data)}; expected the path of a file, a data frame of pandas "
        "or polars, a table of Arrow, or an array"
    )


def _is_frame(library: str, data: Any) -> bool:
    """Whether `data` is a data frame of a library, which then has been imported."""
    return isinstance(data, getattr(sys.modules.get(library), "DataFrame", ()))


# Readers


def _from_pandas(data: Any, what: str, wanted: Wanted) -> Table:
    import pyarrow as pa

    named = [str(name) for name in data.index.names if name is not None]
    if wanted.needed is None and (named or type(data.index).__name__ != "RangeIndex"):
        say(
            what,
            f"left out, as an index of the rows: {quoted(named) or '(no name)'}; .reset_index() "
            "makes a column of it, .reset_index(drop=True) removes it",
        )
    names = [str(name) for name in data.columns]
    ways = (
        lambda series: pa.array(series, from_pandas=True),
        lambda series: pa.array(series.to_numpy(), from_pandas=True),  # of sparse columns
    )
    return _from_columns(names, lambda k: data.iloc[:, k], ways, what, wanted)


def _from_polars(data: Any, what: str, wanted: Wanted) -> Table:
    import pyarrow as pa

    ways = (
        lambda series: series.to_arrow(),
        lambda series: pa.array(series.to_list()),  # of integers of 128 bits
    )
    return _from_columns(data.columns, data.to_series, ways, what, wanted)


def _from_arrow(data: Any, what: str, wanted: Wanted) -> Table:
    import pyarrow as pa

    try:
        table = pa.table(data)
    except (pa.ArrowException, TypeError) as error:
        raise TypeError(
            f"{what} is {describe(data)}; expected a table of Arrow, with named columns"
        ) from error
    return _from_columns(table.column_names, table.column, (lambda column: column,), what, wanted)


def _from_array(data: Any, what: str, wanted: Wanted) -> Table:
    array = as_numpy(data, what)
    return array_table(array, array_size(what, array.shape, wanted), wanted)


def _from_columns(
    names: Sequence[str],
    column: Callable[[int], Any],
    ways: Sequence[Callable[[Any], Any]],
    what: str,
    wanted: Wanted,
) -> Table:
    """The table of those columns that are wanted.

    `column(k)` gives one in a library's own type, and the first of the `ways` that can makes an
    Arrow array of it.
    """
    import pyarrow as pa

    check_columns(what, len(names))
    places = kept(what, names, wanted)
    arrays = [_arrow_array(column(k), ways, f"{what}: column '{shown(names[k])}'") for k in places]
    table = pa.table(arrays, names=[names[k] for k in places])
    check_types(what, table.schema, wanted)
    check_shape(what, table.num_rows, table.num_columns, wanted.rows)
    return from_arrow(table)


def _arrow_array(column: Any, ways: Sequence[Callable[[Any], Any]], where: str) -> Any:
    """A column as an array of Arrow. Raises ValueError where Arrow has no type for the values."""
    import pyarrow as pa

    for way in ways:
        try:
            return way(column)
        except (pa.ArrowException, OverflowError):
            continue
    kinds = sorted({type(value).__name__ for value in column})
    raise ValueError(
        f"{where} holds values of type {' and '.join(kinds)}; expected numbers or text alone: make "
        "it float64 or text, or leave it out"
    )


# Makers


def _to_arrow(columns: Sequence[str], rows: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.Table.from_batches([record_batch(rows, columns)])


def _to_pandas(columns: Sequence[str], rows: np.ndarray) -> Any:
    import pandas as pd

    return pd.DataFrame(rows, columns=list(columns))


def _to_polars(columns: Sequence[str], rows: np.ndarray) -> Any:
    import polars as pl

    return pl.DataFrame(rows, schema=list(columns), orient="row")


def _to_numpy(dtype: str, columns: Sequence[str], rows: np.ndarray) -> np.ndarray:
    return rows.astype(dtype)


def _to_mlx(columns: Sequence[str], rows: np.ndarray) -> mx.array:
    return mx.array(rows.astype(np.float32))


def _has_dtype(dtype: str, data: Any) -> bool:
    return isinstance(data, np.ndarray) and data.dtype == dtype


def _numpy_reads(data: Any) -> bool:
    return isinstance(data, list | tuple) or hasattr(data, "__array__")


# The first that holds an object is its form.
FORMS: dict[str, Form] = {
    "pandas": Form(partial(_is_frame, "pandas"), _from_pandas, _to_pandas),
    "polars": Form(partial(_is_frame, "polars"), _from_polars, _to_polars),
    "arrow": Form(lambda data: hasattr(data, "__arrow_c_stream__"), _from_arrow, _to_arrow),
    "mlx": Form(lambda data: isinstance(data, mx.array), _from_array, _to_mlx),
    **{
        f"numpy:{dtype}": Form(partial(_has_dtype, dtype), _from_array, partial(_to_numpy, dtype))
        for dtype in ("float16", "float32")
    },
    "numpy": Form(_numpy_reads, _from_array, partial(_to_numpy, "float64")),
}

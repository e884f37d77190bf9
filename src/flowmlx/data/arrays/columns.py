"""Columns of Arrow as floats, or as places in a list of labels; and rows as columns of Arrow."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from flowmlx.data.arrays.names import Wanted, check_text
from flowmlx.data.arrays.numerals import kind
from flowmlx.data.arrays.table import Table


def is_number(type_) -> bool:
    """Whether an Arrow type is one of real numbers, of booleans, or of missing values alone."""
    import pyarrow as pa

    is_ = pa.types
    kinds = (is_.is_integer, is_.is_floating, is_.is_boolean, is_.is_decimal, is_.is_null)
    return any(of(_value_type(type_)) for of in kinds)


def is_text(type_) -> bool:
    """Whether an Arrow type is one of text."""
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_(_value_type(type_)) for is_ in kinds)


def _value_type(type_):
    """The type of the values, which a dictionary holds once each."""
    import pyarrow as pa

    return type_.value_type if pa.types.is_dictionary(type_) else type_


def check_types(what: str | Path, fields: Iterable, wanted: Wanted) -> None:
    """Raise ValueError for Arrow fields that are neither numbers, nor wanted as text."""
    fields, text = list(fields), wanted.text
    others = [field for field in fields if not is_number(field.type)]
    unread = [field.name for field in others if field.name not in text or not is_text(field.type)]
    check_text(what, unread, wanted, [field.name for field in fields])


def from_arrow(table) -> Table:
    """An Arrow table of numbers and text; NaN for a missing value."""
    values, labels = np.empty((table.num_rows, table.num_columns)), {}
    for k, name in enumerate(table.column_names):
        column = table.column(k)
        if is_text(column.type):
            values[:, k], labels[name] = places(column)
        else:
            values[:, k] = floats(column)
    return Table(tuple(table.column_names), values, labels)


def floats(column) -> np.ndarray:
    """An Arrow column of numbers as float64."""
    import pyarrow as pa

    return column.cast(pa.float64(), safe=False).to_numpy()


def places(cells) -> tuple[np.ndarray, tuple[str, ...]]:
    """Text of an Arrow column as places among its sorted distinct texts, and these.

    Blanks around a text do not count; NaN is the place of a missing one.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_dictionary(cells.type):  # of which Arrow decodes not every type of text
        cells = cells.cast(pa.dictionary(cells.type.index_type, pa.string()))
    texts = compute.call_function("utf8_trim_whitespace", [cells.cast(pa.string()).fill_null("")])
    coded = texts.combine_chunks().dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    labels = sorted(text for text in distinct if kind(text) != "missing")
    place = {text: float(k) for k, text in enumerate(labels)}
    codes = np.array([place.get(text, math.nan) for text in distinct])
    return codes[coded.indices.to_numpy()], tuple(labels)


def record_batch(rows: np.ndarray, columns: Sequence[str]):
    """Rows (n, columns) of float64 as a record batch of Arrow."""
    import pyarrow as pa

    arrays = [pa.array(np.ascontiguousarray(column)) for column in rows.T]
    return pa.record_batch(arrays, schema=schema(columns))


def schema(columns: Sequence[str]):
    """The Arrow schema of columns of float64."""
    import pyarrow as pa

    return pa.schema([(name, pa.float64()) for name in columns])

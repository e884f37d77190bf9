"""Columns of an Arrow table as floats, or as places in a list of labels."""

import math

import numpy as np

from flowmlx.data.arrays.numerals import kind
from flowmlx.data.arrays.table import Table


def is_number(type_) -> bool:
    """Whether an Arrow type is one of real numbers or of booleans."""
    import pyarrow as pa

    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(is_(type_) for is_ in kinds)


def is_text(type_) -> bool:
    """Whether an Arrow type is one of text, dictionaries of text included."""
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_(type_) for is_ in kinds)


def table_of(table) -> Table:
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

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.float64(), safe=False).to_numpy()


def places(cells) -> tuple[np.ndarray, tuple[str, ...]]:
    """Text of an Arrow column as places among its sorted distinct texts, and these.

    Blanks around a text do not count; NaN is the place of a missing one.
    """
    import pyarrow as pa
    from pyarrow import compute

    texts = compute.call_function("utf8_trim_whitespace", [cells.cast(pa.string()).fill_null("")])
    coded = texts.combine_chunks().dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    labels = sorted(text for text in distinct if kind(text) != "missing")
    place = {text: float(k) for k, text in enumerate(labels)}
    codes = np.array([place.get(text, math.nan) for text in distinct])
    return codes[coded.indices.to_numpy()], tuple(labels)

"""Files of numbers: read a table, standardise it, split it, and write rows in original units.

A table is numeric columns with names; text is read where a caller asks for it, as places in a list
of labels. `read` and `open_writer` choose the format by the file's extension, from `READERS` and
`WRITERS`. Everything is float64 on the host until `transform`, so that a column such as 1e9 +- 1
keeps its digits. Integers and booleans are read as floats, and come back as floats.
"""

from flowmlx.data.arrays.readers import READERS, read
from flowmlx.data.arrays.standardizer import Standardizer
from flowmlx.data.arrays.table import Table, by_value, split, take_columns
from flowmlx.data.arrays.writers import WRITERS, RowWriter, open_writer, write_rows

__all__ = [
    "READERS",
    "WRITERS",
    "RowWriter",
    "Standardizer",
    "Table",
    "by_value",
    "open_writer",
    "read",
    "split",
    "take_columns",
    "write_rows",
]

"""Tables of numbers: read and written as files, taken and given back in the forms people hold.

A table is numeric columns with names; text is read where a caller asks for it, as places in a list
of labels. `read` and `open_writer` choose the format by the file's extension, from `READERS` and
`WRITERS`; `table_of` and `in_form` take and give data frames, tables of Arrow and arrays, from
`FORMS`. `Standardizer` maps rows to what a model sees. Everything is float64 on the host until
`transform`, so that a column such as 1e9 +- 1 keeps its digits. Integers and booleans are read as
floats, and come back as floats.
"""

from flowmlx.data.arrays.frames import FORMS, form_of, in_form, rows_for, table_for, table_of
from flowmlx.data.arrays.readers import READERS, read
from flowmlx.data.arrays.standardizer import Standardizer
from flowmlx.data.arrays.table import Table, by_value, split, take_columns
from flowmlx.data.arrays.writers import WRITERS, RowWriter, open_writer, write_rows

__all__ = [
    "FORMS",
    "READERS",
    "WRITERS",
    "RowWriter",
    "Standardizer",
    "Table",
    "by_value",
    "form_of",
    "in_form",
    "open_writer",
    "read",
    "rows_for",
    "split",
    "table_for",
    "table_of",
    "take_columns",
    "write_rows",
]

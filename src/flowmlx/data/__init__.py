"""Data: toy distributions (`toy`, named in `TOY`); rows in files and in memory (`arrays`)."""

from flowmlx.data.arrays import (
    RowWriter,
    Standardizer,
    Table,
    form_of,
    in_form,
    open_writer,
    read,
    rows_for,
    split,
    table_of,
)
from flowmlx.data.toy import TOY

__all__ = [
    "TOY",
    "RowWriter",
    "Standardizer",
    "Table",
    "form_of",
    "in_form",
    "open_writer",
    "read",
    "rows_for",
    "split",
    "table_of",
]

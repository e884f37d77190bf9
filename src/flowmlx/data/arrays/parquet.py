"""Read a .parquet file."""

from collections.abc import Collection
from pathlib import Path

from flowmlx.data.arrays.columns import is_number, is_text, table_of
from flowmlx.data.arrays.names import check_text, check_unique, index_columns, say_left_out
from flowmlx.data.arrays.sources import check_beginning, check_shape, check_unpacked, library_errors
from flowmlx.data.arrays.table import Table


def read_parquet(path: Path, member: str | None, text: Collection[str]) -> Table:
    """Read columns of numbers, and those of `text`. Raises ValueError as `read` does."""
    from pyarrow import parquet

    with open(path, "rb") as opened:
        check_beginning(path, opened.read(16), b"PAR1")
    with library_errors(path):
        file = parquet.ParquetFile(path)
    with file:
        schema = file.schema_arrow
        index = index_columns(schema.names, text)
        say_left_out(path, schema.names, index, "an index of the rows")
        names = [name for k, name in enumerate(schema.names) if k not in index]
        check_unique(path, names)
        others = [f for f in schema if f.name in names and not is_number(f.type)]
        unread = [f.name for f in others if f.name not in text or not is_text(f.type)]
        check_text(path, unread, text, names)
        check_shape(path, rows := file.metadata.num_rows, len(names))
        check_unpacked(path, rows * len(names))  # a byte for each number at least
        with library_errors(path):
            return table_of(file.read().select(names))

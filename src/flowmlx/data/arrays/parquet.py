"""Read a .parquet file."""

from pathlib import Path

from flowmlx.data.arrays.columns import check_types, from_arrow
from flowmlx.data.arrays.names import Wanted, kept
from flowmlx.data.arrays.sources import check_beginning, check_shape, check_unpacked, library_errors
from flowmlx.data.arrays.table import Table


def read_parquet(path: Path, member: str | None, wanted: Wanted) -> Table:
    """Read columns of numbers, and those of text. Raises ValueError as `read` does."""
    from pyarrow import parquet

    with open(path, "rb") as opened:
        check_beginning(path, opened.read(16), b"PAR1")
    with library_errors(path):
        file = parquet.ParquetFile(path)
    with file:
        schema = file.schema_arrow
        places = kept(path, schema.names, wanted)
        names = [schema.names[k] for k in places]
        check_types(path, [schema.field(k) for k in places], wanted)
        check_shape(path, rows := file.metadata.num_rows, len(names), wanted.rows)
        check_unpacked(path, rows * len(names))  # a byte for each number at least
        with library_errors(path):
            return from_arrow(file.read(names).select(names))

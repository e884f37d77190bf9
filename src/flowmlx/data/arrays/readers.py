"""Read a table in the format that the file's extension says."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from flowmlx.data.arrays.delimited import read_delimited
from flowmlx.data.arrays.names import Wanted
from flowmlx.data.arrays.npy import read_npy, read_npz
from flowmlx.data.arrays.parquet import read_parquet
from flowmlx.data.arrays.sources import by_extension, locate, unreadable
from flowmlx.data.arrays.table import Table, check_finite


def read(path: str | os.PathLike, *, text: Collection[str] = ()) -> Table:
    """Read a table from a file: text (.csv, .tsv, .txt, also .gz), .parquet, .npy or .npz.

    `text`: names of columns that may contain text; blanks around it are removed. If such a column
    contains only numbers, it is read as numbers.

    The format of text is found from its content. Cells are separated by commas, semicolons, tabs,
    vertical bars or blanks; lines that start with # are comments. Numbers have a decimal point or
    comma, and may have marks between thousands; true and false are 1 and 0. The first line has the
    names of the columns, unless it contains only numbers. An index that pandas, R or a spreadsheet
    wrote is left out. The encoding is UTF-8, UTF-16 or else Windows-1252. If the file can be read
    in more than one way, a warning says how it was read.

    Arrays have the shape (rows, columns) or (rows,). Columns without names are called x0, x1, ...
    If an npz has several arrays, `data.npz:name` chooses one. Raises ValueError for a file that
    cannot be read, for a cell that is not a finite number or could be two different numbers, for
    duplicate names, and for fewer than two rows. The message says where, and what to do.
    """
    return read_wanted(path, Wanted(text))


def read_wanted(path: str | os.PathLike, wanted: Wanted) -> Table:
    """As `read`, but for what is wanted of the file; arrays are then taken by position."""
    path = Path(path).expanduser()
    try:
        path, member = locate(path)
        table = by_extension(path, READERS, "read")(path, member, wanted)
    except OSError as error:
        raise unreadable(path, error) from None
    except MemoryError:
        raise ValueError(f"{path} does not fit into memory; take a part of its rows") from None
    check_finite(path, table)
    return table


# Each reader is (path, name of an array in it or None, what is wanted) -> Table.
TEXT = (".csv", ".tsv", ".txt")
READERS: dict[str, Callable[[Path, str | None, Wanted], Table]] = {
    **dict.fromkeys(TEXT, read_delimited),
    **dict.fromkeys((f"{end}.gz" for end in TEXT), read_delimited),
    ".parquet": read_parquet,
    ".npy": read_npy,
    ".npz": read_npz,
}

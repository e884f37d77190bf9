"""Read a table in the format that the file's extension says."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from flowmlx.data.arrays.delimited import read_delimited
from flowmlx.data.arrays.npy import read_npy, read_npz
from flowmlx.data.arrays.parquet import read_parquet
from flowmlx.data.arrays.sources import by_extension, locate, unreadable
from flowmlx.data.arrays.table import Table
from flowmlx.data.arrays.words import repair, shown


def read(path: str | os.PathLike, *, text: Collection[str] = ()) -> Table:
    """Read a table from a file of rows: text (.csv, .tsv, .txt, also .gz), .parquet, .npy or .npz.

    `text`: names of columns that may hold text, without blanks around it; those of numbers alone
    are read as numbers all the same.

    Text is read by what is in it. Cells are separated by commas, semicolons, tabs, bars or blanks;
    lines of comments start with #. Numbers have a decimal point or comma, and may have marks
    between thousands; true and false are 1 and 0. The first line names the columns; one of numbers
    alone is data. An index that pandas, R or a spreadsheet wrote is left out. UTF-8, UTF-16 and,
    failing these, Windows-1252. A warning says what was taken for something that it need not be.

    Arrays are (rows, columns) or (rows,); they and text without names call their columns x0, x1,
    ... Of several arrays in an npz, `data.npz:name` chooses one. Raises ValueError, in one line
    that says where and what to do, for a file that cannot be read, a cell that is not a finite
    number or may be two, duplicate names or fewer than two rows.
    """
    path = Path(path).expanduser()
    try:
        path, member = locate(path)
        table = by_extension(path, READERS, "read")(path, member, text)
    except OSError as error:
        raise unreadable(path, error) from None
    except MemoryError:
        raise ValueError(f"{path} does not fit into memory; take a part of its rows") from None
    _check_finite(path, table)
    return table


def _check_finite(path: Path, table: Table) -> None:
    finite = np.isfinite(table.values)
    if finite.all():
        return
    row, column = divmod(int(finite.argmin()), finite.shape[1])
    name = table.columns[column]
    what = "is infinite" if np.isinf(table.values[row, column]) else "is NaN or missing"
    raise ValueError(
        f"{path}, row {row + 1}: column '{shown(name)}' {what}; {repair(name in table.labels)}"
    )


# Each reader is (path, name of an array in it or None, names of columns of text) -> Table.
TEXT = (".csv", ".tsv", ".txt")
READERS: dict[str, Callable[[Path, str | None, Collection[str]], Table]] = {
    **dict.fromkeys(TEXT, read_delimited),
    **dict.fromkeys((f"{end}.gz" for end in TEXT), read_delimited),
    ".parquet": read_parquet,
    ".npy": read_npy,
    ".npz": read_npz,
}

"""Read arrays of .npy and .npz files: what a header says is checked before memory is taken."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from flowmlx.data.arrays.names import Wanted
from flowmlx.data.arrays.sources import (
    check_beginning,
    check_shape,
    check_unpacked,
    damaged,
    library_errors,
)
from flowmlx.data.arrays.table import Table
from flowmlx.data.arrays.words import default_names, quoted, shown
from flowmlx.files.npy import Header, read_header, read_numbers


def read_npy(path: Path, member: str | None, wanted: Wanted) -> Table:
    """Read the array of an .npy file. Raises ValueError as `read` does."""
    with open(path, "rb") as file:
        return _table(path, file, path.stat().st_size, wanted)


def read_npz(path: Path, member: str | None, wanted: Wanted) -> Table:
    """Read the array `member`, or the only one, of an .npz. Raises ValueError as `read` does."""
    with open(path, "rb") as file:
        check_beginning(path, file.read(16), b"PK")
    with library_errors(path):
        archive = zipfile.ZipFile(path)
    with archive:
        arrays = {
            entry.filename.removesuffix(".npy"): entry
            for entry in archive.infolist()
            if entry.filename.endswith(".npy")
        }
        entry = arrays[_member(path, list(arrays), member)]
        check_unpacked(path, entry.file_size)
        with library_errors(path):
            file = archive.open(entry)
        with file:
            return _table(path, file, entry.file_size, wanted)


def _member(path: Path, names: list[str], member: str | None) -> str:
    """The array to take from an npz: the one asked for, or the only one."""
    if member is None and len(names) == 1:
        return names[0]
    if member in names:
        return member
    if not names:
        raise ValueError(f"{path} holds no arrays")
    asked = f"no array '{member}' but" if member else f"{len(names)} arrays:"
    raise ValueError(f"{path} holds {asked} {quoted(names)}; choose one, as {path}:{names[0]}")


def array_size(what: str | Path, shape: tuple[int, ...], wanted: Wanted) -> tuple[int, int]:
    """Rows and columns of the table that an array of `shape` is.

    One axis is one column; but where several columns are needed, it is one row. Raises ValueError
    for no axis or more than two, for another number of columns than are needed, and as
    `check_shape`.
    """
    if len(shape) not in (1, 2):
        raise ValueError(
            f"{what} holds an array of shape {shown(str(shape))}; expected (rows, columns) or "
            "(rows,), so reshape it"
        )
    needed = wanted.needed
    rows, columns = shape[0], math.prod(shape[1:])
    if len(shape) == 1 and needed is not None and len(needed) > 1:
        rows, columns = 1, shape[0]
    if needed is not None and columns != len(needed):
        raise ValueError(
            f"{what} holds an array of shape {shape}; expected (n, {len(needed)}), the columns "
            f"{quoted(needed)}"
        )
    check_shape(what, rows, columns, wanted.rows)
    return rows, columns


def array_table(array: np.ndarray, size: tuple[int, int], wanted: Wanted) -> Table:
    """An array of `size` as a table: as float64, under the needed names, else under x0, x1, ..."""
    values = array.reshape(size).astype(np.float64)
    return Table(wanted.needed or default_names(size[1]), values)


def _table(path: Path, file: IO[bytes], size: int, wanted: Wanted) -> Table:
    """The array of a stream of `size` bytes."""
    with library_errors(path):
        header = read_header(file)
    _check_header(path, header)
    rows_and_columns = array_size(path, header.shape, wanted)
    if (rest := size - file.tell() - header.nbytes) < 0:
        raise damaged(path)
    if rest:
        raise ValueError(f"{path} has {rest:,} bytes after its array; save one array in a file")
    with library_errors(path):
        array = read_numbers(file, header)
    return array_table(array, rows_and_columns, wanted)


def _check_header(path: Path, header: Header) -> None:
    """Refuse an array that is not of real numbers. Raises ValueError."""
    if header.dtype.hasobject:
        raise ValueError(
            f"{path} holds Python objects, which are not read; save numbers, as of "
            "array.astype(float)"
        )
    if header.dtype.kind not in "biuf":
        kind = shown(str(header.dtype))
        raise ValueError(f"{path} holds values of type {kind}; expected real numbers")
    if not all(type(length) is int and length >= 0 for length in header.shape):
        raise damaged(path)

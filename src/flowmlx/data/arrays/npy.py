"""Read arrays of .npy and .npz files: what a header says is checked before memory is taken."""

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

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


def read_npy(path: Path, member: str | None, text: Collection[str]) -> Table:
    """Read the array of an .npy file. Raises ValueError as `read` does."""
    with open(path, "rb") as file:
        return _table(path, file, path.stat().st_size)


def read_npz(path: Path, member: str | None, text: Collection[str]) -> Table:
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
            return _table(path, file, entry.file_size)


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


def _table(path: Path, file: IO[bytes], size: int) -> Table:
    """The array of a stream of `size` bytes."""
    with library_errors(path):
        header = read_header(file)
    rows, columns = _rows_and_columns(path, header)
    check_shape(path, rows, columns)
    if (rest := size - file.tell() - header.nbytes) < 0:
        raise damaged(path)
    if rest:
        raise ValueError(f"{path} has {rest:,} bytes after its array; save one array in a file")
    with library_errors(path):
        array = read_numbers(file, header)
    values = array.reshape(rows, columns).astype(np.float64)
    return Table(default_names(columns), values)


def _rows_and_columns(path: Path, header: Header) -> tuple[int, int]:
    """The size of the table that an array is. Raises ValueError for one that is none."""
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
    if len(header.shape) not in (1, 2):
        raise ValueError(
            f"{path} holds an array of shape {shown(str(header.shape))}; expected (rows, columns) "
            "or (rows,), so reshape it"
        )
    return header.shape[0], math.prod(header.shape[1:])

"""Files as they lie on the disk: found, of the kind that their name says, of a size that fits."""

import difflib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from flowmlx.data.arrays.words import count

T = TypeVar("T")

# How files begin that are often given another's extension.
BEGINNINGS = {
    b"\x93NUMPY": "an .npy file",
    b"PK\x03\x04": "a zip archive, as .npz and .xlsx are",
    b"PK\x05\x06": "an empty zip archive",
    b"PAR1": "a .parquet file",
    b"ARROW1": "a .feather file",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x89HDF": "an HDF5 file",
    b"\xd0\xcf\x11\xe0": "an .xls file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a .pdf file",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
}

# More columns than a model of vectors can be of.
MOST_COLUMNS = 100_000

# What is compressed may unpack to this many bytes, or to this multiple of its size if that is more.
UNPACKED, RATIO = 1 << 29, 100


def locate(path: Path) -> tuple[Path, str | None]:
    """Split `data.npz:name` into file and array, and make sure that the file can be read.

    Raises ValueError for what is not there, is no file (a folder, a pipe, a device) or is empty.
    """
    member = None
    if ".npz:" in path.name and not path.exists():
        file, _, member = path.name.rpartition(":")
        path = path.with_name(file)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no file {path}, nor a folder {path.parent}")
    if not path.exists():
        close = difflib.get_close_matches(path.name, os.listdir(path.parent))
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"there is no file {path}{hint}")
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for a writer
        raise ValueError(f"{path} is a pipe or a device; save what it gives to a file")
    if not about.st_size:
        raise ValueError(f"{path} is empty; expected rows of numbers")
    return path, member


def by_extension(path: Path, table: dict[str, T], verb: str) -> T:
    """The entry of `table` for the end of a file's name, such as .csv or .csv.gz."""
    try:
        return table[extension(path).lower()]
    except KeyError:
        raise ValueError(
            f"{path} cannot be {verb}: the extension is '{extension(path)}'; known are "
            f"{', '.join(table)}"
        ) from None


def extension(path: Path) -> str:
    """The end of a file's name that says its format: .csv, .csv.gz."""
    return "".join(path.suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix


def check_beginning(path: Path, beginning: bytes, *expected: bytes) -> None:
    """Refuse a file whose first bytes are those of another kind of file.

    `expected`: what one of them has to be; for text none. Raises ValueError.
    """
    if expected and beginning.startswith(expected):
        return
    for known, kind in BEGINNINGS.items():
        printable = known.isascii() and known.decode().isprintable()  # as names of columns are
        if beginning.startswith(known) and (b"\0" in beginning or not printable):
            raise ValueError(
                f"{path} cannot be read as {extension(path)}: it is {kind}; give it the right "
                "extension, or save the table as .csv"
            )
    if expected:
        raise damaged(path)


def damaged(path: Path) -> ValueError:
    """The error for bytes that a format does not allow."""
    return ValueError(
        f"{path} cannot be read as {extension(path)}: it is cut short, damaged or another kind of "
        "file; check that it is complete and has the right extension"
    )


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Turn whatever a library raises for bytes that it did not expect into `damaged`.

    What it raises is of any type, and its words are about the format, not about the user's file.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        raise damaged(path) from error


def check_shape(what: str | Path, rows: int, columns: int, least: int) -> None:
    """Refuse a table without columns, with fewer than `least` rows, or larger than the memory."""
    if rows < least and columns:
        raise ValueError(f"{what} has {count(rows, 'row')} of data; expected at least {least}")
    check_columns(what, columns)
    check_memory(what, 16 * rows * columns)  # as the library reads it, and as float64


def check_columns(what: str | Path, columns: int) -> None:
    """Refuse a table without columns, or with too many. Raises ValueError."""
    if not columns:
        raise ValueError(f"{what} has no columns; expected at least one")
    if columns > MOST_COLUMNS:
        raise ValueError(
            f"{what} has {columns:,} columns; at most {MOST_COLUMNS:,} can be read, so choose some"
        )


def check_memory(what: str | Path, size: int) -> None:
    """Refuse to read `size` bytes where this machine's memory has fewer. Raises ValueError."""
    if size > (memory := physical_memory()):
        raise ValueError(
            f"{what} takes about {size / 1e9:,.1f} GB of memory and this machine has "
            f"{memory / 1e9:,.1f}; take a part of its rows"
        )


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_unpacked(path: Path, size: int) -> None:
    """Refuse what unpacks to `size` bytes if that is far more than numbers do.

    A file made to fill the memory is a thousandth of what it unpacks to. Raises ValueError.
    """
    check_memory(path, size)
    if size > max(UNPACKED, RATIO * path.stat().st_size):
        raise ValueError(
            f"{path} unpacks to more than {RATIO} times its size, {size / 1e9:,.1f} GB or more, as "
            "no table of numbers does; write it without compression if that is right"
        )


def unreadable(path: Path, error: OSError) -> ValueError:
    """The error for a file that the system does not let us read."""
    return ValueError(f"{path} cannot be read: {error.strerror or error}")

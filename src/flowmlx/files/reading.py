"""Reading files that this package wrote, and that may have been cut, edited or replaced since.

Nothing waits, as opening a named pipe does; memory is bounded by the file's size. What is wrong
comes as an error of any kind, which `checked` makes one line with the file's name and a remedy.
"""

import contextlib
import io
import json
import math
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import mlx.core as mx
import numpy as np

from flowmlx.files.npy import read_header, read_numbers

# Bytes of a file of text, and of a header, that are read at most.
MOST_TEXT, MOST_HEADER = 2**30, 100_000_000
# Bits of a number in a safetensors file.
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class NewerFormat(ValueError):
    """A file of a newer version of this package, which this one cannot read."""


class Damaged(ValueError):
    """A file that is missing, or is not what was written."""


@contextlib.contextmanager
def checked(path: str | Path, remedy: str = "") -> Iterator[None]:
    """Raise `Damaged` for what goes wrong within, with the name of the file and the `remedy`."""
    try:
        yield
    except (NewerFormat, Damaged):
        raise
    except Exception as error:  # libraries raise what they like for bytes that mean nothing
        said = f"{path} is missing or damaged: {' '.join(why(error).split())[:300]}"
        raise Damaged(f"{said}; {remedy}" if remedy else said) from error


def why(error: Exception) -> str:
    """What is wrong with a file, from the error that it led to."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, RecursionError):
        return "its parts are nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text: byte {error.start + 1} is not UTF-8"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a regular file to read bytes. Raises ValueError for anything else, OSError for none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer does not wait
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise ValueError(f"it is a {_KINDS.get(stat.S_IFMT(mode), 'device')}, not a file")
    with open(handle, "rb") as file:
        yield file


_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}


def text(path: str | Path, *, least: int = 1, most: int = MOST_TEXT) -> str:
    """The text (UTF-8) of a file of `least` to `most` bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, where {most:,} are expected at most")
        content = file.read()
    if len(content) < least:
        raise ValueError("it is empty")
    return content.decode()


def json_object(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; numbers must be finite."""
    return parse_object(text(path))


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object from text; numbers must be finite."""
    found = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, where an object {{...}} is expected")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, where numbers have to be finite")


def whole_number(value: Any, name: str) -> int:
    """`value` as an integer of at least 0. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}, where a whole number is expected")
    return value


def check_format(path: str | Path, found: Mapping[str, Any], newest: int) -> None:
    """Refuse a `found["format"]` above `newest`. Files of the first versions have none."""
    with checked(path):
        number = whole_number(found.get("format", 0), "format")
    if number > newest:
        raise NewerFormat(
            f"{path} has format {number}, of a newer version of flowmlx; this one reads formats up "
            f"to {newest}: update flowmlx"
        )


def warn_of_unknown(path: str | Path, found: Mapping[str, Any], known: Any) -> None:
    """Warn of keys that are not `known`, as a newer version may write."""
    unknown = [str(key) for key in found if key not in known]
    if unknown:
        warnings.warn(
            f"{path}: left out what this version does not know: {', '.join(unknown)[:200]}",
            stacklevel=3,
        )


def arrays_of_numpy(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that is not compressed."""
    with opened(path) as file, zipfile.ZipFile(file) as archive:
        found = {}
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            found[member.filename.removesuffix(".npy")] = _member(archive, member)
    return found


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header must promise the bytes that are there."""
    content = archive.read(member)  # which the file holds, as they are not compressed
    stream = io.BytesIO(content)
    header = read_header(stream)
    left = len(content) - stream.tell() - header.nbytes
    if left or max(header.shape, default=0) > len(content):
        raise ValueError(f"{member.filename} claims the shape {header.shape}, which is not there")
    return read_numbers(stream, header)


def arrays_of_mlx(path: str | Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Arrays and metadata of a safetensors file. All arrays must be finite."""
    check_header(path)
    arrays, metadata = cast(
        tuple[dict[str, mx.array], dict[str, str]],
        mx.load(str(path), format="safetensors", return_metadata=True),
    )
    finite = {name: mx.isfinite(x).all() for name, x in arrays.items()}
    mx.eval(arrays, finite)
    for name, well in finite.items():
        if not well.item():
            raise ValueError(f"{name} holds NaN or infinity")
    return arrays, metadata


def check_header(path: str | Path) -> None:
    """Hold the header of a safetensors file against the bytes that are there. Raises ValueError.

    MLX multiplies its numbers, which may overflow, and reads when the arrays are needed.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise ValueError("it is empty" if not size else "it was cut short")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, MOST_HEADER):
            raise ValueError(f"it claims a header of {length:,} bytes and has {size:,} in all")
        header = parse_object(file.read(length).decode())
    header.pop("__metadata__", None)
    ends = [_end(name, about) for name, about in header.items()]
    if max(ends, default=0) != size - 8 - length:
        raise ValueError(f"its arrays take {max(ends, default=0):,} bytes of {size - 8 - length:,}")


def _end(name: str, about: Any) -> int:
    """Where an array ends, which its shape and type must agree with."""
    start, end = (whole_number(n, f"a place of {name}") for n in about["data_offsets"])
    shape = [whole_number(n, f"a length of {name}") for n in about["shape"]]
    if about["dtype"] not in BITS:
        raise ValueError(f"{name} is of the unknown type {about['dtype']!r}")
    if (end - start) * 8 != math.prod(shape) * BITS[about["dtype"]]:
        raise ValueError(f"{name} claims {end - start:,} bytes for the shape {shape}")
    return end

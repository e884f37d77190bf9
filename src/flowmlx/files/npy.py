"""Arrays in NumPy's .npy form, whose header can be held against the bytes that are there first."""

import math
import warnings
from typing import IO, NamedTuple

import numpy as np


class Header(NamedTuple):
    """What the header of an array claims; nothing in it has been checked."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, which follow the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> Header:
    """Read the header of an array; the stream then stands at its numbers.

    Raises an error of any kind for bytes that are none.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers by Python 2
        return Header(*readers[np.lib.format.read_magic(file)](file))


def read_numbers(file: IO[bytes], header: Header) -> np.ndarray:
    """Read the array behind a header. Raises ValueError where it has more or fewer bytes.

    Memory is taken for `header.nbytes`: check first that the stream has as many. Python objects
    are refused, with ValueError.
    """
    array = np.frombuffer(file.read(header.nbytes + 1), header.dtype)
    return array.reshape(header.shape, order="F" if header.fortran else "C")

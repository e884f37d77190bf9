"""Write rows batch by batch, in the format that the file's extension says."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.data.arrays.columns import record_batch, schema
from flowmlx.data.arrays.sources import by_extension
from flowmlx.data.arrays.standardizer import rows_of
from flowmlx.files.writing import replacing


class RowWriter(NamedTuple):
    """Takes rows as they come; made by `open_writer`."""

    columns: tuple[str, ...]
    append: Callable[[np.ndarray], object]

    def write(self, batch: mx.array | np.ndarray) -> None:
        """Append rows in original units, (n, columns). Raises ValueError for another width."""
        self.append(rows_of(batch, "batch", self.columns))


@contextmanager
def open_writer(path: str | os.PathLike, columns: Sequence[str]) -> Iterator[RowWriter]:
    """Write rows batch by batch to a .csv, .parquet or .npy file, as float64 under `columns`.

    Use as `with open_writer(path, columns) as out: out.write(rows)`. The file appears, or replaces
    the one before, when the block ends; after an error or Ctrl-C nothing is left behind. Memory
    does not grow with the number of rows. Raises ValueError for an unknown extension or a place
    that cannot be written.
    """
    path = Path(path).expanduser()
    writer = by_extension(path, WRITERS, "written")
    if os.path.isdir(path):
        raise ValueError(f"cannot write {path}: it is a folder; add a file name")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    try:
        with (
            replacing(path) as partial,
            partial.open("wb") as file,
            writer(file, tuple(columns)) as append,
        ):
            yield RowWriter(tuple(columns), append)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def write_rows(
    path: str | os.PathLike,
    columns: Sequence[str],
    parts: Iterable[np.ndarray],
    *,
    batch_size: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> None:
    """Write `parts` of rows (n, columns) to a file, at least `batch_size` rows at a time.

    `progress` is called with the number of rows that came. Raises ValueError as `open_writer`.
    """
    waiting: list[np.ndarray] = []
    with open_writer(path, columns) as writer:
        for part in parts:
            waiting.append(part)
            progress(len(part))
            if sum(map(len, waiting)) >= batch_size:
                writer.write(np.concatenate(waiting))
                waiting = []
        if waiting:
            writer.write(np.concatenate(waiting))


# Each writer is a context manager (file, names) -> function that appends rows


@contextmanager
def _csv_writer(file: IO[bytes], columns: tuple[str, ...]):
    from pyarrow import csv as arrow

    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(columns)
    file.write(header.getvalue().encode())
    options = arrow.WriteOptions(include_header=False)
    with arrow.CSVWriter(file, schema(columns), write_options=options) as out:
        yield lambda rows: out.write_batch(record_batch(rows, columns))


@contextmanager
def _parquet_writer(file: IO[bytes], columns: tuple[str, ...]):
    from pyarrow import parquet

    with parquet.ParquetWriter(file, schema(columns)) as out:
        yield lambda rows: out.write_batch(record_batch(rows, columns))


@contextmanager
def _npy_writer(file: IO[bytes], columns: tuple[str, ...]):
    def header(rows: int) -> None:
        # numpy pads the header so that a larger number of rows fits in the same place.
        shape = {"descr": "<f8", "fortran_order": False, "shape": (rows, len(columns))}
        np.lib.format.write_array_header_1_0(file, shape)

    header(0)
    start = file.tell()
    yield lambda rows: file.write(rows.astype("<f8").tobytes())
    rows = (file.tell() - start) // (8 * len(columns))
    file.seek(0)
    header(rows)


WRITERS: dict[str, Callable[[IO[bytes], tuple[str, ...]], AbstractContextManager[Callable]]] = {
    ".csv": _csv_writer,
    ".parquet": _parquet_writer,
    ".npy": _npy_writer,
}

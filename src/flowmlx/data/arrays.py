"""Files of numbers: read a table, standardise it, split it, and write rows in original units.

A table is numeric columns with names; text is read where a caller asks for it, as places in a list
of labels. `read` and `open_writer` choose the format by the file's extension, from `READERS` and
`WRITERS`. Everything is float64 on the host until `transform`, so that a column such as 1e9 +- 1
keeps its digits. Integers and booleans are read as floats, and come back as floats.
"""

import csv
import difflib
import io
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.names import suggest
from flowmlx.writing import replacing


class Table(NamedTuple):
    """Named numeric columns: the names `columns` and `values` (rows, columns), float64, finite.

    `labels`: of a column of text, by its name, the distinct texts in order; its values are places
    among them.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    labels: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def read(path: str | os.PathLike, *, text: Collection[str] = ()) -> Table:
    """Read a table from a .csv, .parquet, .npy or .npz file.

    `text`: names of columns that may hold text, without blanks around it; those of numbers alone
    are read as numbers all the same.

    csv: UTF-8, separated by commas, semicolons, tabs or bars, with a header; a first line
    without text is taken as data, with a warning. Arrays are (rows, columns) or (rows,); they and
    a csv without header name their columns x0, x1, ... Of several arrays in an npz,
    `data.npz:name` chooses one. Raises ValueError, in one line that says where and what to do, for
    a file that cannot be read, a cell that is not a finite number, duplicate names or fewer than
    two rows.
    """
    path, member = _locate(Path(path).expanduser())
    reader = _by_extension(path, READERS, "read")
    try:
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty; expected rows of numbers")
        table = reader(path, member, text)
    except OSError as error:
        raise _unreadable(path, error) from None
    _check(path, table)
    return table


def take_columns(table: Table, names: Sequence[str]) -> tuple[Table, Table]:
    """Split a table into that of the columns `names` and that of the others.

    Raises ValueError for a column that the table does not have, and where no other is left.
    """
    _check_there(names, table.columns)
    others = [name for name in table.columns if name not in names]
    if not others:
        raise ValueError(f"there is no column beside {_quoted(names)}, so nothing left to learn")
    taken, rest = (_columns(table, chosen) for chosen in (names, others))
    return taken, rest


def _columns(table: Table, names: Sequence[str]) -> Table:
    values = table.values[:, [table.columns.index(name) for name in names]]
    labels = {name: table.labels[name] for name in names if name in table.labels}
    return Table(tuple(names), values, labels)


def by_value(table: Table, column: str) -> dict[float, Table]:
    """Split a table into those of the rows with one value in `column`, without it, by that value.

    The values are in increasing order. Raises ValueError as `take_columns` does, and for a value
    with a single row.
    """
    taken, rest = take_columns(table, [column])
    values = taken.values[:, 0]
    parts = {
        value: rest._replace(values=rest.values[values == value])
        for value in np.unique(values).tolist()
    }
    for value, part in parts.items():
        if len(part.values) < 2:
            raise ValueError(
                f"only one row has '{column}' = {value:g}; expected two or more for each value, so "
                "round the column or leave the row out"
            )
    return parts


def split(table: Table, holdout: float, *, key: mx.array) -> tuple[Table, Table]:
    """Split rows at random into (training, held-out), each in random order and not empty.

    `holdout`: fraction of the rows to hold out, between 0 and 1; `key` fixes the choice. Raises
    ValueError for another fraction.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}; expected a fraction between 0 and 1, such as 0.1")
    rows = len(table.values)
    held = min(max(1, round(holdout * rows)), rows - 1)
    order = np.array(mx.random.permutation(rows, key=key))
    training, test = table.values[order[held:]], table.values[order[:held]]
    return table._replace(values=training), table._replace(values=test)


@dataclass(frozen=True, eq=False)
class Standardizer:
    """The map between rows of a table and what a model sees: z = (x - mean) / scale, by column.

    `mean` and `scale`: (columns,) float64; the scale is the population standard deviation, and 0
    marks a constant column. Constant columns are not modelled: `transform` leaves them out and
    `inverse` puts exactly their value back.
    """

    columns: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, table: Table) -> "Standardizer":
        """Take mean and scale from `table`, with a warning where a column is constant.

        Raises ValueError where every column is constant.
        """
        low, high = table.values.min(0), table.values.max(0)
        centre, half = low / 2 + high / 2, high / 2 - low / 2
        constant = half == 0
        names = _quoted(c for c, same in zip(table.columns, constant, strict=True) if same)
        if constant.all():
            raise ValueError(f"every column is constant ({names}), so there is nothing to learn")
        if constant.any():
            warnings.warn(f"constant, so carried through unchanged: {names}", stacklevel=2)
        # In units of the range, squares do not overflow, a large offset does not cancel, and a
        # constant column gets exactly its value and 0.
        u = (table.values - centre) / np.where(constant, 1.0, half)
        return cls(table.columns, centre + half * u.mean(0), half * u.std(0))

    @property
    def modelled(self) -> tuple[str, ...]:
        """Names of the columns that vary: those of the modelled array, in its order."""
        return tuple(c for c, s in zip(self.columns, self.scale, strict=True) if s > 0)

    def transform(self, x: np.ndarray) -> mx.array:
        """Rows in original units (n, columns) -> modelled array (n, modelled columns), float32.

        Raises ValueError for another number of columns, and where a result overflows float32.
        """
        varies = self.scale > 0
        z = (_rows(x, self.columns)[:, varies] - self.mean[varies]) / self.scale[varies]
        large = np.argwhere(~(np.abs(z) <= np.finfo(np.float32).max))
        if len(large):
            row, column = large[0]
            raise ValueError(
                f"row {row + 1}: column '{self.modelled[column]}' is {z[row, column]:g} standard "
                "deviations from its mean, too many for float32; check its units"
            )
        return mx.array(z.astype(np.float32))

    def inverse(self, z: mx.array | np.ndarray) -> np.ndarray:
        """Modelled array (n, modelled columns) -> rows in original units (n, columns), float64.

        Raises ValueError for another number of columns.
        """
        z = _rows(z, self.modelled)
        varies = self.scale > 0
        x = np.tile(self.mean, (len(z), 1))
        x[:, varies] += z * self.scale[varies]
        return x

    def to_dict(self) -> dict:
        """Lists for JSON, without loss: JSON text keeps every digit of a float."""
        return {
            "columns": list(self.columns),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_dict(cls, saved: dict) -> "Standardizer":
        """Undo `to_dict`. Raises ValueError for what that does not make."""
        columns = tuple(saved["columns"])
        mean, scale = (np.array(saved[name], np.float64) for name in ("mean", "scale"))
        if not all(isinstance(name, str) for name in columns):
            raise ValueError(f"columns are {columns}; expected their names")
        if not mean.shape == scale.shape == (len(columns),):
            raise ValueError(f"{len(columns)} columns, {mean.size} means and {scale.size} scales")
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale >= 0).all()):
            raise ValueError("means must be finite numbers, and scales at least 0 as well")
        if not scale.any():
            raise ValueError("every scale is 0; expected a column that varies")
        return cls(columns, mean, scale)


class RowWriter(NamedTuple):
    """Takes rows as they come; made by `open_writer`."""

    columns: tuple[str, ...]
    append: Callable[[np.ndarray], object]

    def write(self, batch: mx.array | np.ndarray) -> None:
        """Append rows in original units, (n, columns). Raises ValueError for another width."""
        self.append(_rows(batch, self.columns))


@contextmanager
def open_writer(path: str | os.PathLike, columns: Sequence[str]) -> Iterator[RowWriter]:
    """Write rows batch by batch to a .csv, .parquet or .npy file, as float64 under `columns`.

    Use as `with open_writer(path, columns) as out: out.write(rows)`. The file appears, or replaces
    the one before, when the block ends; after an error or Ctrl-C nothing is left behind. Memory
    does not grow with the number of rows. Raises ValueError for an unknown extension or a place
    that cannot be written.
    """
    path = Path(path).expanduser()
    writer = _by_extension(path, WRITERS, "written")
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


# Reading: each reader is (path, name of an array in it or None, columns of text) -> Table

_TRUE, _FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]


def _read_csv(path: Path, member: str | None, text: Collection[str]) -> Table:
    """Read with Arrow; where it meets what it should not, find the cell and report it."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    form = _csv_form(path)
    types = dict(zip(form.columns, map(_csv_type, form.boolean), strict=True))
    try:
        cells = arrow.read_csv(
            path,
            arrow.ReadOptions(column_names=form.columns, skip_rows=form.header_lines),
            arrow.ParseOptions(delimiter=form.delimiter),
            arrow.ConvertOptions(
                column_types={k: pa.string() if k in text else v for k, v in types.items()},
                true_values=_TRUE,
                false_values=_FALSE,
            ),
        )
    except pa.ArrowInvalid as error:
        _explain_csv(path, form, text)
        raise _unreadable(path, error) from None
    for k, name in enumerate(form.columns):
        if name in text:
            cells = cells.set_column(k, name, _numbers_if_all_are(cells[name], types[name]))
    table = _table(cells)
    if not np.isfinite(table.values).all():
        _explain_csv(path, form, text)
    return table


def _csv_type(boolean: bool):
    import pyarrow as pa

    return pa.bool_() if boolean else pa.float64()


def _numbers_if_all_are(cells, type_):
    """An Arrow column of text as one of `type_`, or as it is where a cell is something else."""
    import pyarrow as pa

    try:
        return _trimmed(cells).cast(type_)
    except pa.ArrowInvalid:
        return cells


class _CsvForm(NamedTuple):
    """How a csv file is laid out, as seen from its first two rows."""

    columns: tuple[str, ...]
    delimiter: str
    header_lines: int  # lines before the data
    boolean: tuple[bool, ...]  # columns of true and false


def _csv_form(path: Path) -> _CsvForm:
    delimiter = max(",;\t|", key=lambda d: len(next(_csv_rows(path, d), (0, []))[1]))
    rows = _csv_rows(path, delimiter)
    line, first = next(rows, (0, []))
    if not first:
        raise ValueError(f"{path} is empty; expected rows of numbers")
    if all(_kind(cell) != "text" for cell in first):
        names = _default_names(len(first))
        warnings.warn(
            f"{path}: the first line has no names, so it is taken as data and the columns are "
            f"named {_quoted(names)}; add a line of names if that is wrong",
            stacklevel=4,
        )
        return _CsvForm(names, delimiter, 0, (False,) * len(names))
    names = tuple(name.strip() for name in first)
    if "" in names:
        raise ValueError(
            f"{path}, line {line}: column {names.index('') + 1} has no name; name it, or leave it "
            "out (pandas and spreadsheets write such a column for the index)"
        )
    _check_unique(path, names)
    start, cells = next(rows, (0, []))
    if not cells:
        raise ValueError(f"{path} has a header and no rows; expected at least two")
    # A row of another length is reported when all rows are read.
    cells = (cells + [""] * len(names))[: len(names)]
    return _CsvForm(names, delimiter, start - 1, tuple(map(_is_boolean, cells)))


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line of the file that it starts on."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            line = 1
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as csv in UTF-8") from None
    except csv.Error as error:
        raise _unreadable(path, error) from None


def _explain_csv(path: Path, form: _CsvForm, text: Collection[str]) -> None:
    """Raise for the first thing in the file that should not be there, if there is one."""
    rows = _csv_rows(path, form.delimiter)
    if form.header_lines:
        next(rows)
    kinds: dict[str, set[str]] = {name: set() for name in form.columns}
    problem = ""
    for number, (line, cells) in enumerate(rows, 1):
        where = f"{path}, line {line} (row {number})"
        if len(cells) != len(form.columns):
            raise ValueError(
                f"{where} has {_count(cells, 'cell')} for {_count(form.columns, 'column')}; "
                "complete the line, or quote a cell that contains the separator"
            )
        for name, boolean, cell in zip(form.columns, form.boolean, cells, strict=True):
            kind = "number" if boolean and _is_boolean(cell) else _kind(cell)
            if kind == "text" and name in text:
                continue
            kinds[name].add(kind)
            if kind != "number" and not problem:
                what = _describe(cell, kind, _repair(name in text))
                problem = f"{where}: column '{name}' {what}"
    unread = [name for name, seen in kinds.items() if seen - {"missing"} == {"text"}]
    _check_text(path, unread, text, form.columns)
    if problem:
        raise ValueError(problem)


def _repair(text: bool) -> str:
    if text:
        return "remove the row or fill in a value (NA, NaN, null and none count as missing)"
    return "remove the row or fill in a finite number"


def _describe(cell: str, kind: str, repair: str) -> str:
    """Say what is wrong with a cell and what to do."""
    cell = cell.strip()
    if kind == "text" and _kind(cell.replace(",", ".")) == "number":
        return f"holds '{cell}'; write decimals with a point"
    return f"holds '{cell}'; {repair}" if cell else f"has an empty cell; {repair}"


def _kind(cell: str) -> str:
    """Classify a cell as "number", "missing" (nothing, NaN or infinite) or "text"."""
    try:
        number = float(cell)
    except ValueError:
        empty = cell.strip().lower() in ("", "na", "n/a", "null", "none")
        return "missing" if empty else "text"
    if "_" in cell:  # Python groups digits so, csv does not
        return "text"
    return "number" if math.isfinite(number) else "missing"


def _is_boolean(cell: str) -> bool:
    return cell.strip() in _TRUE + _FALSE


def _read_parquet(path: Path, member: str | None, text: Collection[str]) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    with _library_errors(path):
        table = parquet.ParquetFile(path).read()
    _check_unique(path, table.column_names)
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    others = [f for f in table.schema if not any(is_(f.type) for is_ in numeric)]
    unread = [f.name for f in others if f.name not in text or not _is_text(f.type)]
    _check_text(path, unread, text, table.column_names)
    return _table(table)


def _is_text(type_) -> bool:
    """Whether an Arrow type is one of text, dictionaries of text included."""
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_(type_) for is_ in kinds)


def _table(table) -> Table:
    """Columns of an Arrow table as floats; NaN for a missing value."""
    import pyarrow as pa

    values, labels = np.empty((table.num_rows, table.num_columns)), {}
    for k, name in enumerate(table.column_names):
        column = table.column(k)
        if _is_text(column.type):
            values[:, k], labels[name] = _places(column)
            continue
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        values[:, k] = column.cast(pa.float64(), safe=False).to_numpy()
    return Table(tuple(table.column_names), values, labels)


def _places(cells) -> tuple[np.ndarray, tuple[str, ...]]:
    """Text of an Arrow column as places among its sorted distinct texts, and these."""
    import pyarrow as pa

    texts = _trimmed(cells.cast(pa.string()).fill_null(""))
    coded = texts.combine_chunks().dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    labels = sorted(text for text in distinct if _kind(text) != "missing")
    place = {text: float(k) for k, text in enumerate(labels)}
    places = np.array([place.get(text, math.nan) for text in distinct])
    return places[coded.indices.to_numpy()], tuple(labels)


def _trimmed(cells):
    from pyarrow import compute

    return compute.call_function("utf8_trim_whitespace", [cells])


def _read_numpy(path: Path, member: str | None, text: Collection[str]) -> Table:
    """Read an npy file, or one array of an npz."""
    with open(path, "rb") as file:
        with _library_errors(path):
            array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            name = _member(path, array.files, member)
            with _library_errors(path):
                array = array[name]
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds values of type {array.dtype}; expected real numbers")
    if array.ndim not in (1, 2):
        raise ValueError(
            f"{path} holds an array of shape {array.shape}; expected (rows, columns) or (rows,), "
            "so reshape it"
        )
    values = array[:, None] if array.ndim == 1 else array
    return Table(_default_names(values.shape[1]), values.astype(np.float64))


def _member(path: Path, names: list[str], member: str | None) -> str:
    """The array to take from an npz: the one asked for, or the only one."""
    if member is None and len(names) == 1:
        return names[0]
    if member in names:
        return member
    if not names:
        raise ValueError(f"{path} holds no arrays")
    asked = f"no array '{member}' but" if member else f"{len(names)} arrays:"
    raise ValueError(f"{path} holds {asked} {_quoted(names)}; choose one, as {path}:{names[0]}")


def _default_names(columns: int) -> tuple[str, ...]:
    return tuple(f"x{k}" for k in range(columns))


def _locate(path: Path) -> tuple[Path, str | None]:
    """Split `data.npz:name` into file and array, and make sure that the file is there."""
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
    return path, member


def _check(path: Path, table: Table) -> None:
    rows, columns = table.values.shape
    if not columns:
        raise ValueError(f"{path} has no columns; expected at least one")
    if rows < 2:
        count = _count(table.values, "row")
        raise ValueError(f"{path} has {count} of data; expected at least two")
    bad = np.argwhere(~np.isfinite(table.values))
    if len(bad):
        row, column = bad[0]
        what = "is infinite" if np.isinf(table.values[row, column]) else "is NaN or missing"
        name = table.columns[column]
        repair = _repair(name in table.labels)
        raise ValueError(f"{path}, row {row + 1}: column '{name}' {what}; {repair}")


def _check_unique(path: Path, names: Sequence[str]) -> None:
    twice = [name for k, name in enumerate(names) if name in names[:k]]
    if twice:
        raise ValueError(f"{path} has more than one column named {_quoted(twice)}; rename them")


def _check_there(names: Iterable[str], columns: Sequence[str]) -> None:
    for name in names:
        if name not in columns:
            raise ValueError(
                f"there is no column '{name}'{suggest(name, columns)}; the table has "
                f"{_quoted(columns)}"
            )


def _check_text(
    path: Path, names: Sequence[str], text: Collection[str], columns: Sequence[str]
) -> None:
    if names:
        _check_there(text, columns)  # a misspelt name leaves its column unread
        raise ValueError(
            f"{path} has columns that are not numbers: {_quoted(names)}; remove them, or encode "
            "them (one column of 0 and 1 for each category); one of text can be told with "
            "--condition"
        )


def _rows(x: mx.array | np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """`x` as float64, checked to be rows of `columns`."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] != len(columns):
        raise ValueError(
            f"the rows have shape {x.shape}; expected (n, {len(columns)}), the columns "
            f"{_quoted(columns)}"
        )
    return x


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn what numpy and Arrow raise for a bad file into one line."""
    try:
        yield
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    if isinstance(error, OSError) and error.strerror:
        return ValueError(f"{path} cannot be read: {error.strerror}")
    reason = " ".join(str(error).split())
    if "pickle" in reason:
        reason = "it holds Python objects, or is another kind of file"
    return ValueError(
        f"{path} cannot be read as {path.suffix}: {reason}; check that the file is complete and "
        "has the right extension"
    )


def _by_extension(path: Path, table: dict, verb: str):
    try:
        return table[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"{path} cannot be {verb}: the extension is '{path.suffix}'; known are "
            f"{', '.join(table)}"
        ) from None


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def _quoted(names: Iterable[str]) -> str:
    """'a', 'b' and so on, cut after ten."""
    names = [f"'{name}'" for name in names]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


# Writing: each writer is a context manager (file, names) -> function that appends rows


@contextmanager
def _csv_writer(file: IO[bytes], columns: tuple[str, ...]):
    from pyarrow import csv as arrow

    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(columns)
    file.write(header.getvalue().encode())
    options = arrow.WriteOptions(include_header=False)
    with arrow.CSVWriter(file, _schema(columns), write_options=options) as out:
        yield lambda rows: out.write_batch(_record_batch(rows, columns))


@contextmanager
def _parquet_writer(file: IO[bytes], columns: tuple[str, ...]):
    from pyarrow import parquet

    with parquet.ParquetWriter(file, _schema(columns)) as out:
        yield lambda rows: out.write_batch(_record_batch(rows, columns))


def _schema(columns: tuple[str, ...]):
    import pyarrow as pa

    return pa.schema([(name, pa.float64()) for name in columns])


def _record_batch(rows: np.ndarray, columns: tuple[str, ...]):
    import pyarrow as pa

    arrays = [pa.array(np.ascontiguousarray(column)) for column in rows.T]
    return pa.record_batch(arrays, schema=_schema(columns))


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


READERS: dict[str, Callable[[Path, str | None, Collection[str]], Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".npy": _read_numpy,
    ".npz": _read_numpy,
}

WRITERS: dict[str, Callable[[IO[bytes], tuple[str, ...]], AbstractContextManager[Callable]]] = {
    ".csv": _csv_writer,
    ".parquet": _parquet_writer,
    ".npy": _npy_writer,
}

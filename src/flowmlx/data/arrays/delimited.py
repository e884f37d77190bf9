"""Read text files of rows: .csv, .tsv, .txt, and these gzipped.

Arrow cuts rows into cells of text. What the cells mean is decided on all of them together; where
one means nothing, its line is looked up and reported.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from flowmlx.data.arrays.columns import places
from flowmlx.data.arrays.layout import Layout, find_layout, rows
from flowmlx.data.arrays.names import Wanted, check_text, is_nameless, kept, unread
from flowmlx.data.arrays.numerals import (
    BLANKS,
    FALSE_AND_TRUE,
    GROUPED,
    MISSING,
    NUMBERS,
    UNCLEAR,
    advice,
    decimal_mark,
    decimal_mark_of,
    floats,
    matches,
    numbers,
    tidied,
    tidy,
)
from flowmlx.data.arrays.sources import check_columns, check_shape, damaged
from flowmlx.data.arrays.table import Table
from flowmlx.data.arrays.text import read_text
from flowmlx.data.arrays.words import count, repair, say, shown

# A column of Arrow, of text in chunks.
Cells = Any

# Bytes that Arrow parses at a time.
_BLOCK = 1 << 20


class _Source(NamedTuple):
    """A file and the columns of cells that are read, by name."""

    path: Path
    layout: Layout
    columns: Mapping[str, Cells]


def read_delimited(path: Path, member: str | None, wanted: Wanted) -> Table:
    """Read numbers, and texts where they may be. Raises ValueError as `read` does."""
    layout = find_layout(path, read_text(path))
    check_columns(path, len(layout.columns))
    _check_quotes(path, layout)
    columns = _plain(path, layout, wanted) or _cells(path, layout)
    source = _Source(path, layout, _named(path, layout, columns, wanted))
    names = list(source.columns)
    size = len(source.columns[names[0]]) if names else 0
    check_shape(path, size, len(names), wanted.rows)
    place = {name: k for k, name in enumerate(names)}
    asked = [name for name in names if name in wanted.text]
    of_text = [name for name in asked if not _numeric(source.columns[name])]
    numeric = [name for name in names if name not in of_text]
    values, labels = np.empty((size, len(names))), {}
    if numeric:
        values[:, [place[name] for name in numeric]] = _floats(source, numeric)
    for name in of_text:
        values[:, place[name]], labels[name] = places(source.columns[name])
    if not np.isfinite(values).all():
        _refuse(source, values, wanted, of_text)
    return Table(tuple(names), values, labels)


def _plain(path: Path, layout: Layout, wanted: Wanted) -> list[Cells] | None:
    """Columns as float64 where there is nothing to decide about them, else None.

    This is the way of most files, in half of the memory. Columns without a name stay text, as they
    may be empty, and so do those that are left out.
    """
    import pyarrow as pa
    from pyarrow import compute

    rows = islice(_data_rows(path, layout), 100)
    mark = decimal_mark_of(cell for _, cells in rows for cell in cells)
    if mark is None and layout.separator == ",":
        mark = "."  # beside commas nobody writes points between thousands
    if mark is None or not set(wanted.text).isdisjoint(layout.columns):
        return None
    nameless = _nameless(layout.columns, wanted)
    unparsed = {*unread(layout.columns, wanted), *nameless}
    types = [pa.string() if k in unparsed else pa.float64() for k in range(len(layout.columns))]
    try:
        columns = _parse(layout, types, mark, _BLOCK)
    except pa.ArrowInvalid:
        return None
    if not all(_blank(columns[k]) for k in nameless):
        return None
    finite = (compute.call_function("is_finite", [c]) for c in columns if c.type == pa.float64())
    # A missing value is null here, which counts as not finite.
    return columns if all(is_finite.to_numpy().all() for is_finite in finite) else None


def _cells(path: Path, layout: Layout) -> list[Cells]:
    """All columns as text. Raises ValueError for a row of another number of cells."""
    import pyarrow as pa

    types = [pa.string()] * len(layout.columns)
    for block in (_BLOCK, len(layout.lines) + 1):  # a row has to fit into a block
        try:
            return _parse(layout, types, ".", block)
        except pa.ArrowInvalid:
            _check_widths(path, layout)
    raise damaged(path)


def _parse(layout: Layout, types: list, mark: str, block: int) -> list[Cells]:
    """Columns of the given Arrow types, by `block` bytes at a time. Raises ArrowInvalid."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    names = [str(k) for k in range(len(types))]
    return arrow.read_csv(
        pa.BufferReader(layout.lines),
        arrow.ReadOptions(
            column_names=names, skip_rows=layout.skip, block_size=min(block, 2**31 - 1)
        ),
        arrow.ParseOptions(delimiter=layout.separator, newlines_in_values=b'"' in layout.lines),
        arrow.ConvertOptions(column_types=dict(zip(names, types, strict=True)), decimal_point=mark),
    ).columns


def _check_quotes(path: Path, layout: Layout) -> None:
    """Refuse "1"5, which readers of csv take for 15. Raises ValueError."""
    other = rb'[^\s"' + re.escape(layout.separator).encode() + b"]"
    if found := re.search(other + b'"' + other, layout.lines):
        line = layout.lines.count(b"\n", 0, found.start()) + 1
        raise ValueError(
            f"{path}, line {line} has a quote in the midst of a cell; double it, or leave it out"
        )


def _data_rows(path: Path, layout: Layout):
    for line, cells in rows(path, layout.lines, layout.separator):
        if line > layout.skip:
            yield line, cells


def _check_widths(path: Path, layout: Layout) -> None:
    """Raise ValueError for the first row that has not a cell for each column."""
    for number, (line, cells) in enumerate(_data_rows(path, layout), 1):
        if len(cells) != len(layout.columns):
            what = "complete the line"
            if len(layout.columns) == 1:
                what = f"name every column, remove line {layout.header} if it is a title"
            what += ", or quote a cell that contains the separator"
            if layout.separator == ",":
                what += ", as a decimal comma is"
            raise ValueError(
                f"{path}, line {line} (row {number}) has {count(cells, 'cell')} for "
                f"{count(layout.columns, 'column')}; {what}"
            )


def _named(path: Path, layout: Layout, columns: list[Cells], wanted: Wanted) -> dict[str, Cells]:
    """The columns by name, without those that are left out and those without name and content."""
    names = layout.columns
    nameless = _nameless(names, wanted)
    empty = [k for k in nameless if _blank(columns[k])]
    for k in nameless:
        if not names[k] and k not in empty:
            raise ValueError(
                f"{path}, line {layout.header}: column {k + 1} has no name; name it, or remove it"
            )
    return {names[k]: columns[k] for k in kept(path, names, wanted, empty)}


def _nameless(names: Sequence[str], wanted: Wanted) -> list[int]:
    """Places of the columns that are left out where they are empty."""
    if wanted.needed is not None:
        return []
    left_out = set(unread(names, wanted))
    return [k for k, name in enumerate(names) if is_nameless(name) and k not in left_out]


def _blank(cells: Cells) -> bool:
    return bool(matches(cells, f"[{BLANKS}]*").all())


def _numeric(cells: Cells) -> bool:
    """Whether all cells are numbers, in any notation."""
    either = "|".join((*NUMBERS.values(), *(f"(?i:{word})" for word in FALSE_AND_TRUE)))
    return bool(matches(tidied(cells), either).all())


def _joined(source: _Source, names: Sequence[str]) -> Cells:
    """Columns below each other: one call then serves thousands of them."""
    import pyarrow as pa

    chunks = [chunk for name in names for chunk in source.columns[name].chunks]
    return pa.chunked_array(chunks, pa.string())


def _floats(source: _Source, names: Sequence[str]) -> np.ndarray:
    """Columns as float64 (rows, columns), with what is no number as NaN or infinite."""
    import pyarrow as pa

    if source.columns[names[0]].type == pa.float64():
        return np.stack([source.columns[name].to_numpy() for name in names], 1)
    cells = tidied(_joined(source, names))
    good = numbers(cells)
    mark = decimal_mark(good)
    if mark is None:
        mark = "."
        _check_unclear(source, names, cells)
    values = floats(cells, good[mark], mark)
    _say_grouped(source, names, cells, values, mark)
    if not good[mark].all():
        values = _with_booleans(cells, values, len(names))
    return values.reshape(len(names), -1).T


def _with_booleans(cells: Cells, values: np.ndarray, columns: int) -> np.ndarray:
    """`values` with 0 and 1 for false and true, in columns of nothing else."""
    grid = values.reshape(columns, -1)
    alike = (np.isnan(grid) | np.isin(grid, (0, 1))).all(1, keepdims=True)
    for value, word in enumerate(FALSE_AND_TRUE):
        grid[alike & matches(cells, f"(?i:{word})").reshape(columns, -1)] = value
    return grid.ravel()


def _check_unclear(source: _Source, names: Sequence[str], cells: Cells) -> None:
    """Where no number says what points and commas mean, refuse a comma, and say what a point is."""
    if found := _first(names, matches(cells, UNCLEAR[","])):
        raise ValueError(
            f"{_where(source, *found)} holds '{shown(_cell(source, *found))}', whose comma may be "
            "a decimal one or stand between thousands, and no other number of the file says which; "
            "write decimals with a point, and nothing between thousands"
        )
    found = _first(names, matches(cells, UNCLEAR["."]))
    if found and source.layout.separator != ",":
        cell = shown(_cell(source, *found))
        say(source.path, f"numbers such as '{cell}' are read as decimals, not as thousands")


def _say_grouped(
    source: _Source, names: Sequence[str], cells: Cells, values: np.ndarray, mark: str
) -> None:
    if found := _first(names, matches(cells, GROUPED[mark])):
        name, row = found
        value = values.reshape(len(names), -1)[names.index(name), row]
        say(
            source.path,
            f"numbers such as '{shown(_cell(source, *found))}' are read with marks between "
            f"thousands, so that this is {value:.15g}",
        )


def _first(names: Sequence[str], marked: np.ndarray) -> tuple[str, int] | None:
    """Column and row of the first cell in reading order that is marked, of columns joined."""
    if not marked.any():
        return None
    grid = marked.reshape(len(names), -1)
    row = int(grid.any(0).argmax())
    return names[int(grid[:, row].argmax())], row


def _cell(source: _Source, name: str, row: int) -> str:
    return source.columns[name][row].as_py()


def _where(source: _Source, name: str, row: int) -> str:
    """File, line and row of a cell, with its column."""
    place = source.layout.columns.index(name)
    where = f"row {row + 1}"  # enough where Arrow and Python make different rows of odd quotes
    for number, (line, cells) in enumerate(_data_rows(source.path, source.layout)):
        if number == row and cells[place] == _cell(source, name, row):
            where = f"line {line} (row {row + 1})"
            break
    return f"{source.path}, {where}: column '{shown(name)}'"


def _refuse(
    source: _Source, values: np.ndarray, wanted: Wanted, of_text: Collection[str]
) -> NoReturn:
    """Raise ValueError for columns of text, else for the first cell that is no finite number.

    `of_text`: the columns that are read as text.
    """
    finite, names = np.isfinite(values), list(source.columns)
    numberless = [k for k in np.flatnonzero(~finite.any(0)).tolist() if names[k] not in of_text]
    if unread := _texts(source, [names[k] for k in numberless]):
        name = min(unread, key=lambda name: unread[name])
        where = _where(source, name, unread[name]).removeprefix(f"{source.path}, ")
        example = f" ({where} holds '{shown(_cell(source, name, unread[name]))}')"
        check_text(source.path, list(unread), wanted, names, example)
    row, place = divmod(int(finite.argmin()), finite.shape[1])
    name = names[place]
    cell = tidy(_cell(source, name, row))
    what = f"holds '{shown(cell)}'" if cell else "has an empty cell"
    known = advice(cell) if np.isnan(values[row, place]) else None
    raise ValueError(f"{_where(source, name, row)} {what}; {known or repair(name in wanted.text)}")


def _texts(source: _Source, names: Sequence[str]) -> dict[str, int]:
    """The first rows with text, but nothing to be written as a number, of columns without one."""
    if not names:
        return {}
    missing = matches(tidied(_joined(source, names)), f"(?i:{'|'.join(MISSING)})")
    found = {}
    for name, text in zip(names, ~missing.reshape(len(names), -1), strict=True):
        row = int(text.argmax())
        if text[row] and advice(tidy(_cell(source, name, row))) is None:
            found[name] = row
    return found

"""Read text files of rows: .csv, .tsv, .txt, and these gzipped.

Arrow cuts rows into cells of text. What the cells mean is decided on all of them together; where
one means nothing, its line is looked up and reported.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from flowmlx.data.arrays.columns import places
from flowmlx.data.arrays.layout import ALONE, Layout, find_layout, rows
from flowmlx.data.arrays.names import check_text, check_unique, index_columns, say_left_out
from flowmlx.data.arrays.numerals import (
    BLANKS,
    FALSE_AND_TRUE,
    GROUPED,
    MISSING,
    NUMBERS,
    UNCLEAR,
    advice,
    decimal_mark,
    floats,
    matches,
    only,
    plain_floats,
    tidied,
    tidy,
)
from flowmlx.data.arrays.sources import check_shape, damaged
from flowmlx.data.arrays.table import Table
from flowmlx.data.arrays.text import read_text
from flowmlx.data.arrays.words import count, repair, say, shown

# A column of Arrow, of text in chunks.
Cells = Any


class _Source(NamedTuple):
    """A file and the columns of cells that are read, by name."""

    path: Path
    layout: Layout
    cells: Mapping[str, Cells]


def read_delimited(path: Path, member: str | None, text: Collection[str]) -> Table:
    """Read numbers, and the texts of columns in `text`. Raises ValueError as `read` does."""
    layout = find_layout(path, read_text(path))
    source = _Source(path, layout, _named(path, layout, _cells(path, layout), text))
    size = len(next(iter(source.cells.values()), ()))
    check_shape(path, size, len(source.cells))
    told = {name for name, cells in source.cells.items() if name in text and not _numeric(cells)}
    columns = _floats(source, {k: v for k, v in source.cells.items() if k not in told})
    labels = {}
    for name in told:
        columns[name], labels[name] = places(source.cells[name])
    values = np.empty((size, len(source.cells)))
    for k, name in enumerate(source.cells):
        values[:, k] = columns.pop(name)
    if not np.isfinite(values).all():
        _refuse(source, values, text, told)
    return Table(tuple(source.cells), values, labels)


def _cells(path: Path, layout: Layout) -> list[Cells]:
    """All columns as text. Raises ValueError for a row of another number of cells."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    names = [str(k) for k in range(len(layout.columns))]
    for block in (1 << 20, len(layout.lines) + 1):  # a row has to fit into a block
        try:
            return arrow.read_csv(
                pa.BufferReader(layout.lines),
                arrow.ReadOptions(
                    column_names=names, skip_rows=layout.skip, block_size=min(block, 2**31 - 1)
                ),
                arrow.ParseOptions(delimiter=layout.separator, newlines_in_values=True),
                arrow.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            ).columns
        except pa.ArrowInvalid:
            _check_widths(path, layout)
    raise damaged(path)


def _data_rows(path: Path, layout: Layout):
    for line, cells in rows(path, layout.lines, layout.separator):
        if line > layout.skip:
            yield line, cells


def _check_widths(path: Path, layout: Layout) -> None:
    """Raise ValueError for the first row that has not a cell for each column."""
    for number, (line, cells) in enumerate(_data_rows(path, layout), 1):
        if len(cells) != len(layout.columns):
            comma = ", as a decimal comma is" if layout.separator == "," else ""
            raise ValueError(
                f"{path}, line {line} (row {number}) has {count(cells, 'cell')} for "
                f"{count(layout.columns, 'column')}; complete the line, or quote a cell that "
                f"contains the separator{comma}"
            )


def _named(
    path: Path, layout: Layout, columns: list[Cells], text: Collection[str]
) -> dict[str, Cells]:
    """The columns by name, without those that count rows and those without name and content."""
    names = layout.columns
    index = index_columns(names, text)
    empty = [
        k
        for k, name in enumerate(names)
        if (not name or name.startswith("Unnamed: ")) and k not in index and _blank(columns[k])
    ]
    say_left_out(path, (names[k] for k in index), "an index of the rows")
    say_left_out(path, (names[k] for k in empty), "empty")
    kept = [k for k in range(len(names)) if k not in (*index, *empty)]
    check_unique(path, [names[k] for k in kept if names[k]])
    for k in kept:
        if not names[k]:
            raise ValueError(
                f"{path}, line {layout.header}: column {k + 1} has no name; name it, or remove it"
            )
    return {names[k]: columns[k] for k in kept}


def _blank(cells: Cells) -> bool:
    return bool(matches(cells, f"[{BLANKS}]*").all())


def _numeric(cells: Cells) -> bool:
    """Whether all cells are numbers, in any notation."""
    either = "|".join((*NUMBERS.values(), *(f"(?i:{word})" for word in FALSE_AND_TRUE)))
    return bool(matches(tidied(cells), either).all())


def _floats(source: _Source, columns: Mapping[str, Cells]) -> dict[str, np.ndarray]:
    """Columns as float64, with what is no number as NaN or infinite."""
    plain = {name: plain_floats(cells) for name, cells in columns.items()}
    done = {name: values for name, values in plain.items() if values is not None}
    if len(done) == len(columns):
        # Beside commas nobody writes points between thousands.
        clear = source.layout.separator == "," or any(only(c, ".").any() for c in columns.values())
        if not clear:
            _check_unclear(source, columns)
        return done
    tidy = {name: tidied(cells) for name, cells in columns.items()}
    mark = decimal_mark(tidy.values())
    if mark is None:
        _check_unclear(source, tidy)
    _say_taken(source, tidy, mark or ".")
    rest = tidy if mark == "," else {k: v for k, v in tidy.items() if k not in done}
    return done | {name: floats(cells, mark or ".") for name, cells in rest.items()}


def _check_unclear(source: _Source, columns: Mapping[str, Cells]) -> None:
    """Where no number says what points and commas mean, refuse a comma, and say what a point is."""
    if found := _first(columns, UNCLEAR[","]):
        raise ValueError(
            f"{_where(source, *found)} holds '{_cell(columns, *found)}', which may be in thousands "
            "or have a decimal comma, and no other number in the file says which; write decimals "
            "with a point and no mark between thousands"
        )
    if source.layout.separator != "," and (found := _first(columns, UNCLEAR["."])):
        cell = _cell(columns, *found)
        say(source.path, f"'{cell}' and the like are taken to have a decimal point, not thousands")


def _say_taken(source: _Source, columns: Mapping[str, Cells], mark: str) -> None:
    if mark == "," and source.layout.separator == ALONE:
        say(source.path, "the commas are taken as decimal commas of a single column")
    if found := _first(columns, GROUPED[mark]):
        name, row = found
        value = floats(columns[name].slice(row, 1), mark)[0]
        say(
            source.path,
            f"'{_cell(columns, *found)}' and the like are taken as with marks between thousands, "
            f"so as {value:.15g}",
        )


def _first(columns: Mapping[str, Cells], pattern: str) -> tuple[str, int] | None:
    """Column and row of the first cell in reading order that matches."""
    found = {name: np.flatnonzero(matches(cells, pattern)) for name, cells in columns.items()}
    first = {name: int(where[0]) for name, where in found.items() if len(where)}
    return min(first.items(), key=lambda item: item[1], default=None)


def _cell(columns: Mapping[str, Cells], name: str, row: int) -> str:
    return shown(columns[name][row].as_py())


def _where(source: _Source, name: str, row: int) -> str:
    """File, line and row of a cell, with its column."""
    place = source.layout.columns.index(name)
    for number, (line, cells) in enumerate(_data_rows(source.path, source.layout)):
        if number == row and cells[place] == source.cells[name][row].as_py():
            return f"{source.path}, line {line} (row {row + 1}): column '{shown(name)}'"
    # Quotes that are not those of csv, of which Arrow and Python make different rows.
    return f"{source.path}, row {row + 1}: column '{shown(name)}'"


def _refuse(
    source: _Source, values: np.ndarray, text: Collection[str], told: Collection[str]
) -> NoReturn:
    """Raise ValueError for columns of text, else for the first cell that is no finite number."""
    finite = np.isfinite(values)
    if unread := _unread(source, finite, told):
        first = min(unread, key=lambda name: unread[name])
        line = _where(source, first, unread[first]).partition(": column")[0]
        line = line.removeprefix(f"{source.path}, ")
        example = f" ({line} holds '{_cell(source.cells, first, unread[first])}')"
        check_text(source.path, list(unread), text, list(source.cells), example)
    row, place = divmod(int(finite.argmin()), finite.shape[1])
    name = list(source.cells)[place]
    cell = tidy(source.cells[name][row].as_py())
    known = advice(cell) if np.isnan(values[row, place]) else None
    what = f"holds '{shown(cell)}'" if cell else "has an empty cell"
    raise ValueError(f"{_where(source, name, row)} {what}; {known or repair(name in text)}")


def _unread(source: _Source, finite: np.ndarray, told: Collection[str]) -> dict[str, int]:
    """Columns that have no number, nor something to be written as one, by their first text."""
    unread = {}
    for k, (name, cells) in enumerate(source.cells.items()):
        if name in told or finite[:, k].any():
            continue
        texts = np.flatnonzero(~matches(tidied(cells), f"(?i:{'|'.join(MISSING)})"))
        if len(texts) and advice(tidy(cells[int(texts[0])].as_py())) is None:
            unread[name] = int(texts[0])
    return unread

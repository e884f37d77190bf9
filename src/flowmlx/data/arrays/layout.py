"""How a text file is laid out: what stands between its cells, and what its columns are called."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from flowmlx.data.arrays.numerals import BLANKS, kind
from flowmlx.data.arrays.text import Text
from flowmlx.data.arrays.words import default_names, quoted, say, shown

# What may stand between cells. SPACE is any blanks in a row; ALONE is for a single column.
SEPARATORS, SPACE, ALONE = ",;\t|", " ", "\x1f"

# Rows and bytes that a choice is made from, and bytes that a line may have.
_ROWS, _BYTES, _LINE = 100, 1 << 20, 1 << 24

_SEP = re.compile(rb'"?sep=([^"\n])[,;\t|"]*[ ]*\n', re.IGNORECASE)


class Layout(NamedTuple):
    """How a text file is laid out.

    `columns`: their names, "" for one without. `header`: the line of the names. `separator`: what
    is between cells. `skip`: how many lines are before the data. `lines`: the text; where blanks
    separate cells, with a single space for them.
    """

    columns: tuple[str, ...]
    header: int
    separator: str
    skip: int
    lines: bytes


def find_layout(path: Path, text: Text) -> Layout:
    """Find the layout from the first lines. Raises ValueError for a file without rows."""
    lines, named = _separator_line(path, text.lines)
    start = _empty_lines(lines)
    head = _head(path, lines, start)
    if not head.strip():
        raise ValueError(f"{path} is empty; expected rows of numbers")
    separator = named or _separator(path, head)
    if separator == SPACE:
        lines, head = _squeezed(lines), _squeezed(head)
    found = rows(path, head, separator)
    line, first = next(found)
    comment = _comment(path, text.whole, start, separator)
    header = start + line
    columns, is_data = _names(path, first, header, comment)
    if not is_data:
        line, row = next(found, (0, []))
        if not line:
            raise ValueError(f"{path} has a header and no rows; expected rows of numbers")
        if _rows_have_names(len(columns), [row, *(cells for _, cells in found)], head):
            columns = ("", *columns)
    return Layout(columns, header, separator, start + line - 1, lines)


def rows(path: Path, lines: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line of the file that it starts on.

    Raises ValueError for a cell that is too long to be one.
    """
    file = io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8", newline="\n")
    reader = csv.reader(file, delimiter=separator)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error:
        raise ValueError(
            f"{path}, line {line}: a cell has more than {csv.field_size_limit():,} characters; "
            "check that its quotes are closed"
        ) from None


def _separator_line(path: Path, lines: bytes) -> tuple[bytes, str | None]:
    """Take out a first line such as sep=; that spreadsheets write; what it says, else None."""
    match = _SEP.match(lines)
    if match is None:
        return lines, None
    separator = match[1].decode("latin-1")
    if separator not in SEPARATORS + SPACE:
        raise ValueError(
            f"{path}, line 1: the separator is '{separator}'; expected a comma, semicolon, tab, "
            "bar or space"
        )
    return b"\n" + lines[match.end() :], separator


def _empty_lines(lines: bytes) -> int:
    """How many lines at the start are empty."""
    first = re.search(rb"[^\n]", lines)
    return first.start() if first else len(lines)


def _head(path: Path, lines: bytes, start: int) -> bytes:
    """The first lines from `start` on."""
    end, number = start, 0
    while number < _ROWS and end < min(len(lines), start + _BYTES):
        at = lines.find(b"\n", end, end + _LINE)
        if at < 0 and len(lines) - end > _LINE:
            raise ValueError(
                f"{path}, line {start + number + 1} has more than {_LINE:,} bytes; expected "
                "a table with a line for each row"
            )
        end, number = at + 1 if at >= 0 else len(lines), number + 1
    return lines[start:end]


def _separator(path: Path, head: bytes) -> str:
    """What stands between the cells of the first lines.

    The best is what cuts most of the rows into as many cells as the first, which are numbers; among
    equals the first of SEPARATORS, and blanks last. Where nothing cuts any row, there is a single
    column, whose name may have blanks.
    """
    scores = {}
    for separator in SEPARATORS + SPACE:
        lines = _squeezed(head) if separator == SPACE else head
        first, *others = _sample(path, lines, separator)
        cut = others or [first] if separator == SPACE else [first, *others]
        if any(len(cells) > 1 for cells in cut):
            scores[separator] = _score(len(first), others)
    return max(scores, key=lambda separator: scores[separator], default=ALONE)


def _sample(path: Path, head: bytes, separator: str) -> list[list[str]]:
    """Rows of the first lines, an empty one where `separator` cannot be theirs."""
    try:
        return [cells for _, cells in islice(rows(path, head, separator), _ROWS)]
    except ValueError:
        return [[]]


def _score(width: int, others: list[list[str]]) -> tuple[float, float]:
    """The share of rows of a width, times the share of numbers in them; and the first alone."""
    if not others:
        return 1.0, 1.0
    # R writes names of rows, and none for their column; that counts half.
    same = [cells for cells in others if len(cells) == width]
    named = [] if same else [cells[1:] for cells in others if len(cells) == width + 1]
    if width == 1 or not (same or named):
        return 0.0, 0.0
    share = len(same or named) / len(others) / (1 if same else 2)
    same = same or named
    numbers = sum(kind(cell) != "text" for cells in same for cell in cells)
    return share * numbers / (width * len(same)), share


def _squeezed(lines: bytes) -> bytes:
    """`lines` with a single space for blanks in a row, and none at the ends, but within quotes."""
    return b"\n".join(b" ".join(_words(line)) for line in lines.split(b"\n"))


def _words(line: bytes) -> list[bytes]:
    return re.findall(rb'(?:"[^"]*"|[^\s"]|")+', line) if b'"' in line else line.split()


def _comment(path: Path, whole: bytes, start: int, separator: str) -> list[str]:
    """Cells of the last comment before the data, which may be their names."""
    before = [line for line in whole.split(b"\n", start)[:start] if line.strip()]
    if not before or not before[-1].lstrip().startswith(b"#"):
        return []
    line = before[-1].lstrip()[1:]
    line = _squeezed(line) if separator == SPACE else line
    return next(rows(path, line, separator), (0, []))[1]


def _names(
    path: Path, first: Sequence[str], line: int, comment: Sequence[str]
) -> tuple[tuple[str, ...], bool]:
    """The names of the columns, and whether the first row is data."""
    kinds = [kind(cell) for cell in first]
    if "number" not in kinds and "text" in kinds:
        return _stripped(first), False
    if len(comment) == len(first) and not any(kind(name) == "number" for name in comment):
        names = _stripped(comment)
        say(path, f"the columns are named by the comment before line {line}: {quoted(names)}")
        return names, True
    if "text" not in kinds:
        names = default_names(len(first))
        say(
            path,
            "the first line has no names, so it is taken as data and the columns are named "
            f"{quoted(names)}; add a line of names if that is wrong",
        )
        return names, True
    number = shown(first[kinds.index("number")])
    say(
        path,
        f"line {line} is taken as names, although '{number}' is a number; add a line of names if "
        "that is wrong",
    )
    return _stripped(first), False


def _rows_have_names(width: int, table: list[list[str]], head: bytes) -> bool:
    """Whether rows of `width` named columns begin with one cell more, as R's write.table does.

    It writes names in quotes, those of rows too, and none for their column; numbers are without.
    """
    if width == 1 or any(len(cells) != width + 1 for cells in table):
        return False
    names, *lines = [line for line in head.split(b"\n") if line]
    first_alone = all(re.fullmatch(rb'"[^"]*"[^"]*', line) for line in lines)
    return names.startswith(b'"') and len(lines) == len(table) and first_alone


def _stripped(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip(BLANKS + "\n") for name in names)

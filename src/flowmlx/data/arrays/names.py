"""Names of columns: what they have to be, and which columns are read."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from flowmlx.data.arrays.table import check_there
from flowmlx.data.arrays.words import quoted, say, twice
from flowmlx.names import suggest

# What pandas calls an index that it has written, or read again.
INDEX = re.compile(r"Unnamed: 0(\.\d+)*|__index_level_\d+__")


class Wanted(NamedTuple):
    """What a caller wants of a table.

    `text`: names of columns that may hold text. `needed`: names of columns that have to be there,
    in order; then these are read, and those of `text` that are there; None reads all columns but
    an index. `rows`: how many rows there have to be at least.
    """

    text: Collection[str] = ()
    needed: tuple[str, ...] | None = None
    rows: int = 2


def unread(names: Sequence[str], wanted: Wanted) -> list[int]:
    """Places of the columns that are not read."""
    if wanted.needed is None:
        return index_columns(names, wanted.text)
    asked = {*wanted.needed, *wanted.text}
    return [k for k, name in enumerate(names) if name not in asked]


def kept(
    what: str | Path, names: Sequence[str], wanted: Wanted, empty: Collection[int] = ()
) -> list[int]:
    """Places of the columns that are read, without the `empty` ones.

    Warns where an index or an empty column is left out. Raises ValueError where a needed column is
    missing, and for two columns of one name.
    """
    left_out = unread(names, wanted)
    if wanted.needed is None:
        _say_left_out(what, names, left_out, "an index of the rows")
        _say_left_out(what, names, empty, "empty")
    else:
        _check_needed(what, wanted.needed, names)
    places = sorted(set(range(len(names))) - set(left_out) - set(empty))
    if double := twice([names[k] for k in places]):
        raise ValueError(f"{what} has more than one column named {quoted(double)}; rename them")
    return places


def index_columns(names: Sequence[str], text: Collection[str]) -> list[int]:
    """Places of the columns that count rows, except for those named in `text`.

    They are what pandas names so, and a first column without a name, as R and spreadsheets have.
    """
    return [
        k
        for k, name in enumerate(names)
        if name not in text and (INDEX.fullmatch(name) or (k == 0 and not name))
    ]


def is_nameless(name: str) -> bool:
    """Whether a column has no name, or one that pandas gave it for want of one."""
    return not name or name.startswith("Unnamed: ")


def check_text(
    what: str | Path,
    unread: Sequence[str],
    wanted: Wanted,
    columns: Sequence[str],
    example: str = "",
) -> None:
    """Raise ValueError for those of `columns` that are `unread`: no numbers, nor wanted as text."""
    if not unread:
        return
    problem = f"{what} has columns that are not numbers: {quoted(unread)}{example}"
    if wanted.needed is not None:
        raise ValueError(f"{problem}; expected numbers, as in the training data")
    check_there(wanted.text, columns)  # a misspelt name leaves its column unread
    raise ValueError(
        f"{problem}; remove them, or encode them (one column of 0 and 1 for each category); one of "
        "text can be the condition (--condition, in Python condition=)"
    )


def _say_left_out(what: str | Path, names: Sequence[str], places: Iterable[int], why: str) -> None:
    if left_out := [names[k] or f"(column {k + 1}, no name)" for k in places]:
        say(what, f"left out, as {why}: {quoted(left_out)}")


def _check_needed(what: str | Path, needed: Sequence[str], names: Sequence[str]) -> None:
    known = set(names)
    if missing := [name for name in needed if name not in known]:
        hint = suggest(missing[0], names) if len(missing) == 1 else ""
        raise ValueError(f"{what} has no column {quoted(missing)}{hint}; it has {quoted(names)}")

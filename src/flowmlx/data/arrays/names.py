"""Names of columns: what they have to be, and which columns are left out for their names."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from flowmlx.data.arrays.table import check_there
from flowmlx.data.arrays.words import quoted, say, twice

# What pandas calls an index that it has written, or read again.
INDEX = re.compile(r"Unnamed: 0(\.\d+)*|__index_level_\d+__")


def index_columns(names: Sequence[str], text: Collection[str]) -> list[int]:
    """Places of the columns that count rows, but of those named in `text`.

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


def say_left_out(path: Path, names: Sequence[str], places: Iterable[int], why: str) -> None:
    """Warn that the columns at `places` are left out, as they are what `why` says."""
    if left_out := [names[k] or f"(column {k + 1}, no name)" for k in places]:
        say(path, f"left out, as {why}: {quoted(left_out)}")


def check_unique(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError for two columns of one name."""
    if double := twice(names):
        raise ValueError(f"{path} has more than one column named {quoted(double)}; rename them")


def check_text(
    path: Path,
    unread: Sequence[str],
    text: Collection[str],
    columns: Sequence[str],
    example: str = "",
) -> None:
    """Raise ValueError for the columns `unread`, which are neither numbers nor among `text`."""
    if unread:
        check_there(text, columns)  # a misspelt name leaves its column unread
        raise ValueError(
            f"{path} has columns that are not numbers: {quoted(unread)}{example}; remove them, or "
            "encode them (one column of 0 and 1 for each category); one of text can be told with "
            "--condition"
        )

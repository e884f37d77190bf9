"""Words of the messages about a file: names, counts and cells in one line."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path


def quoted(names: Iterable[str]) -> str:
    """'a', 'b' and so on, cut after ten."""
    names = [f"'{shown(name)}'" for name in names]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def shown(text: str) -> str:
    """`text` in one line of at most 40 characters, all of which can be seen."""
    seen = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:41])
    return seen if len(text) <= 40 else seen[:37] + "..."


def count(things: Sized | int, noun: str) -> str:
    """'1 row', '2 rows'."""
    number = things if isinstance(things, int) else len(things)
    return f"{number:,} {noun}{'s' * (number != 1)}"


def default_names(columns: int) -> tuple[str, ...]:
    """Names of columns that have none: x0, x1, ..."""
    return tuple(f"x{k}" for k in range(columns))


def repair(text: bool) -> str:
    """What to do about a missing value; `text`: in a column of text."""
    if text:
        return "remove the row or fill in a value (NA, NaN, null and none count as missing)"
    return "remove the row or fill in a finite number"


def twice(names: Sequence[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name, times in Counter(names).items() if times > 1]


def say(what: str | Path, message: str) -> None:
    """Warn of how `what`, a file or an argument, was read, at the line that called this package."""
    warn(f"{what}: {message}")


def warn(message: str) -> None:
    """Warn at the line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith(__package__):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)

"""Names that users type, looked up in tables."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from flowmlx.solvers.arrays import describe

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return `table[name]`; an unknown name raises ValueError with the known ones."""
    if not isinstance(name, str):
        raise TypeError(f"{kind} is {describe(name)}; expected a name: {', '.join(table)}")
    if name not in table:
        raise ValueError(
            f"unknown {kind} {name!r}{suggest(name, table)}; known: {', '.join(table)}"
        )
    return table[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where `name` is close to a known one, else ''."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

"""How numbers are written in text: with a decimal point or comma, with marks between thousands.

A file writes its numbers in one way. Which it is follows from the cells that are a number in one
way only: 1.5 and 1,234.5 have a decimal point, 1,5 and 1.234.567 a decimal comma. Where there are
none, 1,234 may be either, and is refused.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

# What may stand around a number, and beside the other decimal mark between its thousands.
BLANKS = " \t\u00a0\u2007\u2009\u202f\ufeff"
SPACES = " \u00a0\u2007\u2009\u202f'’"

MISSING = ("", "na", "n/a", "#n/a", "null", "none", "nan", "inf", "infinity")
FALSE_AND_TRUE = ("false", "true")
UNITS = "%‰$€£¥°"


def _grouped(decimal: str, group: str) -> str:
    """Numbers with one mark between each three digits."""
    marks = "|".join(f"[1-9][0-9]{{0,2}}(?:[{mark}][0-9]{{3}})+" for mark in group + SPACES)
    return f"[+-]?(?:{marks})(?:[{decimal}][0-9]+)?"


def _plain(digits: str) -> str:
    return f"[+-]?(?:{digits})(?:[eE][+-]?[0-9]+)?"


# Numbers by their decimal mark. Python and RE2, which Arrow has, read these expressions alike.
GROUPED = {".": _grouped(".", ","), ",": _grouped(",", ".")}
PLAIN = {".": _plain(r"[0-9]+\.?[0-9]*|\.[0-9]+"), ",": _plain("[0-9]+|[0-9]*,[0-9]+")}
NUMBERS = {mark: f"{PLAIN[mark]}|{GROUPED[mark]}" for mark in GROUPED}
# What is a number in both ways, of different values, by the mark in it.
UNCLEAR = {mark: f"[+-]?[1-9][0-9]{{0,2}}[{mark}][0-9]{{3}}" for mark in NUMBERS}
_NUMBER = re.compile("|".join(NUMBERS.values()))


def kind(cell: str) -> str:
    """Classify a cell as "number", "missing" (nothing, NaN or infinite) or "text"."""
    word = tidy(cell).lower()
    if _NUMBER.fullmatch(word) or word in FALSE_AND_TRUE:
        return "number"
    return "missing" if word.lstrip("+-") in MISSING else "text"


def tidy(cell: str) -> str:
    """A cell without blanks and quotes around it, and with the minus sign of a keyboard."""
    cell = cell.strip(BLANKS)
    if len(cell) > 1 and cell[0] == cell[-1] and cell[0] in "'\"":
        cell = cell[1:-1].strip(BLANKS)
    return cell.replace("\u2212", "-")


def advice(cell: str) -> str | None:
    """What to write in place of a tidy cell that is a number to people only; else None."""
    if _NUMBER.fullmatch(cell):
        return "write all numbers of the file in one way, such as 1234.5"
    if cell.lower() in FALSE_AND_TRUE:
        return "write 1 and 0 for true and false beside other numbers"
    if any(c.isdigit() and not c.isascii() for c in cell):
        return "write it with the digits 0 to 9"
    if _NUMBER.fullmatch(re.sub(f"[,{SPACES}]", "", cell)):
        return "write it without marks between thousands"
    number = cell.strip(UNITS + BLANKS)
    if number != cell and _NUMBER.fullmatch(number):
        return "write the number alone"
    return None


# The same for columns of text of Arrow


def tidied(cells):
    """`tidy` for all cells of an Arrow column."""
    cells = _replaced(trimmed(cells), "^'(.*)'$|^\"(.*)\"$", r"\1\2")
    return _replaced(trimmed(cells), "\u2212", "-")


def trimmed(cells):
    """An Arrow column of text without blanks around the cells."""
    from pyarrow import compute

    return compute.call_function("utf8_trim", [cells], compute.TrimOptions(BLANKS))


def _replaced(cells, pattern: str, by: str):
    from pyarrow import compute

    options = compute.ReplaceSubstringOptions(pattern, by)
    return compute.call_function("replace_substring_regex", [cells], options)


def matches(cells, pattern: str) -> np.ndarray:
    """Which cells of an Arrow column of text are a whole match of `pattern`."""
    from pyarrow import compute

    options = compute.MatchSubstringOptions(f"^(?:{pattern})$")
    return compute.call_function("match_substring_regex", [cells], options).to_numpy()


def numbers(cells) -> dict[str, np.ndarray]:
    """Which cells of a tidied column are numbers, by the decimal mark."""
    return {mark: matches(cells, pattern) for mark, pattern in NUMBERS.items()}


def decimal_mark(good: Mapping[str, np.ndarray]) -> str | None:
    """The decimal mark of most cells that are numbers with one mark only, None where none are.

    `good`: as `numbers` gives it.
    """
    only = {mark: int((good[mark] & ~good[_other(mark)]).sum()) for mark in good}
    return max(only, key=lambda mark: only[mark]) if any(only.values()) else None


def decimal_mark_of(cells: Iterable[str]) -> str | None:
    """The decimal mark of cells that are numbers with one mark only, None where they disagree."""
    found = {tuple(m for m in NUMBERS if re.fullmatch(NUMBERS[m], tidy(cell))) for cell in cells}
    only = [marks[0] for marks in found if len(marks) == 1]
    return only[0] if len(only) == 1 else None


def floats(cells, good: np.ndarray, mark: str) -> np.ndarray:
    """A tidied column as float64, with NaN where it is not `good`."""
    import pyarrow as pa
    from pyarrow import compute

    digits = _replaced(cells, f"[{SPACES}{_other(mark)}]", "")
    digits = _replaced(digits, ",", ".")
    known = pa.chunked_array([pa.array(good)])
    digits = compute.call_function("if_else", [known, digits, pa.scalar("nan")])
    return digits.cast(pa.float64()).to_numpy().copy()


def _other(mark: str) -> str:
    return ".,".replace(mark, "")

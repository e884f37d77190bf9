"""How numbers are written in text: with a decimal point or comma, with marks between thousands.

A file writes its numbers in one way. Which it is follows from the cells that are a number in one
way only: 1.5 and 1,234.5 have a decimal point, 1,5 and 1.234.567 a decimal comma. Where there are
none, 1,234 may be either, and is refused.
"""

import re

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
        return "write all decimals of the file with a point"
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


def plain_floats(cells) -> np.ndarray | None:
    """A column as float64, None where a cell is not a number with at most a decimal point."""
    import pyarrow as pa

    for cut in (lambda cells: cells, trimmed):
        try:
            return cut(cells).cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            continue
    return None


def floats(cells, mark: str) -> np.ndarray:
    """A tidied column as float64, with NaN for what is no number with the decimal `mark`."""
    import pyarrow as pa
    from pyarrow import compute

    digits = _replaced(cells, f"[{SPACES}{_other(mark)}]", "")
    digits = _replaced(digits, ",", ".")
    known = pa.chunked_array([pa.array(matches(cells, NUMBERS[mark]))])
    digits = compute.call_function("if_else", [known, digits, pa.scalar("nan")])
    return digits.cast(pa.float64()).to_numpy().copy()


def only(cells, mark: str) -> np.ndarray:
    """Which cells of a tidied column are numbers with the decimal `mark` and not with the other."""
    return matches(cells, NUMBERS[mark]) & ~matches(cells, NUMBERS[_other(mark)])


def _other(mark: str) -> str:
    return ".,".replace(mark, "")


def decimal_mark(cells) -> str | None:
    """The decimal mark that most cells of a tidied column have, None where no cell says which."""
    seen = {mark: int(only(cells, mark).sum()) for mark in NUMBERS}
    return max(seen, key=lambda mark: seen[mark]) if any(seen.values()) else None

"""Text files as lines of UTF-8: unpacked, decoded, without comments; each line keeps its number."""

import codecs
import gzip
import re
from pathlib import Path
from typing import NamedTuple

from flowmlx.data.arrays.sources import (
    check_beginning,
    check_memory,
    check_unpacked,
    library_errors,
)
from flowmlx.data.arrays.words import say

_BLOCK = 1 << 20

# Comments, but not the errors that spreadsheets write into cells; and lines of blanks.
_COMMENT = re.compile(
    rb"\n(?:[ \t]*#(?!N/A|NULL!|DIV/0!|VALUE!|REF!|NAME\?|NUM!)[^\n]*|[ \t]+(?=\n|\Z))"
)

# Longer ones first, as one begins with another.
_MARKED = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class Text(NamedTuple):
    """Bytes of UTF-8, lines ending in \\n: all, and with comments and lines of blanks empty."""

    whole: bytes
    lines: bytes


def read_text(path: Path) -> Text:
    """Read a text file, gzipped where its name ends in .gz.

    Raises ValueError for what is not text, and what does not fit into memory.
    """
    raw = _unpacked(path) if path.suffix.lower() == ".gz" else _stored(path)
    whole = _decoded(path, raw)
    if b"\r" in whole:
        whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return Text(whole, _without_comments(whole))


def _stored(path: Path) -> bytes:
    check_memory(path, path.stat().st_size)
    with open(path, "rb") as file:
        beginning = file.read(_BLOCK)
        check_beginning(path, beginning)
        _check_text(path, beginning)
        file.seek(0)
        return file.read()


def _unpacked(path: Path) -> bytes:
    parts, size = [], 0
    with open(path, "rb") as file:
        check_beginning(path, file.read(16), b"\x1f\x8b")
    with gzip.open(path) as file:
        while True:
            with library_errors(path):
                part = file.read(_BLOCK)
            if not part:
                return b"".join(parts)
            if not parts:
                _check_text(path, part)
            parts.append(part)
            size += len(part)
            check_unpacked(path, size)


def _check_text(path: Path, beginning: bytes) -> None:
    if b"\0" in beginning and _encoding(beginning) == "utf-8":
        raise _not_text(path)


def _not_text(path: Path) -> ValueError:
    return ValueError(
        f"{path} is not text, as it holds bytes that are 0; check that it has the right "
        "extension, or save the table as .csv in UTF-8"
    )


def _encoding(raw: bytes) -> str:
    """The encoding that the first bytes say, utf-8 where they say none."""
    for mark, name in _MARKED.items():
        if raw.startswith(mark):
            return name
    if len(raw) > 1 and 0 in raw[:2] and any(raw[:2]):  # UTF-16 without a mark
        return "utf-16-le" if raw[0] else "utf-16-be"
    return "utf-8"


def _decoded(path: Path, raw: bytes) -> bytes:
    """The text as UTF-8, without a byte order mark."""
    encoding = _encoding(raw)
    try:
        if encoding == "utf-8":
            _check_utf8(raw)
            text = raw.removeprefix(codecs.BOM_UTF8)
        else:
            text = raw.decode(encoding).removeprefix("\ufeff").encode()
    except UnicodeError:
        text = _western(path, raw) if encoding == "utf-8" else None
    if text is None:
        raise ValueError(f"{path} is not text in UTF-8, UTF-16 or Windows-1252; save it in UTF-8")
    if b"\0" in text:
        raise _not_text(path)
    return text


def _check_utf8(raw: bytes) -> None:
    """Raise UnicodeError for what is not UTF-8, in memory that does not grow with it."""
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(raw)
    for start in range(0, len(raw), _BLOCK):
        decoder.decode(view[start : start + _BLOCK])
    decoder.decode(b"", final=True)


def _western(path: Path, raw: bytes) -> bytes | None:
    """Text of old programs of Windows as UTF-8, None for what is none."""
    try:
        text = raw.decode("cp1252").encode()
    except UnicodeError:
        return None
    say(path, "not UTF-8, so read as Windows-1252 (Latin-1); save it in UTF-8 if names look wrong")
    return text


def _without_comments(whole: bytes) -> bytes:
    """`whole` with comments and lines of blanks empty, but for those within quotes."""
    first = whole[: whole.find(b"\n") + 1] or whole
    if not (_COMMENT.search(whole) or _COMMENT.search(b"\n" + first)):
        return whole  # large files need no copy
    quotes = at = 0

    def emptied(match: re.Match) -> bytes:
        nonlocal quotes, at
        quotes, at = quotes + match.string.count(b'"', at, match.start()), match.start()
        return match[0] if quotes % 2 else b"\n"

    return _COMMENT.sub(emptied, b"\n" + whole)[1:]

"""Libraries as files: where packages have them, and whether one is whole."""

import os
import struct
from importlib.util import find_spec
from pathlib import Path


def mlx_library() -> Path:
    """libmlx.so of the installed MLX, which need not have been imported. Raises LookupError."""
    return file_of("mlx", "lib*/libmlx.so")


def file_of(package: str, pattern: str) -> Path:
    """A file of an installed package, without importing it. Raises LookupError."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob(pattern):
            return path
    pip_name = package.replace("_", "-")
    raise LookupError(f"{package} has no {pattern}; try `pip install --force-reinstall {pip_name}`")


def whole(path: Path) -> bool:
    """Whether a library of 64 bits, little-endian, has all that its headers promise.

    One that was cut, or whose end is zeros, ends the process that touches what is missing (SIGBUS,
    SIGSEGV). Raises OSError where it cannot be read.
    """
    with path.open("rb") as file:
        size, header = os.fstat(file.fileno()).st_size, file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            return False
        segments, sections = struct.unpack_from("<QQ", header, 32)
        segment_size, segment_count, section_size, section_count = struct.unpack_from(
            "<4H", header, 54
        )
        ends = [segments + segment_size * segment_count, sections + section_size * section_count]
        if segment_size != 56 or max(ends) > size:
            return False
        # The last pages of what was not on the disk when the power went are zeros. Sections are
        # described there; only the first is of kind 0.
        file.seek(sections + section_size)
        described = struct.iter_unpack("<4xI56x", file.read(64 * max(section_count - 1, 0)))
        if section_count and (section_size != 64 or not all(kind for (kind,) in described)):
            return False
        file.seek(segments)
        # Of each segment: kind and flags, offset, two addresses, length in the file, and more.
        table = struct.iter_unpack("<8xQ16xQ16x", file.read(segment_size * segment_count))
        return segment_count > 0 and all(offset + length <= size for offset, length in table)

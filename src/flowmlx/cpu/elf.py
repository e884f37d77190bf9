"""The slots through which a library in this process calls functions of others; whole files.

The loader keeps the address of every function that a library imports in a slot of that library's
global offset table. Writing to a slot redirects the calls of that library alone, on Linux with
glibc; it needs no compiler and no files.
"""

import ctypes
import mmap
import os
import platform
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Dynamic section tags and relocation types: ELF specification and its processor supplements.
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 5, 6, 7, 8, 23
SLOT_TYPES = {"x86_64": {6, 7}, "aarch64": {1025, 1026}}  # GLOB_DAT, JUMP_SLOT
RTLD_DI_LINKMAP = 2


def slots(path: Path) -> dict[str, int]:
    """Addresses of the slots of a library, by the name of the function; opens it if need be.

    Raises OSError where it cannot be opened or the system is another.
    """
    base, tags = _dynamic_section(path)
    found = {}
    for table, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
        relocations = ctypes.string_at(tags.get(table, 0), tags.get(size, 0))
        for offset, info, _ in struct.iter_unpack("<QQq", relocations):
            if info & 0xFFFFFFFF in SLOT_TYPES[platform.machine()]:
                symbol = tags[DT_SYMTAB] + 24 * (info >> 32)
                name = tags[DT_STRTAB] + ctypes.c_uint32.from_address(symbol).value
                found[ctypes.string_at(name).decode()] = base + offset
    return found


def owner(slot: int) -> str:
    """Path of the library that the function in a slot belongs to. Raises LookupError for none."""
    function, info = ctypes.c_void_p.from_address(slot), _SymbolInfo()
    if not ctypes.CDLL(None).dladdr(function, ctypes.byref(info)):
        raise LookupError("the function in the slot belongs to no loaded library")
    return os.fsdecode(info.library)


def write(slot: int, function: Any) -> None:
    """Point a slot to another function, which must outlive the library. Raises OSError."""
    # The loader makes the page read-only in a library that was linked with `-z now`.
    page = ctypes.c_void_p(slot & -mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect fails on the library")
    ctypes.c_void_p.from_address(slot).value = ctypes.cast(function, ctypes.c_void_p).value


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


def _dynamic_section(path: Path) -> tuple[int, dict[int, int]]:
    """Load address and dynamic section, tag -> value, of a library; opens it if need be."""
    libc, library, link = ctypes.CDLL(None), ctypes.CDLL(str(path)), ctypes.POINTER(_LinkMap)()
    # Only glibc turns the section's offsets into addresses.
    if platform.machine() not in SLOT_TYPES or not hasattr(libc, "gnu_get_libc_version"):
        raise OSError(f"only done for glibc on {' and '.join(SLOT_TYPES)}")
    if libc.dlinfo(ctypes.c_void_p(library._handle), RTLD_DI_LINKMAP, ctypes.byref(link)):
        raise OSError(f"dlinfo fails on {path}")
    tags, entry = {}, link.contents.dynamic
    while tag := ctypes.c_int64.from_address(entry).value:
        tags[tag] = ctypes.c_uint64.from_address(entry + 8).value
        entry += 16
    return link.contents.base, tags


class _LinkMap(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t))


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )

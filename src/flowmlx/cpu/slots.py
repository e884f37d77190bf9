"""The slots through which a library in this process calls functions of others.

The loader keeps the address of every function that a library imports in a slot of that library's
global offset table. Writing to a slot redirects the calls of that library alone, on Linux with
glibc; it needs no compiler and no files.
"""

import contextlib
import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

# Dynamic section tags and relocation types: ELF specification and its processor supplements.
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 5, 6, 7, 8, 23
SLOT_TYPES = {"x86_64": {6, 7}, "aarch64": {1025, 1026}}  # GLOB_DAT, JUMP_SLOT
RTLD_DI_LINKMAP = 2


@lru_cache
def of(path: Path) -> dict[str, int]:
    """Addresses of the slots of a library, by the name of the function; opens it if need be.

    Raises OSError where it cannot be opened or the system is another.
    """
    base, tags = _dynamic_section(path)
    kinds, found = SLOT_TYPES[platform.machine()], {}
    for table, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
        relocations = ctypes.string_at(tags.get(table, 0), tags.get(size, 0))
        for offset, info, _ in struct.iter_unpack("<QQq", relocations):
            if info & 0xFFFFFFFF in kinds:
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


def write(functions: Mapping[int, Any]) -> None:
    """Point slots to other functions, which must outlive the library. Raises OSError.

    Pages end with the protection that they began with: the loader makes some read-only.
    """
    addresses = {slot: ctypes.cast(f, ctypes.c_void_p).value for slot, f in functions.items()}
    for page, slots in groupby(sorted(addresses), lambda slot: slot & -mmap.PAGESIZE):
        with _writable(page):
            for slot in slots:
                ctypes.c_void_p.from_address(slot).value = addresses[slot]


@contextlib.contextmanager
def _writable(page: int) -> Iterator[None]:
    before = _protection(page)
    if before & mmap.PROT_WRITE:
        yield
        return
    _protect(page, before | mmap.PROT_WRITE)
    try:
        yield
    finally:
        _protect(page, before)


def _protection(page: int) -> int:
    """What may be done with a page of this process, as mprotect(2) takes it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, allowed, *_ = line.split()
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= page < end:
            kinds = {"r": mmap.PROT_READ, "w": mmap.PROT_WRITE, "x": mmap.PROT_EXEC}
            return sum(kinds[letter] for letter in allowed if letter in kinds)
    raise OSError(f"no memory is mapped at {page:#x}")


def _protect(page: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), protection):
        raise OSError(ctypes.get_errno(), "mprotect fails on the library")


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

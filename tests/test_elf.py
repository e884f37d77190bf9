"""Whole libraries are told from parts of them."""

import os
import sys
from pathlib import Path

import pytest

from flowmlx.native import cache, elf

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")


def loaded():
    """The libraries of this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if ".so" in line}
    return [Path(path) for path in sorted(paths) if not path.endswith(" (deleted)")]


def test_all_libraries_that_are_in_use_are_whole():
    assert len(loaded()) > 10
    assert [path for path in loaded() if not elf.whole(path)] == []


@pytest.fixture
def library(tmp_path):
    """A small library to spoil, the user's own."""
    path = tmp_path / "lib.so"
    path.write_bytes(min(loaded(), key=lambda path: path.stat().st_size).read_bytes())
    path.chmod(0o755)
    assert cache.usable(path)
    return path


@pytest.mark.parametrize("share", [0, 1e-9, 0.001, 0.01, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_a_part_is_not_whole(share, library):
    size = library.stat().st_size
    os.truncate(library, min(size - 1, int(size * share) + (share > 0)))
    assert not elf.whole(library)
    assert not cache.usable(library)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_one_whose_end_is_zeros_is_not_whole(share, library):
    content = library.read_bytes()
    kept = max(64, int(len(content) * share))
    library.write_bytes(content[:kept] + bytes(len(content) - kept))
    assert not elf.whole(library)
    assert not cache.usable(library)


def test_segments_may_end_last(library):
    """Sections are for the linker; tools remove them, and what is left may be cut as well."""
    content = bytearray(library.read_bytes())
    content[40:48], content[58:64] = bytes(8), bytes(6)  # where sections are, and how many
    library.write_bytes(content)
    assert elf.whole(library)
    os.truncate(library, len(content) // 3)
    assert not elf.whole(library)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"not a library" * 100, bytes(4096)])
def test_other_content_is_no_library(content, library):
    library.write_bytes(content)
    assert not cache.usable(library)


def test_only_a_file_that_is_the_users_alone_is_usable(library, tmp_path):
    assert not cache.usable(tmp_path / "missing")
    assert not cache.usable(tmp_path)
    (tmp_path / "link").symlink_to(library)
    assert not cache.usable(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert not cache.usable(tmp_path / "pipe")
    for mode in (0o775, 0o757):
        library.chmod(mode)
        assert not cache.usable(library)

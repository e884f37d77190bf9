"""The folder of what is compiled: nobody else's, whatever the machine looks like."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from flowmlx.cpu import jit
from flowmlx.native import cache, loops

DIRECTORY = stat.S_IFDIR
ME = 1000


def state(owner, mode, group=0):
    return os.stat_result((DIRECTORY | mode, 0, 0, 0, owner, group, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("chain", "named"),
    [
        ([(0, 0o755), (0, 0o755), (ME, 0o750), (ME, 0o700)], None),
        ([(0, 0o755), (ME, 0o711)], None),
        ([(0, 0o755), (0, 0o1777), (ME, 0o700)], None),  # as /tmp
        ([(0, 0o755), (ME, 0o1777), (ME, 0o700)], None),
        ([(65534, 0o755), (65534, 0o755), (ME, 0o700)], None),  # root, to a user namespace
        ([(0, 0o755), (0, 0o777), (ME, 0o700)], 1),
        ([(0, 0o755), (ME, 0o775), (ME, 0o755), (ME, 0o700)], 1),
        ([(0, 0o755), (7, 0o755), (ME, 0o700)], 1),
        ([(0, 0o755), (7, 0o1777), (ME, 0o700)], 1),  # its owner may do all in it
        ([(0, 0o777), (ME, 0o700)], 0),
        ([(0, 0o755), (ME, 0o770)], 1),
        ([(0, 0o755), (ME, 0o1777)], 1),  # others can add to it
        ([(0, 0o755), (0, 0o1777), (7, 0o700)], 2),
        ([(0, 0o755), (0, 0o755)], 1),
    ],
)
def test_the_folder_that_lets_others_in_is_named(chain, named):
    chain = [(f"folder{k}", state(*each)) for k, each in enumerate(chain)]
    reason = cache.weakness(chain, ME)
    assert reason == "" if named is None else f"folder{named}" in reason


def test_a_group_of_the_user_alone_may_write():
    """As where a umask of 002 goes with a group for each user."""

    def reason(own_group, mode=0o775, group=ME):
        chain = [("/", state(0, 0o755)), ("/home", state(ME, mode, group))]
        return cache.weakness(chain, ME, own_group)

    assert reason(own_group=ME) == ""
    assert reason(own_group=None) == reason(own_group=7) == "others can write to /home"
    assert reason(own_group=ME, mode=0o777) == "others can write to /home"
    assert reason(own_group=ME, group=100) == "others can write to /home"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has chosen no folder, in an empty home."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache.root.cache_clear()
    yield tmp_path
    cache.root.cache_clear()


def test_the_users_cache_is_taken_in_silence(fresh, caplog):
    before = os.umask(0)
    try:
        folder = cache.folder("loops")
    finally:
        os.umask(before)
    assert folder == fresh / "home" / ".cache" / "flowmlx" / "loops"
    for made in (folder, *folder.parents[:4]):
        if made != fresh:
            assert made.stat().st_mode & 0o777 == 0o700
    assert caplog.text == cache.root().note == ""


def test_a_relative_cache_is_ignored(fresh, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert cache.folder("loops") == fresh / "home" / ".cache" / "flowmlx" / "loops"


def test_links_are_followed_once_for_all(fresh, monkeypatch):
    (fresh / "good").mkdir(mode=0o700)
    (fresh / "link").symlink_to("good")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "link"))
    assert cache.folder("loops") == fresh / "good" / "flowmlx" / "loops"


def no_home(folder, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the uid is unknown
    return "no home"


def file_in_the_way(folder, monkeypatch):
    (folder / "home").write_text("")
    return str(folder / "home")


def open_home(folder, monkeypatch):
    (folder / "home").mkdir()
    (folder / "home").chmod(0o777)
    return str(folder / "home")


def open_to_the_group(folder, monkeypatch):
    monkeypatch.setattr(cache, "_own_group", lambda: None)
    (folder / "home" / ".cache" / "flowmlx").mkdir(parents=True)
    (folder / "home" / ".cache" / "flowmlx").chmod(0o770)
    return str(folder / "home" / ".cache" / "flowmlx")


def link_to_an_open_folder(folder, monkeypatch):
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    (folder / "home").symlink_to("open")
    return str(folder / "open")


def named(name):
    def make(folder, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/{name}")
        return ascii(name)[1:-1]

    return make


BAD_NAMES = ["a$(touch x)", "a`", 'a"', "a'", "a b", "a;", "a\n", "a\\", "a*", "a&", "a\udcff"]


@pytest.mark.parametrize(
    "spoil",
    [
        *(no_home, file_in_the_way, open_home, open_to_the_group, link_to_an_open_folder),
        *(pytest.param(named(name), id=ascii(name)) for name in BAD_NAMES),
    ],
)
def test_where_it_will_not_do_there_is_a_folder_of_this_process(spoil, fresh, monkeypatch, caplog):
    reason = spoil(fresh, monkeypatch)
    folder = cache.folder("loops")
    try:
        assert folder.is_relative_to(Path(tempfile.gettempdir()).resolve())
        assert not folder.is_relative_to(fresh)
        for made in (folder, folder.parent):
            assert made.stat().st_mode & 0o777 == 0o700
        (record,) = caplog.records  # said once, whoever asks
        assert cache.folder("native").parent == folder.parent
        assert len(caplog.records) == 1
        message = record.getMessage()
        assert "\n" not in message
        assert reason in message
        assert "XDG_CACHE_HOME" in message
        assert str(folder.parent) in message
    finally:
        shutil.rmtree(folder.parent)
    assert not any(path.name.startswith("a") for path in fresh.iterdir())


@pytest.mark.parametrize("name", ["a$(touch x)", "a b", "open"])
def test_the_temporary_folder_has_to_be_safe_as_well(name, fresh, monkeypatch):
    (fresh / "home").write_text("in the way")
    (fresh / name).mkdir()
    (fresh / name).chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(fresh / name))
    folder = cache.root().folder
    assert folder.parent == Path("/tmp").resolve()
    shutil.rmtree(folder)
    assert list((fresh / name).iterdir()) == []


def test_without_any_safe_folder_nothing_is_compiled(fresh, monkeypatch, caplog):
    monkeypatch.setattr(cache, "weakness", lambda *_: "others can write to /")
    assert cache.root().folder is cache.folder("loops") is None
    assert loops.unsafe() == (sys.platform == "linux")
    assert "XDG_CACHE_HOME" in caplog.text
    assert not jit.load()


@pytest.mark.parametrize("spoil", ["open", "a file", "full"])
def test_a_part_that_will_not_do_is_named_once(spoil, fresh, monkeypatch, caplog):
    part = cache.root().folder / loops.folder().name
    loops.folder().rmdir()
    cache._part.cache_clear()
    if spoil == "open":
        part.mkdir()
        part.chmod(0o777)
    elif spoil == "a file":
        part.write_text("")
    else:
        full = OSError(28, "No space left on device", str(part))
        monkeypatch.setattr(Path, "mkdir", lambda *arguments, **options: _raise(full))
    assert loops.folder() is loops.folder() is None
    assert loops.unsafe() == (sys.platform == "linux")
    assert not jit.load()
    (record,) = caplog.records
    assert str(part) in record.getMessage()


def _raise(error):
    raise error


IN_A_COPY_TOO = """
import os, sys
from flowmlx.native import cache
child = os.fork()
if child:
    os.wait()
    assert cache.root().folder.is_dir()
    print(cache.root().folder)
"""


@pytest.mark.slow
def test_the_folder_of_the_process_ends_with_it_and_not_with_its_copies(tmp_path):
    (tmp_path / "home").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_COPY_TOO],
        env={**os.environ, "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1  # in one line
    assert not Path(done.stdout.strip()).exists()


def test_what_others_left_half_made_goes_after_a_day(fresh):
    folder = cache.folder("loops")
    kept = folder / "lib.so"
    old, new = folder / "new-1.so", folder / "new-2.so"
    (folder / "new-3").mkdir()
    for path in (kept, old, new, folder / "new-3" / "a.so"):
        path.write_text("")
    yesterday = time.time() - 25 * 3600
    for path in (kept, old, folder / "new-3"):
        os.utime(path, (yesterday, yesterday))
    cache._part.cache_clear()  # as another process, later
    cache.folder("loops")
    assert sorted(folder.iterdir()) == [kept, new]

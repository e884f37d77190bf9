"""C of the package: compiled where it can be, and nothing lost where it cannot."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flowmlx import native
from flowmlx.files import private

pytestmark = pytest.mark.skipif(native.c_compiler() is None, reason="needs a C compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path / "flowmlx" / "native"
    native._library.cache_clear()


def test_a_library_is_compiled_once_into_a_folder_of_the_users_own(cache):
    assert native.library("assignment").transport
    (made,) = cache.iterdir()
    assert made.suffix == ".so"
    assert cache.stat().st_mode & 0o777 == 0o700
    first = made.stat().st_mtime_ns
    native._library.cache_clear()
    assert native.library("assignment").transport
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [first]


def test_threads_that_need_it_at_once_all_get_it(cache):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(native.library("assignment")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [hasattr(library, "transport") for library in found] == [True] * 4
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_a_folder_that_others_can_write_to_is_not_used(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert native.library("assignment") is None
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("what", ["damaged", "open to others"])
def test_what_cannot_be_trusted_is_compiled_again(what, cache, monkeypatch, tmp_path):
    native.library("assignment")
    (made,) = cache.iterdir()
    other = tmp_path / "other"  # a path that was opened before would not be read again
    path = other / "flowmlx" / "native" / made.name
    assert private(path.parent)
    path.write_bytes(b"not a library" if what == "damaged" else made.read_bytes())
    path.chmod(0o600 if what == "damaged" else 0o666)
    before = path.stat().st_ino
    monkeypatch.setenv("XDG_CACHE_HOME", str(other))
    native._library.cache_clear()
    assert native.library("assignment").transport
    assert path.stat().st_mode & 0o777 == 0o600
    assert (path.stat().st_ino, path.read_bytes()) != (before, b"not a library")


@pytest.mark.parametrize(
    "what", ["no compiler", "a failing one", "turned off", "no folder", "an error"]
)
def test_without_a_library_there_is_none_and_nothing_is_left(what, cache, monkeypatch):
    if what == "no compiler":
        monkeypatch.setenv("PATH", str(cache))
    elif what == "a failing one":
        monkeypatch.setattr(native, "c_compiler", lambda: "/bin/false")
    elif what == "turned off":
        monkeypatch.setenv("FLOWMLX_JIT", "0")
    elif what == "an error":
        monkeypatch.setattr(native.jit, "widest", lambda: 1 / 0)
    else:
        cache.parent.parent.mkdir(exist_ok=True)
        cache.parent.write_text("a file in the way")
    assert native.library("assignment") is None
    assert not cache.is_dir() or list(cache.iterdir()) == []


def test_private_folders(tmp_path):
    before = os.umask(0)
    try:
        assert private(tmp_path / "open" / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700
    assert private(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    assert not private(tmp_path / "file" / "c")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library of GCC's")
def test_the_c_code_stays_within_its_memory(tmp_path):
    """Runs assignment.c under AddressSanitizer and the undefined-behaviour sanitizer."""
    source = Path(native.__file__).with_name("assignment.c")
    made = tmp_path / "assignment.so"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    compiler = native.c_compiler()
    done = subprocess.run([compiler, *native.OPTIONS, *sanitizers, "-o", made, source])
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if done.returncode or not os.path.isabs(runtime):
        pytest.skip("the compiler has no sanitizers")
    program = f"""
import ctypes, itertools, math, numpy as np
transport, rng = ctypes.CDLL({str(made)!r}).transport, np.random.default_rng(0)
shapes = [(n, n) for n in (1, 2, 3, 5, 17, 64)]
shapes += [(1, 4), (4, 1), (3, 2), (8, 4), (21, 20), (9, 30)]
for (n, m), _ in itertools.product(shapes, range(20)):
    uniform, ties = rng.uniform(size=(n, m)), rng.integers(0, 3, (n, m)).astype(float)
    for cost in (uniform, ties, np.zeros((n, m)), 1e270 * uniform, 1e308 * (2 * uniform - 1)):
        for v in (np.zeros(m), rng.normal(size=m) * np.abs(cost).max()):
            masses = math.lcm(n, m)
            flows = np.empty((min(n * m, masses) + 1, 4), np.int32)
            arrays = (x.ctypes.data_as(ctypes.c_void_p) for x in (cost, v, flows))
            count = transport(n, m, masses // n, masses // m, *arrays)
            assert (count == -2) == (np.abs(cost).max() > 1e280), count
            if count > 0:
                plan = np.zeros((n, m))
                np.add.at(plan, (flows[:count, 0], flows[:count, 1]), flows[:count, 2])
                assert (plan >= 0).all()
                assert (plan.sum(1) == masses // n).all() and (plan.sum(0) == masses // m).all()
                # Reduced costs are least where mass flows.
                reduced = cost - v
                reduced -= reduced.min(1, keepdims=True)
                assert (reduced[plan > 0] <= 1e-12 * np.abs(cost).max()).all()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "done\n", done.stderr[-2000:]

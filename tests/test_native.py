"""C of the package: compiled where it can be, and nothing lost where it cannot."""

import os
import subprocess
import sys
import threading

import pytest

from flowmlx.native import cache
from flowmlx.native import libraries as native
from flowmlx.transport import assignment

pytestmark = pytest.mark.skipif(native.c_compiler() is None, reason="needs a C compiler")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of an empty cache, for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    start_anew()
    yield tmp_path / "flowmlx" / "native"
    start_anew()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.c"
    path.write_text("int answer(void) { return 42; }")
    return path


def start_anew():
    """Forget what a process finds out once."""
    cache.root.cache_clear()
    native._library.cache_clear()


def test_a_library_is_compiled_once_into_a_folder_of_the_users_own(folder, source):
    assert native.library(source).answer
    (made,) = folder.iterdir()
    assert made.suffix == ".so"
    assert folder.stat().st_mode & 0o777 == 0o700
    first = made.stat().st_mtime_ns
    native._library.cache_clear()
    assert native.library(source).answer
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == [first]


def test_threads_that_need_it_at_once_all_get_it(folder, source):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(native.library(source))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [hasattr(library, "answer") for library in found] == [True] * 4
    assert [path.suffix for path in folder.iterdir()] == [".so"]


@pytest.mark.parametrize("what", ["other content", "cut", "open to others"])
def test_what_cannot_be_trusted_is_compiled_again(what, folder, source, monkeypatch, tmp_path):
    native.library(source)
    (made,) = folder.iterdir()
    whole = made.read_bytes()
    other = tmp_path / "other"  # a path that was opened before would not be read again
    path = other / "flowmlx" / "native" / made.name
    path.parent.mkdir(mode=0o700, parents=True)
    for parent in (other, other / "flowmlx"):
        parent.chmod(0o700)
    path.write_bytes({"other content": b"not a library", "cut": whole[:9000]}.get(what, whole))
    path.chmod(0o666 if what == "open to others" else 0o600)
    before = path.stat().st_ino
    monkeypatch.setenv("XDG_CACHE_HOME", str(other))
    start_anew()
    assert native.library(source).answer
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_ino != before
    assert cache.usable(path)


def test_a_library_that_this_system_cannot_open_is_compiled_again(folder, source, tmp_path):
    """As one of a newer C library is, where systems share a home."""
    other = tmp_path / "other.c"
    other.write_text("int missing(void); int answer(void) { return missing(); }")
    file, *_ = native._recipe(source)
    assert cache.folder("native") == folder
    made = folder / file
    subprocess.run(
        [native.c_compiler(), "-shared", "-fPIC", "-Wl,-z,now", "-o", made, other], check=True
    )
    made.chmod(0o600)
    assert cache.usable(made)
    assert native.library(source).answer
    assert made.read_bytes().find(b"missing") < 0


@pytest.mark.parametrize(
    "what", ["no compiler", "a failing one", "turned off", "no folder", "an error"]
)
def test_without_a_library_there_is_none_and_nothing_is_left(what, folder, source, monkeypatch):
    if what == "no compiler":
        monkeypatch.setenv("PATH", str(folder))
    elif what == "a failing one":
        monkeypatch.setattr(native, "c_compiler", lambda: "/bin/false")
    elif what == "turned off":
        monkeypatch.setenv("FLOWMLX_JIT", "0")
    elif what == "an error":
        monkeypatch.setattr(native.instructions, "widest", lambda: 1 / 0)
    else:
        folder.parent.mkdir(mode=0o700)
        folder.write_text("a file in the way")
    assert native.library(source) is None
    assert not folder.is_dir() or list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library of GCC's")
def test_the_c_code_stays_within_its_memory(tmp_path):
    """Runs assignment.c under AddressSanitizer and the undefined-behaviour sanitizer."""
    source = assignment.SOURCE
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

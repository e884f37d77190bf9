"""Large matrix products in blocks: the right numbers, from several threads, whoever is held up."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.cpu import blocks
from flowmlx.native import libraries as native

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or native.c_compiler() is None, reason="compiled on Linux only"
)

# Rows, columns, and what is summed over: cut by rows, by columns, by both, unevenly, hardly.
SIZES = [(4096, 64, 64), (70, 3001, 96), (256, 256, 1024), (515, 517, 129), (64, 9, 2**14)]
SGEMM = ctypes.CFUNCTYPE(
    None, *[ctypes.c_int] * 6, ctypes.c_float, *[ctypes.c_void_p, ctypes.c_int] * 2,
    ctypes.c_float, ctypes.c_void_p, ctypes.c_int,
)  # fmt: skip


@pytest.fixture
def own(tmp_path):
    """Make a copy of the compiled library that no other test, and not MLX, uses."""

    def make(sgemm, threads):
        _, command, source = native._recipe(blocks.SOURCE)
        path = tmp_path / "own.so"
        subprocess.run([*command, "-o", path, "-"], input=source, check=True)
        library = ctypes.CDLL(str(path))
        ctypes.c_void_p.in_dll(library, "sgemm_of_library").value = ctypes.cast(
            sgemm, ctypes.c_void_p
        ).value
        ctypes.c_int.in_dll(library, "threads").value = threads
        function = SGEMM(("sgemm_in_blocks", library))
        function.library, function.sgemm = library, sgemm  # ctypes frees what nobody holds
        return function

    return make


def matrices(m, n, k, layout):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n)))
    if "a" in layout:
        a = np.ascontiguousarray(a.T).T
    if "b" in layout:
        b = np.ascontiguousarray(b.T).T
    return a, b


@pytest.mark.parametrize("layout", ["", "a", "b", "ab"], ids=["plain", "a.T", "b.T", "a.T, b.T"])
def test_large_products_agree_with_numpy(layout):
    for m, n, k in SIZES:
        a, b = matrices(m, n, k, layout)
        x, y = (mx.array(z.T).T if z.flags.f_contiguous else mx.array(z) for z in (a, b))
        exact, c = a.astype(np.float64) @ b.astype(np.float64), np.arange(n, dtype=np.float32)
        error = np.abs(np.array(mx.matmul(x, y, stream=mx.cpu)) - exact).max()
        assert error < 1e-6 * np.sqrt(k) * np.log2(k)
        found = np.array(mx.addmm(mx.array(c), x, y, alpha=0.5, beta=2.0, stream=mx.cpu))
        np.testing.assert_allclose(found, 0.5 * exact + 2 * c, rtol=1e-5, atol=1e-3)


def test_the_same_product_is_the_same_to_the_last_bit():
    """Whichever thread computes a block."""
    a, b = (mx.array(z) for z in matrices(513, 257, 300, ""))
    first = np.array(mx.matmul(a, b, stream=mx.cpu))
    for _ in range(50):
        np.testing.assert_array_equal(np.array(mx.matmul(a, b, stream=mx.cpu)), first)


@pytest.mark.parametrize(("threads", "count"), [(1, 1), (2, 8), (3, 8), (4, 16)])
def test_blocks_cover_the_product_once_and_several_threads_take_them(own, threads, count):
    m, n, k = 2000, 500, 128
    covered, callers = np.zeros((m, n), int), set()

    def sgemm(order, ta, tb, rows, columns, depth, alpha, a, lda, b, ldb, beta, c, ldc):
        time.sleep(0.01)
        place = (c - out.ctypes.data) // 4
        covered[place // n : place // n + rows, place % n : place % n + columns] += 1
        calls.append((rows, columns, depth, lda, ldb, ldc))
        callers.add(threading.get_native_id())

    out, calls = np.zeros((m, n), np.float32), []
    a, b = matrices(m, n, k, "")
    product = own(SGEMM(sgemm), threads)
    product(
        101, 111, 111, m, n, k, 1.0, a.ctypes.data, k, b.ctypes.data, n, 0.0, out.ctypes.data, n
    )
    assert (covered == 1).all()
    assert len(calls) == count
    assert {call[2:] for call in calls} == {(k, k, n, n)}
    assert 1 < len(callers) <= threads or threads == 1


def test_small_and_narrow_products_are_left_to_the_library(own):
    """Narrow blocks of a long sum would each prepare nearly all of it."""
    calls, sizes = [], [(1, 64, 63), (255, 64, 63), (512, 64, 63), (64, 255, 2**14), (2, 2, 2**20)]
    product = own(SGEMM(lambda *arguments: calls.append(arguments[3:6])), 2)
    for m, n, k in sizes:
        product(101, 111, 111, m, n, k, 1.0, None, k, None, n, 0.0, None, n)
    assert calls == sizes


def test_fewer_threads_may_be_asked_for_later(own):
    callers = []

    def sgemm(*arguments):
        time.sleep(0.005)
        callers.append(threading.get_native_id())

    product = own(SGEMM(sgemm), 4)
    arguments = (101, 111, 111, 4096, 512, 64, 1.0, 0, 64, 0, 512, 0.0, 0, 512)
    for wanted in (4, 2, 1):
        ctypes.c_int.in_dll(product.library, "threads").value = wanted
        callers.clear()
        product(*arguments)
        assert wanted // 2 < len(set(callers)) <= wanted


def test_a_child_process_multiplies_as_well(own, tmp_path):
    """It has no helpers, whatever they were doing, and starts its own."""
    callers = []
    product = own(SGEMM(lambda *arguments: (time.sleep(0.005), callers.append(arguments))), 3)
    arguments = (101, 111, 111, 4096, 512, 64, 1.0, 0, 64, 0, 512, 0.0, 0, 512)
    product(*arguments)
    child = os.fork()
    if child == 0:
        callers.clear()
        product(*arguments)
        os._exit(len(callers))
    end = time.monotonic() + 20
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if found == (0, 0):
        os.kill(child, 9)
    assert os.waitstatus_to_exitcode(found[1]) == len(callers) == 8


def test_a_helper_that_is_held_up_is_not_waited_for(own):
    """One thread that does nothing but its first block leaves the other seven to the caller."""
    held, release, done = [], threading.Event(), []
    caller = threading.get_native_id()

    def sgemm(*arguments):
        if threading.get_native_id() == caller:
            time.sleep(0.01)
        elif not held:
            held.append(arguments)
            release.wait(20)
        done.append(arguments)
        if len(done) == 7:
            release.set()

    product = own(SGEMM(sgemm), 2)
    product(101, 111, 111, 1024, 256, 256, 1.0, 0, 256, 0, 256, 0.0, 0, 256)
    assert held
    assert done[7] == held[0]


def test_two_callers_at_once_both_get_their_product():
    a, b = (mx.array(z) for z in matrices(600, 500, 256, ""))
    expected, found = np.array(a) @ np.array(b), []

    def work():
        stream = mx.new_stream(mx.cpu)
        for _ in range(30):
            found.append(np.array(mx.matmul(a, b, stream=stream)))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 90
    for result in found:
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


def test_processors_of_one_core_count_once(monkeypatch, tmp_path):
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(blocks, "Path", lambda path: tmp_path)
    for allowed, expected in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({0, 1}, 2), ({7, 8}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, given=allowed: given)
        assert blocks.cores() == expected
    assert Path("/sys").exists()

import gc
import platform
import subprocess
import sys
import threading
import time

import pytest

from flowmlx.training.background import in_background


def square(k):
    return lambda: k * k


def workers():
    return {t for t in threading.enumerate() if t.name.startswith("flowmlx-ahead")}


def wait_until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "waited 5 s in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("ahead", [None, 0, 1, 3])
def test_results_come_in_any_order_and_again(ahead):
    result = in_background(square, ahead=ahead)
    numbers = [0, 1, 2, 2, 7, 8, 3, 0, 100]
    assert [result(k) for k in numbers] == [k * k for k in numbers]


def test_work_is_done_before_it_is_asked_for():
    done = {k: threading.Event() for k in range(10)}
    result = in_background(lambda k: done[k].set, ahead=3)
    result(0)
    assert all(done[k].wait(5) for k in range(4))
    time.sleep(0.05)
    assert not done[4].is_set()
    result(1)
    assert done[4].wait(5)


def test_nothing_is_done_twice_in_order():
    prepared = []
    result = in_background(lambda k: (prepared.append(k), square(k))[1], ahead=2)
    for k in (0, 0, 1, 2, 3):
        result(k)
    assert prepared == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("ahead", [0, 2])
def test_the_caller_prepares_and_others_work(ahead):
    caller, prepared = threading.get_ident(), []

    def prepare(k):
        prepared.append(threading.get_ident())
        return threading.get_ident

    result = in_background(prepare, ahead=ahead)
    worked = {result(k) for k in range(5)}
    assert set(prepared) == {caller}
    assert worked == {caller} if ahead == 0 else caller not in worked


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("where", ["prepare", "work"])
def test_errors_come_at_their_own_result(where, ahead):
    def fail(k):
        raise ValueError(f"no result {k}")

    def prepare(k):
        if k == 3 and where == "prepare":
            fail(k)
        return lambda: fail(k) if k == 3 else k

    result = in_background(prepare, ahead=ahead)
    assert [result(k) for k in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="no result 3"):
            result(3)
    assert result(4) == 4


def test_threads_end_with_the_function_they_work_for():
    before = workers()
    result = in_background(square, ahead=3)
    result(0)
    ours = workers() - before
    assert ours
    del result
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in ours))


def test_work_that_is_skipped_is_cancelled():
    prepared, started, go = [], [], threading.Event()

    def prepare(k):
        prepared.append(k)
        return lambda: (started.append(k), go.wait(5))

    result = in_background(prepare, ahead=1)
    waiting = threading.Thread(target=result, args=(0,))
    waiting.start()  # 0 is in hand, 1 waits for the only thread
    wait_until(lambda: started == [0] and 1 in prepared)
    time.sleep(0.05)  # until 1 is handed over as well
    jump = threading.Thread(target=result, args=(50,))
    jump.start()
    wait_until(lambda: 50 in prepared)  # after what it does not want was cancelled
    go.set()
    for thread in (waiting, jump):
        thread.join(5)
    assert 1 not in started


def test_negative_is_refused():
    with pytest.raises(ValueError, match="ahead is -1; expected a number of results, 0 or more"):
        in_background(square, ahead=-1)


@pytest.mark.slow
def test_an_interrupted_program_ends_with_the_work_in_hand():
    code = """
import os, signal, threading, time
from flowmlx.training.background import in_background
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts us may ignore it
result = in_background(lambda k: lambda: time.sleep(1), ahead=2)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
for k in range(100):
    result(k)
"""
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in ended.stderr
    assert time.monotonic() - start < 6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems allocate otherwise")
def test_large_arrays_of_the_work_keep_their_memory():
    code = """
import resource
import numpy as np
from flowmlx.solvers import backend
from flowmlx.training.background import in_background

def work():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    arrays = [np.ones(2**18) for _ in range(4)]  # 2 MB each
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

backend.ready()  # as whoever makes batches does
result = in_background(lambda k: work, ahead=1)
print([result(k) for k in range(6)][-1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 2,048 pages

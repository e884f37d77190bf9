"""Freed memory is kept where that saves time, and given back."""

import os
import subprocess
import sys

import pytest

from flowmlx import memory

pytestmark = pytest.mark.skipif(
    memory._glibc() is None, reason="needs glibc without settings of the environment"
)

# Page faults (per page) of 20 and of 80 MB that come and go; memory held, then and at the end.
PROGRAM = """
import resource
from flowmlx import memory

def faults(megabytes, times=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"1" * (megabytes << 20)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (megabytes * 256 * times)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

faults(20, 1)
small, before = faults(20), resident()
with memory.kept():
    faults(80, 1)
    with memory.kept():
        large = faults(80)
    inner, held = faults(80), resident()
print(small, large, inner, faults(80), held - before, resident() - before)
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return map(float, done.stdout.split())


@pytest.mark.slow
def test_arrays_reuse_memory_and_the_last_block_gives_it_back():
    small, large, inner, outside, held, left = run()
    assert small < 0.1  # of its pages
    assert large < 0.1
    assert inner < 0.1
    assert outside > 0.9
    assert held > 50
    assert left < 10


@pytest.mark.slow
def test_settings_of_the_environment_stay():
    small, large, *_ = run(MALLOC_MMAP_THRESHOLD_="65536")
    assert small > 0.9
    assert large > 0.9


def test_memory_is_given_back_after_an_error():
    with pytest.raises(KeyError), memory.kept():
        raise KeyError
    assert memory._inside == 0

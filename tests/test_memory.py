"""Freed memory is kept where that saves time."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults, per page, of twice 20 MB that come and go.
PROGRAM = """
import resource
{first}

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"1" * (20 << 20), b"2" * (20 << 20)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (40 * 256 * times)

print(faults(2), faults(5))
"""


def second(first, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return float(done.stdout.split()[1])


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others keep what they like")
def test_arrays_reuse_memory_unless_the_user_wants_otherwise():
    used = "from flowmlx import cpu; cpu.accelerate()"
    assert second(used) < 0.1
    assert second("import flowmlx") > 0.4  # as without
    assert second(used, MALLOC_MMAP_THRESHOLD_="65536") > 0.9

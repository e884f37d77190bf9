"""One process writes to a folder; the system lets go of its lock when it ends, however it does."""

import errno
import os
import subprocess
import sys

import pytest

from flowmlx.files import locks

HOLD = """
import sys, time
from pathlib import Path
from flowmlx.files.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_later_one_is_not(tmp_path):
    with locks.only_writer(tmp_path):
        with (
            pytest.raises(
                ValueError, match=f"process {os.getpid()} on .* is writing to {tmp_path}"
            ),
            locks.only_writer(tmp_path),
        ):
            pytest.fail("two writers")
        with (
            pytest.raises(ValueError, match="is writing"),  # the refused one took nothing away
            locks.only_writer(tmp_path),
        ):
            pytest.fail("two writers")
    assert not list(tmp_path.iterdir())
    with locks.only_writer(tmp_path):
        pass


def test_an_error_lets_go(tmp_path):
    with pytest.raises(KeyboardInterrupt), locks.only_writer(tmp_path):
        raise KeyboardInterrupt
    with locks.only_writer(tmp_path):
        pass


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"process {process.pid} on"),
            locks.only_writer(tmp_path),
        ):
            pytest.fail("two writers")
    finally:
        process.kill()
        process.communicate()
    with locks.only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_goes_while_it_is_waited_for_is_made_anew(tmp_path, monkeypatch):
    """The file may be removed between its opening and its locking: then it locks nothing."""
    take, removed = locks.take, []

    def late(handle):
        if not removed:
            removed.append((tmp_path / locks.NAME).unlink())
        return take(handle)

    monkeypatch.setattr(locks, "take", late)
    with (
        locks.only_writer(tmp_path),
        pytest.raises(ValueError, match="is writing"),
        locks.only_writer(tmp_path),
    ):
        pytest.fail("two writers")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning(number, tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked"), locks.only_writer(tmp_path):
        pass


def test_what_another_process_starts_does_not_hold_the_lock(tmp_path):
    with locks.only_writer(tmp_path):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with locks.only_writer(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()

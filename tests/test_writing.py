"""Files appear whole or not at all: after errors, on a full disk, after a kill."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from flowmlx import plots
from flowmlx.couplings.semidiscrete import Semidiscrete, save_semidiscrete
from flowmlx.data.arrays import WRITERS, open_writer
from flowmlx.experiment import folder as runfiles
from flowmlx.files import writing
from flowmlx.nets import MLP
from flowmlx.training import TrainState, checkpoint

XS = np.random.default_rng(0).normal(size=(4, 2000, 2))


@contextlib.contextmanager
def full_disk(size=3_000):
    """Let no file grow beyond `size` bytes: the system refuses as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_rows(path):
    with open_writer(path, ("a", "b")) as out:
        out.write(XS[0])


def write_potential(path):
    box = np.zeros((2, 2), np.float32)
    save_semidiscrete(path, Semidiscrete(XS[0, :, 0].astype(np.float32), box, 0.1, 0.1, "rows"))


def write_flow(path):
    runfiles.write_lines(runfiles.Run(path.parent), runfiles.Lines(np.arange(4.0), XS, XS[0], 1))


def write_results(path):
    runfiles.write_results(runfiles.Run(path.parent), {"w2": [0.5] * 1000})


WRITES = {
    **{f"rows{extension}": write_rows for extension in WRITERS},
    "potential.safetensors": write_potential,
    "flow.npz": write_flow,
    "results.json": write_results,
    "trajectories.png": lambda path: plots.trajectories(XS, XS[0], ("a", "b"), path),
    "flow.gif": lambda path: plots.animation(
        np.arange(4), XS[:, :100], XS[0], ("a", "b"), path, frames=3
    ),
    "text.txt": lambda path: writing.write_text(path, "long" * 1000),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_names_the_file_and_leaves_the_one_before(name, tmp_path, capfd):
    path, write = tmp_path / name, WRITES[name]
    write(path)
    before = path.read_bytes()
    assert len(before) > 3_000
    with full_disk(), pytest.raises((OSError, ValueError)) as error:
        write(path)
    assert str(path) in str(error.value)
    assert os.strerror(errno.EFBIG) in str(error.value)
    assert writing.PREFIX not in str(error.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert "Exception ignored" not in capfd.readouterr().err


def new_state():
    return TrainState(MLP(2, width=32, key=mx.random.key(0)), optim.Adam(1e-3))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, without_compile):
    state = new_state()
    checkpoint.save(tmp_path, state)
    state.step = 1
    with full_disk(), pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as error:
        checkpoint.save(tmp_path, state)
    assert error.value.filename == str(tmp_path / "00000001")
    assert [p.name for p in tmp_path.iterdir()] == ["00000000"]
    assert checkpoint.load(tmp_path, new_state()).step == 0


@pytest.mark.parametrize("name", ["results.json", "flow.npz", "potential.safetensors"])
def test_files_are_on_the_disk_before_their_name_is(name, tmp_path, monkeypatch):
    """A loss of power must not leave a name with nothing behind it."""
    done, flush, replace = [], writing.flush, Path.replace
    monkeypatch.setattr(writing, "flush", lambda path: (done.append(path), flush(path)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append(paths), replace(*paths)))
    WRITES[name](tmp_path / name)
    temporary = done[0]
    assert done == [temporary, (temporary, tmp_path / name), tmp_path]


def test_flushing_waits_for_the_disk(tmp_path, monkeypatch):
    flushed = []
    (tmp_path / "file").write_text("whole")
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    writing.flush(tmp_path / "file")
    writing.flush_folder(tmp_path)
    assert flushed == [path.stat().st_ino for path in (tmp_path / "file", tmp_path)]


def test_all_of_a_checkpoint_is_on_the_disk_before_its_name_is(
    tmp_path, monkeypatch, without_compile
):
    done, flush, rename = [], writing.flush, Path.rename
    monkeypatch.setattr(writing, "flush", lambda path: (done.append(path), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda *paths: (done.append(paths), rename(*paths)))
    checkpoint.save(tmp_path, new_state())
    (move,) = (k for k, what in enumerate(done) if isinstance(what, tuple))
    made, final = done[move]
    assert final == tmp_path / "00000000"
    assert {path.name for path in done[:move]} == {
        made.name, "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json",
    }  # fmt: skip
    assert done[move + 1 :] == [tmp_path]


def test_folders_that_cannot_be_flushed_are_no_error(tmp_path, monkeypatch):
    def refused(handle):
        raise OSError(number, "no")

    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "fsync", refused)
    number = errno.EINVAL
    writing.flush_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="no"):
        writing.flush_folder(tmp_path)


KILLED = """
import os, sys, time
from flowmlx.files.writing import replacing
with replacing("{path}") as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def writer(path):
    """Another process in the middle of writing `path`."""
    command = [sys.executable, "-c", KILLED.format(path=path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_what_a_killed_process_has_left_goes_and_what_others_write_stays(tmp_path):
    path = tmp_path / "rows.csv"
    with writer(path) as first, writer(path):
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=30)
        assert len(list(tmp_path.glob(".writing-*"))) == 2
        writing.write_text(path, "whole")
        assert len(list(tmp_path.glob(".writing-*"))) == 1
        writing.write_text(tmp_path / "others.csv", "whole")
        assert len(list(tmp_path.glob(".writing-*"))) == 1
    assert path.read_text() == "whole"
    writing.remove_stale(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["others.csv", "rows.csv"]


def test_files_of_the_user_are_not_taken_for_left_ones(tmp_path):
    mine = {".rows.backup12.csv", "writing-rows-a.csv", ".writing", "rows.csv.writing-"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    writing.remove_stale(tmp_path)
    writing.write_text(tmp_path / "rows.csv", "whole")
    assert {p.name for p in tmp_path.iterdir()} == mine | {"rows.csv"}


def test_a_folder_without_locks_keeps_what_it_cannot_tell_from_files_in_use(tmp_path, monkeypatch):
    (tmp_path / ".writing-rows-12345678.csv").write_text("half")
    monkeypatch.setattr("fcntl.flock", unsupported)
    writing.write_text(tmp_path / "rows.csv", "whole")
    writing.remove_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def unsupported(handle, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("length", [1, 200, 255])
def test_names_may_be_as_long_as_the_system_lets_them(length, tmp_path):
    path = tmp_path / ("x" * (length - 4) + ".csv" if length > 4 else "x")
    writing.write_text(path, "whole")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_new_files_have_the_permissions_of_any_other(tmp_path, without_compile):
    before = os.umask(0o027)
    try:
        writing.write_text(tmp_path / "a.txt", "")
        path = checkpoint.save(tmp_path / "checkpoints", new_state())
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert path.stat().st_mode & 0o777 == 0o750

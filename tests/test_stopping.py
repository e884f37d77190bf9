"""Signals to the command: what is saved, what is left, and one process for one run."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowmlx.command.cli import main
from flowmlx.command.stopping import Heedless
from flowmlx.experiment import folder, new, runs
from flowmlx.files import locks, writing
from flowmlx.training import checkpoint

QUICK = ["--batch-size", "16", "--width", "8", "--samples", "32", "--frames", "8"]
LONG = ["train", *QUICK, "--steps", "1000000", "--checkpoint-every", "10", "--log-every", "10"]
COMMAND = [sys.executable, "-m", "flowmlx.command.cli"]
pytestmark = pytest.mark.usefixtures("without_compile", "in_folder")


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")


@contextlib.contextmanager
def started(*words, **options):
    """The command in a process of its own, which is killed at the latest at the end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*COMMAND, *words], **{**pipes, **options})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def saved(run="run"):
    return checkpoint.steps_saved(f"{run}/checkpoints")


def left():
    """What must not be left by a process that could still act, nor found by the next."""
    return [p for p in Path().rglob(".*") if p.name.startswith((writing.PREFIX, locks.NAME))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers", [[signal.SIGHUP], [signal.SIGHUP] * 2, [signal.SIGTERM, signal.SIGHUP]], ids=str
)
def test_a_hang_up_saves_as_a_request_to_end_does(numbers):
    with started(*LONG, "--out", "run") as process:
        wait(saved)
        for number in numbers:
            process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    (step,) = re.findall(r"saved up to step ([\d,]+) of", out)
    assert (
        int(step.replace(",", ""))
        == saved()[-1]
        == folder.read_metrics(folder.open_run("run"))[-1]["step"]
    )
    assert not left()


OWN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from flowmlx.command.cli import main
main()
"""


@pytest.mark.slow
def test_a_terminal_that_goes_ends_training_with_all_that_it_has_learned():
    """Then each write to the terminal fails."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *LONG, "--out", "run"],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True},
    )
    os.close(theirs)
    try:
        wait(lambda: shown(ours) and len(saved()) == 3)
        before = saved()[-1]
        os.close(ours)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
    assert saved()[-1] >= before
    assert folder.read_metrics(folder.open_run("run"))[-1]["step"] == saved()[-1]
    assert not left()


def shown(terminal):
    """Take what is shown on a terminal, so that it is not held up."""
    while select.select([terminal], [], [], 0)[0]:
        os.read(terminal, 4096)
    return True


@pytest.mark.slow
def test_training_goes_on_and_saves_when_nobody_reads_what_it_says():
    """As piped through a program that a hang-up has ended first."""
    with started(*LONG, "--out", "run") as process:
        process.stdout.close()
        process.stderr.close()
        wait(saved)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 130
        process.stdout, process.stderr = None, None
    assert folder.read_metrics(folder.open_run("run"))[-1]["step"] == saved()[-1]
    assert not left()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error_of_what_is_written_to_it():
    """Unlike a terminal that has gone: what is lost there is a file of the user's."""
    with open("/dev/full", "w") as full:
        stream = Heedless(full)
        stream.write("lost")
        with pytest.raises(OSError, match="No space left"):
            stream.flush()
        with contextlib.suppress(OSError):
            full.close()


@pytest.mark.slow
def test_nohup_is_heeded():
    with started(*LONG, "--out", "run", preexec_fn=ignore_hang_up) as process:
        wait(saved)
        process.send_signal(signal.SIGHUP)
        before = saved()[-1]
        wait(lambda: saved()[-1] > before + 20)
        assert process.poll() is None


def ignore_hang_up():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_sampling_that_is_ended_leaves_nothing_to_the_next(number):
    main(["train", *QUICK, "--steps", "2", "--out", "run"])
    words = ["sample", "run", "-n", "100000000", "-b", "100"]
    with started(*words) as process:
        wait(left)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    if number == signal.SIGKILL:
        assert left()
        main(["sample", "run", "-n", "4", "-o", "other.csv"])  # any command on the run
    else:
        assert process.returncode == 130
        assert error.splitlines()[-1] == "flowmlx: interrupted"
    assert not left()
    assert not Path("run/new.csv").exists()


@pytest.mark.slow
def test_a_killed_run_leaves_neither_lock_nor_halves_to_the_next():
    with started(*LONG, "--checkpoint-every", "1", "--log-every", "1", "--out", "run") as process:
        wait(saved)
        process.kill()
        process.communicate()
    Path("run/.writing-flow-abcdefgh.npz").write_text("half")
    Path("run/checkpoints/.writing-abcdefgh").mkdir(exist_ok=True)
    main(["train", "--resume", "run", "--steps", str(saved()[-1] + 2)])
    assert not left()


# One process for one run


@pytest.mark.slow
def test_a_run_that_is_trained_is_refused_to_others_and_can_be_read(capsys):
    with started(*LONG, "--out", "run") as process:
        wait(saved)
        for words in (["--resume", "run"], [*QUICK, "--out", "run"]):
            with pytest.raises(SystemExit) as stop:
                main(["train", *words])
            assert stop.value.code == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert "run" in error
        with pytest.raises(SystemExit):
            main(["train", "--resume", "run"])
        assert f"process {process.pid}" in capsys.readouterr().err
        main(["sample", "run", "-n", "4", "-o", "new.csv"])
        main(["evaluate", "run"])
        process.terminate()
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
    main(["train", "--resume", "run", "--steps", str(saved()[-1])])


def test_two_runs_do_not_share_a_new_folder(capsys):
    Path("run").mkdir()
    about_to_write = locks.only_writer(Path("run"))
    with about_to_write, pytest.raises(SystemExit) as stop:
        main(["train", *QUICK, "--steps", "2", "--out", "run"])
    assert stop.value.code == 2
    assert "is writing to run" in capsys.readouterr().err
    assert not list(Path("run").iterdir())


def test_a_folder_that_was_filled_meanwhile_is_left_alone(capsys, monkeypatch):
    make = new.make_folder

    def slower(config):
        run = make(config)
        (run.folder / "config.yaml").write_text("of another")
        return run

    monkeypatch.setattr(new, "make_folder", slower)
    with pytest.raises(SystemExit):
        main(["train", *QUICK, "--steps", "2", "--out", "run"])
    assert "is there already" in capsys.readouterr().err
    assert Path("run/config.yaml").read_text() == "of another"
    assert [p.name for p in Path("run").iterdir()] == ["config.yaml"]


# A full disk


def test_a_disk_that_fills_up_names_the_file_and_where_to_go_on(capsys, monkeypatch):
    words = ["train", *QUICK, "--log-every", "2", "--checkpoint-every", "2", "--out", "run"]
    flush = checkpoint._flush

    def full(path):
        if saved():
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(SystemExit) as stop:
        main([*words, "--steps", "6"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "run/checkpoints/00000004: No space left on device" in error
    assert "step 2" in error
    assert "flowmlx train --resume run" in error
    assert not left()
    assert saved() == [2]


def test_a_disk_that_is_full_from_the_start_leaves_the_name_free(capsys, monkeypatch):
    def full(run, config):
        raise OSError(28, "No space left on device", str(run.config))

    words = ["train", *QUICK, "--steps", "2", "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_options", full)
        with pytest.raises(SystemExit):
            main(words)
    assert "run/config.yaml: No space left on device" in capsys.readouterr().err
    main(words)
    assert json.loads(Path("run/results.json").read_text())["step"] == 2

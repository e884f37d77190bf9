"""Runs that stop, are stopped or killed, and go on."""

import json
import re
import signal
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from commands import (
    LONG,
    OFTEN,
    QUICK,
    logged_steps,
    refuse,
    start,
    table,
    wait_for_checkpoint,
)
from flowmlx.command.cli import main
from flowmlx.training import checkpoint

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


def test_resumed_run_equals_the_run_in_one_go():
    words = ["--batch-size", "16", "--width", "8", "--samples", "16", "--frames", "4"]
    words += ["--log-every", "4"]
    main(["train", *words, "--steps", "20", "--out", "whole"])
    main(["train", *words, "--steps", "10", "--out", "parts"])
    main(["train", "--resume", "parts", "--steps", "20"])
    for name in ("model", "ema", "optimizer"):
        whole, parts = (
            mx.load(f"{run}/checkpoints/00000020/{name}.safetensors") for run in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        for weight in whole:
            np.testing.assert_array_equal(whole[weight], parts[weight], err_msg=weight)
    assert Path("whole/samples.csv").read_bytes() == Path("parts/samples.csv").read_bytes()
    assert logged_steps("parts") == [4, 8, 10, 12, 16, 20]


def test_resume_without_steps_finishes_the_run(capsys):
    main(["train", *QUICK, "--checkpoint-every", "1", "--log-every", "1", "--out", "run"])
    # As a crash after step 2 could leave it: no results, a metrics line cut short.
    for step in (3, 4):
        for file in Path(f"run/checkpoints/{step:08d}").iterdir():
            file.unlink()
        Path(f"run/checkpoints/{step:08d}").rmdir()
    Path("run/results.json").unlink()
    lines = Path("run/metrics.jsonl").read_text()
    Path("run/metrics.jsonl").write_text(lines + '{"step": 5, "lo')
    main(["train", "--resume", "run"])
    assert json.loads(Path("run/results.json").read_text())["trained_steps"] == 2
    assert logged_steps("run") == [1, 2, 3, 4]


def test_resume_refuses_another_run(capsys):
    table()
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    capsys.readouterr()
    error = refuse(capsys, "train", "--resume", "run", "--width", "16")
    assert "--width was 8 in run and cannot change to 16" in error
    error = refuse(capsys, "train", "--resume", "run", "--steps", "2")
    assert "run is at step 4, past --steps 2" in error
    assert "leave out --out" in refuse(capsys, "train", "--resume", "run", "--out", "other")
    Path("data.csv").write_text(Path("data.csv").read_text() + "1,2,3\n")
    for words in (["train", "--resume", "run"], ["evaluate", "run"]):
        assert "the data has changed since run was trained on it" in refuse(capsys, *words)


def test_resume_finds_the_same_data_in_another_place():
    table()
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    Path("moved").mkdir()
    Path("data.csv").rename("moved/data.csv")
    main(["train", "--resume", "run", "--target", "moved/data.csv", "--steps", "5"])
    main(["evaluate", "run"])
    assert json.loads(Path("run/results.json").read_text())["step"] == 5


def test_a_changed_source_file_is_noticed(capsys):
    table()
    table(name="before.csv", rows=40)
    words = ["--source", "before.csv", "--target", "data.csv", "--out", "run"]
    main(["train", *QUICK, *words])
    capsys.readouterr()
    table(name="before.csv", rows=41)
    assert "the data has changed" in refuse(capsys, "train", "--resume", "run")


def test_non_finite_loss_names_step_and_checkpoint(capsys):
    words = ["--checkpoint-every", "2", "--log-every", "2", "--out", "run"]
    main(["train", *QUICK, *words, "--steps", "4"])
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", "run", "--steps", "400", "--lr", "1e30"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    step = int(re.search(r"(?:nan|inf|not finite) at step (\d+)", error)[1])
    good = int(re.search(r"last good checkpoint is step (\d+)", error)[1])
    assert 4 <= good < step
    state = mx.load(f"run/checkpoints/{good:08d}/model.safetensors")
    assert all(mx.isfinite(value).all().item() for value in state.values())
    assert "--resume run" in error


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_saves_and_says_how_to_go_on(number):
    process = start("train", *LONG, *OFTEN)
    wait_for_checkpoint("run/checkpoints")
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "flowmlx train --resume run" in out
    saved = checkpoint.steps_saved("run/checkpoints")[-1]
    assert f"saved up to step {saved:,} of 1,000,000" in out
    assert logged_steps("run")[-1] == saved


@pytest.mark.slow
def test_kill_loses_only_the_steps_since_the_last_checkpoint():
    process = start("train", *LONG, *OFTEN)
    wait_for_checkpoint("run/checkpoints")
    process.kill()
    process.communicate()
    saved = checkpoint.steps_saved("run/checkpoints")[-1]
    main(["train", "--resume", "run", "--steps", str(saved + 5)])
    assert json.loads(Path("run/results.json").read_text())["trained_steps"] == 5

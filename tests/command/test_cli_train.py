"""Training by command: what a run writes, and which options it heeds."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import (
    QUICK,
    start,
    table,
)
from flowmlx.command.cli import main
from flowmlx.data.arrays import read
from flowmlx.experiment import folder as runfiles
from flowmlx.experiment import options as settings
from flowmlx.experiment.options import METHODS

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method):
    main(["train", *QUICK, "--method", method, "--sigma", "0.1", "--out", "run"])
    assert json.loads(Path("run/results.json").read_text())["trained_steps"] == 4


@pytest.mark.parametrize(
    "option", ["path", "coupling", "prediction", "training_times", "loss_weight"]
)
def test_every_choice_is_used_and_kept(option):
    """Each name of an option trains, samples and goes on, and none does the same as another."""
    losses, few = {}, ["--solver", "heun", "--step-size", "0.25"]
    table()
    target = "data.csv" if option == "coupling" else "moons"  # some are fitted to rows
    for name in settings.TABLES[option]:
        flag = f"--{option.replace('_', '-')}"
        noisy = option == "path" or name == "schroedinger"
        start = ["--source", "normal", "--sigma", "0.3" if noisy else "0", flag, name]
        start += ["--target", target]
        if name == "min_snr":
            start += ["--regress", "x1"]
        main(["train", *QUICK, *few, *start, "--log-every", "1", "--out", name])
        losses[name] = runfiles.read_metrics(runfiles.open_run(name))[0]["loss"]
        main(["train", "--resume", name, "--steps", "5"])
        assert getattr(settings.read_config(f"{name}/config.yaml").flow, option) == name
        main(["sample", name, "-n", "20", "-o", f"{name}.npy"])
        assert np.isfinite(np.load(f"{name}.npy")).all()
        main(["evaluate", name, "--rows", "10"])
    assert len(set(losses.values())) == len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["x1", "x0"])
def test_every_prediction_learns_the_data(prediction):
    words = ["--source", "normal", "-m", "cfm", "--prediction", prediction, "--out", "run"]
    main(["train", "--steps", "500", "--batch-size", "256", "--lr", "3e-3", *words])
    results = json.loads(Path("run/results.json").read_text())
    assert results["energy_distance"] < 0.1


def test_a_second_run_gets_its_own_folder():
    for _ in range(2):
        main(["train", *QUICK])
    assert {p.name for p in Path("runs").iterdir()} == {
        "8gaussians-moons-vp",
        "8gaussians-moons-vp-2",
    }


def test_one_seed_fixes_a_run():
    for out, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        main(["train", *QUICK, "--out", out, "--seed", seed])
    a, b, c = (Path(out, "samples.csv").read_bytes() for out in "abc")
    assert a == b
    assert a != c


def test_config_file_is_read_and_the_command_line_wins():
    lines = ["steps: 3", "batch_size: 8", "lr: 1e-2", "width: 8", "samples: 16", "frames: 4"]
    Path("my.yaml").write_text("\n".join(lines))
    main(["train", "--config", "my.yaml", "--batch_size", "4", "--out", "run"])
    config = settings.read_config("run/config.yaml")
    assert config.training.steps == 3
    assert config.training.batch_size == 4
    assert config.training.lr == 0.01


def test_saved_settings_make_the_same_run_again():
    main(["train", *QUICK, "--out", "a", "--sigma", "0.2", "--clip-norm", "1", "--cpu"])
    main(["train", "--config", "a/config.yaml", "--out", "b"])
    assert Path("a/samples.csv").read_bytes() == Path("b/samples.csv").read_bytes()
    assert Path("a/config.yaml").read_text() == Path("b/config.yaml").read_text()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("home")
def test_home_folder_is_understood_everywhere():
    table()
    Path("my.yaml").write_text("target: ~/data.csv\n")
    main(["train", *QUICK, "--config", "my.yaml", "--out", "run"])
    main(["train", "--resume", "run", "--steps", "5"])


def test_source_can_be_a_file_with_the_same_columns():
    table()
    table(name="before.csv")
    main(["train", *QUICK, "--source", "before.csv", "--target", "data.csv", "--out", "run"])
    main(["sample", "run", "-n", "5"])
    assert read("run/new.csv").columns == ("height", "width", "depth")


def test_redirected_bars_are_few_lines(capsys):
    main(["train", *QUICK, "--steps", "60", "--log-every", "1", "--out", "run"])
    out, err = capsys.readouterr()
    assert "\r" not in err
    assert [line[:14] for line in err.splitlines()] == ["training:   0%", "training: 100%"]
    assert "of compiling" in out
    results = json.loads(Path("run/results.json").read_text())
    assert results["trained_steps"] == 60
    assert min(results["compile_seconds"], results["training_seconds"]) > 0
    main(["sample", "run", "-n", "3000", "-o", "new.npy"])
    assert "\r" not in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_compiler_it_trains_and_says_so_once(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    process = start("train", *QUICK, "--cpu", PATH=str(folder), TMPDIR=str(tmp_path))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert error.count("no C++ compiler (g++)") == 1


@pytest.mark.slow
def test_patience_stops_where_held_out_rows_get_worse_and_keeps_the_best(capsys):
    """A wide network on 27 rows: the loss on those held out falls, then rises."""
    table(rows=30)
    words = ["--target", "data.csv", "-m", "cfm", "--width", "128", "--lr", "1e-2", "--holdout"]
    words += ["0.3", "--log-every", "20", "--checkpoint-every", "20", "--ema-decay", "0.9"]
    main(["train", *QUICK, *words, "--steps", "2000", "--patience", "3", "--out", "run"])
    out = capsys.readouterr().out
    lines = runfiles.read_metrics(runfiles.open_run("run"))
    tested = [line["test_loss"] for line in lines]
    best = int(np.argmin(tested))
    assert len(tested) == best + 4 < 100
    assert f"step {lines[best]['step']:,}, by the loss on held-out rows" in out
    assert json.loads(Path("run/results.json").read_text())["best_step"] == lines[best]["step"]
    main(["train", "--resume", "run"])
    assert "run is at its end" in capsys.readouterr().out
    assert len(runfiles.read_metrics(runfiles.open_run("run"))) == len(tested)

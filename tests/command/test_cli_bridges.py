"""Bridges, semidiscrete transport and reflow by command."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from commands import (
    QUICK,
    SEMIDISCRETE,
    SNAPSHOTS,
    cells,
    kinds,
    refuse,
    table,
)
from flowmlx.command.cli import main
from flowmlx.data.arrays import read
from flowmlx.data.toy import moons
from flowmlx.experiment import options as settings
from flowmlx.metrics import energy_distance
from flowmlx.solvers import SDE_METHODS

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


@pytest.mark.slow
def test_a_bridge_samples_its_data_with_noise_and_without():
    words = ["-m", "sf2m", "--sigma", "0.5", "--coupling", "exact_ot", "--lr", "3e-3"]
    words += ["--out", "run"]
    main(["train", "--steps", "400", "--batch-size", "256", *words])
    data = np.array(moons(1000, key=mx.random.key(9)))
    samples = {}
    for solver in ("dopri5", *SDE_METHODS):
        main(["sample", "run", "-n", "1000", "--solver", solver, "-o", "new.npy"])
        samples[solver] = np.load("new.npy")
        assert energy_distance(samples[solver], data) < 0.1
    del samples["milstein"]  # Euler-Maruyama where the noise does not depend on x
    assert len({x.tobytes() for x in samples.values()}) == len(samples)
    main(["train", "--resume", "run", "--solver", "sra1"])
    assert json.loads(Path("run/results.json").read_text())["energy_distance"] < 0.1
    assert settings.read_config("run/config.yaml").flow.sigma == 0.5


def test_the_scale_of_a_score_cannot_change(capsys):
    """The score that a network has learned is in units of its sigma."""
    main(["train", *QUICK, "-m", "sf2m", "--sigma", "1", "--out", "run"])
    capsys.readouterr()
    assert "--sigma was 1.0" in refuse(capsys, "train", "--resume", "run", "--sigma", "2")


def test_a_bridge_is_sampled_under_a_condition():
    kinds(rows=60)
    words = ["--target", "kinds.csv", "--condition", "kind", "-m", "sf2m", "--sigma", "0.5"]
    main(["train", *QUICK, *words, "--out", "run"])
    for solver in ("dopri5", "sra1"):
        ends = []
        for kind in (["1"], ["4"], ["1", "--guidance", "2"]):
            ask = ["--solver", solver, "--condition", *kind, "-o", "new.npy"]
            main(["sample", "run", "-n", "20", *ask])
            ends.append(np.load("new.npy"))
        assert np.isfinite(ends).all()
        assert (ends[0] != ends[1]).any()
        assert (ends[0] != ends[2]).any()
    main(["evaluate", "run", "--rows", "5"])


# Semidiscrete transport


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "moons"], "is fitted to the rows of a file, and --target moons has none"),
        (["--time-column", "width"], "and --time-column has several; take --coupling exact_ot"),
        (["--plan-steps", "4"], "plans for all rows at once, so --plan-steps 4 has no effect"),
    ],
)
def test_mistakes_with_semidiscrete_transport(words, message, capsys):
    table()
    assert message in refuse(capsys, "train", *QUICK, *SEMIDISCRETE, *words)


def test_a_source_that_cannot_reach_all_rows_is_refused_before_a_run_is_made(capsys):
    table()
    table(name="few.csv", rows=5)
    with pytest.raises(SystemExit) as stop:
        main(["train", *QUICK, *SEMIDISCRETE, "--source", "few.csv", "--out", "run"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "choose all rows equally often from --source" in last
    assert not Path("run").exists()


def test_a_run_cannot_turn_semidiscrete(capsys):
    table()
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    main(["train", *QUICK, "-m", "cfm", "--target", "data.csv", "--out", "first"])
    capsys.readouterr()
    words = ["train", "--coupling", "semidiscrete"]
    assert "--coupling was None in run" in refuse(capsys, *words, "--resume", "run")
    assert "--reflow brings pairs of its own" in refuse(capsys, *words, "--reflow", "first")


# Reflow


@pytest.mark.slow
def test_reflow_makes_straight_lines_to_the_same_points():
    """Two Euler steps go nearly where many do, which they did not before.

    Before reflow the velocity says the score, so that the first is sampled with noise as well.
    """
    words = ["-m", "cfm", "--steps", "600", "--batch-size", "256", "--lr", "3e-3"]
    main(["train", *words, "--source", "normal", "--out", "first"])
    main(["sample", "first", "-n", "1000", "--solver", "sra1", "-o", "new.npy"])
    data = np.array(moons(1000, key=mx.random.key(9)))
    assert energy_distance(np.load("new.npy"), data) < 0.1
    main(["train", *words, "--reflow", "first", "--reflow-pairs", "10000", "--out", "second"])
    ends, few = {}, {}
    for run in ("first", "second"):
        sample = ["sample", run, "-n", "1000", "-o", "new.npy"]
        main(sample)
        ends[run] = np.load("new.npy")
        main([*sample, "--solver", "euler", "--step-size", "0.5"])
        few[run] = np.sqrt(((np.load("new.npy") - ends[run]) ** 2).sum(1).mean())
    assert few["second"] < 0.25 * few["first"]
    # Both start from the same points, and the second learned where the first carries them.
    assert np.sqrt(((ends["second"] - ends["first"]) ** 2).sum(1).mean()) < 0.4
    assert json.loads(Path("second/results.json").read_text())["energy_distance"] < 0.1


def test_a_reflow_goes_on_bit_for_bit_while_its_run_is_the_same(capsys):
    main(["train", *QUICK, "--out", "first"])
    words = [*QUICK, "-m", "cfm", "--reflow", "first", "--reflow-pairs", "50"]
    main(["train", *words, "--out", "a"])
    main(["train", *words, "--out", "b", "--steps", "2"])
    main(["train", "--resume", "b", "--steps", "4"])
    assert read("a/samples.csv").values.tolist() == read("b/samples.csv").values.tolist()
    main(["train", "--resume", "first", "--steps", "6"])
    capsys.readouterr()
    message = refuse(capsys, "train", "--resume", "b", "--steps", "6")
    assert "first has changed since b was trained on its pairs" in message


def test_a_reflow_goes_on_when_the_run_of_its_pairs_was_moved(capsys):
    main(["train", *QUICK, "--out", "first"])
    words = [*QUICK, "-m", "cfm", "--reflow", "first", "--reflow-pairs", "50", "--seed", "5"]
    main(["train", *words, "--out", "second", "--steps", "2"])
    Path("first").rename("moved")
    capsys.readouterr()
    assert "if it was moved, give its place now" in refuse(capsys, "train", "--resume", "second")
    main(["train", "--resume", "second", "--reflow", "moved", "--steps", "4"])
    kept = settings.read_config("second/config.yaml")
    assert (kept.run.seed, Path(kept.data.reflow or "").name) == (5, "moved")


def test_pairs_of_a_reflow_have_no_score(capsys):
    main(["train", *QUICK, "-m", "cfm", "--source", "normal", "--sigma", "0", "--out", "first"])
    words = [*QUICK, "-m", "cfm", "--source", "normal", "--sigma", "0", "--reflow", "first"]
    words += ["--reflow-pairs", "50"]
    capsys.readouterr()
    assert "no --reflow" in refuse(capsys, "train", *words, "--solver", "sra1", "--out", "a")
    main(["train", *words, "--out", "b"])
    capsys.readouterr()
    assert "no --reflow" in refuse(capsys, "sample", "b", "--solver", "sra1", "-o", "b.csv")
    main(["sample", "first", "--solver", "sra1", "-o", "first.csv"])


def test_mistakes_with_reflow(capsys):
    cells()
    main(["train", *QUICK, "--out", "first"])
    main(["train", *QUICK, *SNAPSHOTS, "-m", "cfm", "--out", "series"])
    capsys.readouterr()
    for words, message in (
        (["--reflow", "nowhere"], "--reflow: nowhere is not a run: it is not a folder"),
        (["--reflow", "series"], "series goes through snapshots"),
        (["--reflow", "first", "-m", "otcfm"], "--reflow brings pairs of its own"),
        (["--reflow", "first", "-m", "fm"], "so pairs have no effect on it; take --method cfm"),
        (["--reflow", "first", "--source", "normal"], "it needs the same files, and the same --so"),
        (
            ["--reflow", "first", "--reflow-pairs", "0"],
            "--reflow-pairs is 0; expected a number at least 1",
        ),
    ):
        assert message in refuse(capsys, "train", *QUICK, *words)

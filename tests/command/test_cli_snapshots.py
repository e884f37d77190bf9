"""Snapshots by command: one flow through several times."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import (
    QUICK,
    SNAPSHOTS,
    TREATED,
    cells,
    refuse,
    treated,
)
from flowmlx.command.cli import main
from flowmlx.data.arrays import read
from flowmlx.experiment import options as settings
from flowmlx.experiment import resolve
from flowmlx.experiment.rules import check

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


@pytest.mark.slow
def test_snapshots_train_one_flow_that_predicts_the_day_left_out(capsys):
    cells()
    words = [*SNAPSHOTS, "--leave-out", "3", "--lr", "3e-3", "--out", "run"]
    main(["train", "--steps", "400", "--batch-size", "120", *words])
    out = capsys.readouterr().out
    for word in ("time 2 ", "time 3 ", "time 8 ", "to left out, carried from time 2"):
        assert word in out
    found = json.loads(Path("run/results.json").read_text())["snapshots"]
    assert [(a["start"], a["time"], a["left_out"]) for a in found] == [
        (0, 2, False), (2, 3, True), (3, 8, False)
    ]  # fmt: skip
    assert [a["points"] for a in found] == [6, 54, 6]
    for arrival in found:
        assert arrival["w1"] < 0.6 * arrival["w1_before"]
    for day in (3, 8):
        main(["sample", "run", "-n", "400", "--at-time", str(day), "-o", "new.csv"])
        new = read("new.csv")
        assert new.columns == ("a", "b")
        np.testing.assert_allclose(new.values.mean(0), [10 + day, 5 - 2 * day], atol=0.7)
    main(["sample", "run", "-n", "400", "-o", "last.csv"])
    np.testing.assert_array_equal(read("last.csv").values, new.values)
    capsys.readouterr()
    main(["evaluate", "run"])
    assert "where the flow starts has no density" in capsys.readouterr().out


@pytest.mark.slow
def test_snapshots_with_classes_lead_each_its_own_way():
    """By a bridge, sampled with noise."""
    treated()
    words = [*TREATED, "--leave-out", "1", "-m", "sf2m", "--sigma", "0.3", "--solver", "sra1"]
    words += ["--lr", "3e-3", "--out", "run"]
    main(["train", "--steps", "400", "--batch-size", "120", *words])
    config = settings.read_config("run/config.yaml")
    resolved = check(config)
    data = resolve.kind(resolved).read(resolve.request(resolved))
    told = np.array(data.test.conditions(config.sampling.samples))
    for kind in (0, 1):  # what is compared with held-out rows started from their class
        start = np.load("run/flow.npz")["xs"][0][told == kind]
        other = np.load("run/flow.npz")["xs"][0][told != kind]
        assert (-1) ** kind * (start[:, 0].mean() - other[:, 0].mean()) > 1
    found = json.loads(Path("run/results.json").read_text())["snapshots"]
    assert [a["left_out"] for a in found] == [True, False]
    assert found[0]["w1"] < 0.6 * found[0]["w1_before"]
    for kind, name in enumerate(("control", "drug")):
        for day in (1, 2):
            words = ["sample", "run", "-n", "300", "--condition", name, "--at-time", str(day)]
            main([*words, "-o", "new.csv"])
            new = read("new.csv").values.mean(0)
            np.testing.assert_allclose(new, [13 - 3 * kind, 5 + 4 * kind * day], atol=0.7)
    main([*words, "--guidance", "1.5", "-o", "guided.csv"])
    assert read("guided.csv").values[:, 1].mean() > new[1] - 1
    main(["sample", "run", "-n", "300", "-o", "all.csv"])
    up = read("all.csv").values[:, 1] > 9
    assert 0.5 < up.mean() < 0.8
    main(["evaluate", "run"])


@pytest.mark.parametrize("snapshots", ["cells", "treated"])
def test_a_run_of_snapshots_goes_on_bit_for_bit(snapshots):
    cells()
    treated()
    words = SNAPSHOTS if snapshots == "cells" else TREATED
    for name, steps in (("a", "4"), ("b", "2")):
        main(["train", *QUICK, *words, "--out", name, "--steps", steps])
    main(["train", "--resume", "b", "--steps", "4"])
    assert read("a/samples.csv").values.tolist() == read("b/samples.csv").values.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--time-column", "dya"],
            "no column 'dya' (did you mean 'day'?); the table has 'a'",
        ),
        (["--time-column", "a"], "only one row has 'a' = "),
        (
            ["--leave-out", "8"],
            "--leave-out is 8; expected a time between the first and the last: 2, 3",
        ),
        (["--source", "normal"], "the flow starts from the file's first snapshot"),
        (["--target", "moons"], "--time-column needs a file as --target"),
        (["-m", "fm"], "starts from its own Gaussian noise"),
        (["--prediction", "x1"], "only a velocity has a meaning"),
        (["--batch-size", "2"], "batch_size is 2; expected at least 3"),
    ],
)
def test_mistakes_with_snapshots(words, message, capsys):
    cells()
    assert message in refuse(capsys, "train", *QUICK, *SNAPSHOTS, *words)


def test_snapshots_go_straight_unless_told_otherwise():
    cells()
    words = ["train", *QUICK, *SNAPSHOTS]
    main([*words, "--out", "own"])
    main([*words, "-m", "vp", "--out", "bent"])
    main(["train", "--resume", "bent", "--steps", "6"])
    main(["train", "--config", "bent/config.yaml", "--out", "again"])
    found = [settings.read_config(f"{run}/config.yaml") for run in ("own", "bent", "again")]
    assert [config.flow.method for config in found] == ["otcfm", "vp", "vp"]


def test_times_that_are_text_are_refused(capsys):
    Path("text.csv").write_text("a,day\n" + "".join(f"{k},d{k % 2}\n" for k in range(20)))
    words = ["train", *QUICK, "--target", "text.csv", "--time-column", "day"]
    assert "'day' holds text; expected a number" in refuse(capsys, *words)
    treated()
    words = ["train", *QUICK, "--target", "treated.csv", "--time-column", "dya"]
    assert "no column 'dya' (did you mean 'day'?)" in refuse(capsys, *words)


def test_mistakes_with_classes_of_snapshots(capsys):
    treated()
    rows = Path("treated.csv").read_text().splitlines()
    Path("treated.csv").write_text("\n".join(r for r in rows if ",drug,1" not in r) + "\n")
    message = "kind drug has no row at time 1 that is not held out; expected some of every class"
    for words in ([], ["--leave-out", "1"]):
        assert message in refuse(capsys, "train", *QUICK, *TREATED, *words)
    treated(names=("0", "2"))
    with open("treated.csv", "a") as file:  # a class of the time that is left out alone
        file.write("".join(f"{k},1,1,{k}\n" for k in range(20)))
    message = "kind 1 has no row at time 0 that is not held out"
    assert message in refuse(capsys, "train", *QUICK, *TREATED, "--leave-out", "1")
    message = "the next within their class; leave out --condition-cost"
    assert message in refuse(capsys, "train", *QUICK, *TREATED, "--condition-cost", "2")
    cells()
    message = "--condition b holds numbers; with --time-column it has to be one column of classes"
    assert message in refuse(capsys, "train", *QUICK, *SNAPSHOTS, "--condition", "b")
    message = "there is no column 'day'"
    assert message in refuse(capsys, "train", *QUICK, *SNAPSHOTS, "--condition", "day")


def test_times_to_sample_at(capsys):
    cells(days=(0, 1))
    main(["train", *QUICK, *SNAPSHOTS, "--out", "run"])
    main(["train", *QUICK, "--out", "plain"])
    capsys.readouterr()
    message = "--at-time is 2; expected a time above 0 and up to 1"
    assert message in refuse(capsys, "sample", "run", "--at-time", "2")
    assert "trained with --time-column" in refuse(capsys, "sample", "plain", "--at-time", "1")


def test_a_class_without_held_out_rows_at_some_time_trains_all_the_same():
    """Of a rare class all held-out rows of a time may be of the other one."""
    rng = np.random.default_rng(0)
    rows = [(t, k, *rng.normal(size=2)) for t in range(3) for k in [0] * 60 + [1] * 4]
    np.savetxt("rare.csv", rows, delimiter=",", header="day,kind,a,b", comments="")
    words = ["--target", "rare.csv", "--time-column", "day", "--condition", "kind"]
    for seed in range(4):
        main(["train", *QUICK, *words, "--seed", str(seed), "--out", str(seed)])
        assert np.isfinite(json.loads(Path(f"{seed}/metrics.jsonl").read_text())["test_loss"])

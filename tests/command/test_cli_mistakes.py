"""Mistakes of users: one line that says what to write instead, and nothing is written."""

import shlex
from pathlib import Path

import pytest

from commands import (
    QUICK,
    refuse,
    table,
)
from flowmlx.command.cli import COMMANDS, main
from flowmlx.experiment.options import Info

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rtol", "0", "--atol", "0"], "--rtol and --atol are both 0"),
        (["--step-size", "1e-6"], "--step-size is 1e-06; expected a number at least 0.0001"),
        (["--seed", "99999999999999999999"], "--seed is 99999999999999999999; expected"),
        (["--target", "moon"], "'moon' is neither a toy data set (did you mean 'moons'?)"),
        (["--method", "vpp"], "unknown method 'vpp' (did you mean 'vp'?); known: cfm, vp, fm"),
        (["--solver", "dopri"], "unknown solver 'dopri' (did you mean 'dopri5'?); known: euler"),
        (["--grid", "sine"], "--solver dopri5 chooses its steps, so --grid sine has no effect"),
        (["--solver", "unipc_2", "--sigma", "0.1"], "beside x0; take --solver dopri5"),
        (["--solver", "unipc_2", "--path", "polynomial"], "stands still at t = 0; take --solver"),
        (["--loss-weight", "min_snr", "--sigma", "0.1"], "take another weight, or sigma 0"),
        (["--path", "bridge"], "--path takes the path bridge, which has no noise at --sigma 0"),
        (["-m", "sbcfm"], "--method sbcfm takes the coupling schroedinger, which needs --sigma"),
        (["-m", "fm", "--coupling", "exact_ot"], "the coupling exact_ot has no effect on it"),
        (["-m", "cfm", "--plan-steps", "4"], "and the coupling independent has none; leave it out"),
        (["--reflow-pairs", "9"], "--reflow-pairs is how many --reflow makes; give it a run"),
        (["-m", "sf2m", "--sigma", "1", "--path", "linear"], "take one of: bridge, trigonom"),
        (
            ["-m", "sf2m", "--sigma", "1", "--loss-weight", "brownian"],
            "leave out --prediction, --regr",
        ),
        (["--solver", "sra1", "-m", "otcfm"], "--solver sra1 adds noise, which needs a score"),
        (["--solver", "sra1", "--grid", "sine"], "--solver sra1 takes equal steps; leave out"),
        (["--prediction", "x1", "--path", "bridge", "--sigma", "1"], "noise of its own beside x0"),
        (["--loss-weight", "snr"], "unknown loss weight 'snr'"),
        (["--target", "gone.csv"], "no file gone.csv"),
        (["--sigma", "nan"], "--sigma is nan; expected a number at least 0"),
        (["--sigma", "1e300"], "--sigma is 1e+300; expected a number at least 0 and below 3e+38"),
        (["--batch-size", "3000000000"], "--batch-size is 3000000000; expected a number at least"),
        (["--frames", "3000000000"], "--frames is 3000000000; expected a number at least 2 and be"),
        (["--lr", "0"], "--lr is 0.0; expected a number above 0"),
        (["--holdout", "1"], "--holdout is 1.0; expected a number above 0 and below 1"),
        (["--ema-decay", "1"], "--ema-decay is 1.0; expected a number at least 0 and below 1"),
        (["--warmup-steps", "99"], "warmup_steps is 99; expected 0 to 4"),
        (["-m", "fm", "--source", "moons"], "starts from its own Gaussian noise"),
        (["--resume", "nowhere"], "nowhere is not a run: it is not a folder"),
        (["--config", "gone.yaml"], "cannot read the settings gone.yaml"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys):
    assert message in refuse(capsys, "train", *QUICK, *words)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--width", "5000"], "--width and --depth"),
        (["--batch-size", "10000000"], "--batch-size and --width"),
        (["--samples", "20000000"], "--samples and --width"),
        (["--samples", "10000", "--frames", "10000"], "--samples and --frames"),
    ],
)
def test_what_the_memory_cannot_hold_is_refused(words, options, monkeypatch, capsys):
    monkeypatch.setattr("flowmlx.experiment.limits.physical_memory", lambda: 400_000_000)
    error = refuse(capsys, "train", *QUICK, *words)
    assert f"{options} ask for 1 GB" in error
    assert "this machine has 0.4" in error


def test_what_to_type_next_is_as_a_shell_takes_it(capsys):
    main(["train", *QUICK, "--out", "my $HOME"])
    capsys.readouterr()
    error = refuse(capsys, "train", *QUICK, "--out", "my $HOME")
    words = shlex.split(error.rpartition("go on with: ")[2])
    assert words == ["flowmlx", "train", "--resume", "my $HOME"]


def test_a_lack_of_memory_is_one_line(monkeypatch, capsys):
    def info(config):
        raise MemoryError("Unable to allocate 298. GiB")

    monkeypatch.setitem(COMMANDS, Info, info)
    assert "not the memory for it (Unable to allocate 298. GiB)" in refuse(capsys, "info")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "row"),
        ("a,b\n1,2\n", "row"),
        ("a,b\n1,2\n3,nan\n5,6\n", "column 'b'"),
        ("a,b\n1,2\n3,x\n5,6\n", "column 'b'"),
        ("a,b\n1,2\n3\n", "line 3"),
        ("a,b\n1,1\n1,1\n1,1\n", "constant"),
    ],
)
def test_bad_files_get_one_line_that_says_where(content, message, capsys):
    Path("bad.csv").write_text(content)
    error = refuse(capsys, "train", *QUICK, "--target", "bad.csv")
    assert message in error
    assert "bad.csv" in error or "constant" in error


def test_dimensions_that_do_not_fit_are_refused(capsys):
    table()
    words = ["train", *QUICK, "--target", "data.csv", "--source"]
    message = "has 2 dimensions and the target 3; use --source normal"
    assert message in refuse(capsys, *words, "moons")
    table(name="other.csv", columns=("a", "b", "c"))
    assert "needs the target's columns" in refuse(capsys, *words, "other.csv")


def test_full_out_folder_is_refused(capsys):
    Path("run").mkdir()
    Path("run/precious.txt").write_text("mine")
    assert "--out run is there already" in refuse(capsys, "train", *QUICK, "--out", "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 4\n", "unknown option batchsize (did you mean 'batch_size'?)"),
        ("- 1\n", "holds a list; expected lines 'option: value'"),
        ("steps: [1, 2]\n", "--steps is [1, 2]; expected a whole number"),
        ("steps: 3\nlr: 1\nsteps: 4\n", "line 3: steps is there twice, first in 1"),
        ("a: b: c\n", "is not YAML"),
        ("resume: somewhere\n", "unknown option resume"),
        ("width: &w 8\nsteps: *w\n", "line 2: *w repeats a value from above; write the value"),
    ],
)
def test_bad_config_files_get_one_line(text, message, capsys):
    Path("bad.yaml").write_text(text)
    error = refuse(capsys, "train", "--config", "bad.yaml")
    assert message in error
    assert "bad.yaml" in error


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, capsys):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied", "/of/nobody/.config.x3.yaml")

    table()
    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(SystemExit) as stop:
        main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("run/data.json: Permission denied\n")


def test_sample_mistakes(capsys):
    assert "it is not a folder" in refuse(capsys, "sample", "nowhere")
    main(["train", *QUICK, "--out", "run"])
    capsys.readouterr()
    assert "--n is 0" in refuse(capsys, "sample", "run", "-n", "0")
    assert ".csv" in refuse(capsys, "sample", "run", "-o", "new.xlsx")
    assert "no folder" in refuse(capsys, "sample", "run", "-o", "gone/new.csv")
    assert "no checkpoint of step 3" in refuse(capsys, "sample", "run", "--step", "3")
    assert "unknown solver" in refuse(capsys, "sample", "run", "--solver", "rk5")

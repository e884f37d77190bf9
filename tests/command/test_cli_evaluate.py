"""Scores, figures and resolved by command."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import flowmlx
from commands import QUICK, SNAPSHOTS, cells, logged_steps, refuse, table
from flowmlx.command.cli import main
from flowmlx.data.arrays import read

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder")


def test_evaluate_prints_likelihood_and_distances(capsys):
    values = table()
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    capsys.readouterr()
    main(["evaluate", "run"])
    out = capsys.readouterr().out
    nll, original = map(
        float, re.search(r"NLL +(\S+) .* rows; (\S+) in the original units", out).groups()
    )
    # Hardly trained: close to the standard normal in model units.
    assert nll == pytest.approx(1.5 * (1 + np.log(2 * np.pi)), abs=2)
    units = json.loads(Path("run/data.json").read_text())["units"]
    assert original - nll == pytest.approx(np.log(units["scale"]).sum(), abs=1e-3)
    np.testing.assert_allclose(units["scale"], values.std(0), rtol=0.1)
    assert "W2" in out
    main(["evaluate", "run", "--divergence", "hutchinson"])
    estimate = float(re.search(r"NLL +(\S+)", capsys.readouterr().out)[1])
    assert estimate == pytest.approx(nll, abs=1.0)


def test_evaluate_of_a_source_without_a_density_measures_the_rest(capsys):
    main(["train", *QUICK, "--source", "circles", "--out", "run"])
    capsys.readouterr()
    main(["evaluate", "run"])
    out = capsys.readouterr().out
    assert "none: where the flow starts has no density" in out
    assert "energy distance" in out


def test_rows_that_were_handed_over_in_python_are_not_said_to_have_changed(capsys):
    rows = table()
    names, quick = ["height", "width", "depth"], {"steps": 2, "batch_size": 8, "width": 8}
    source = pa.table(dict(zip(names, rows.T, strict=True)))
    flowmlx.train("data.csv", source=source, method="cfm", out="run", **quick)
    capsys.readouterr()
    main(["plot", "run"])  # samples were kept when it was trained
    Path("run/flow.npz").unlink()
    for command in ("evaluate", "plot"):
        assert "run was trained with objects of your own, source," in refuse(capsys, command, "run")
    flowmlx.train(source, method="cfm", out="memory", **quick)
    flowmlx.train("data.csv", method="cfm", resume="memory")
    main(["evaluate", "memory"])


def test_damaged_flow_lines_are_made_again():
    main(["train", *QUICK, "--out", "run"])
    Path("run/flow.npz").write_bytes(b"PK\x03\x04 cut short")
    main(["plot", "run"])
    with np.load("run/flow.npz") as flow:
        assert flow["xs"].shape == (8, 32, 2)


def test_plot_redraws_and_samples_where_needed(capsys):
    main(["train", *QUICK, "--out", "run"])
    for name in ("trajectories.png", "flow.npz", "loss.png", "flow.gif"):
        Path("run", name).unlink()
    main(["plot", "run"])
    for name in ("trajectories.png", "loss.png", "flow.gif"):
        assert Path("run", name).stat().st_size > 5_000


def test_info_names_versions_device_blas_and_compiler(capsys):
    main(["info"])
    out = capsys.readouterr().out
    for word in ("python", "flowmlx", "mlx", "device", "blas", "compiler"):
        assert re.search(rf"^{word} +\S", out, re.MULTILINE), word


def test_column_names_with_dollars_are_drawn():
    table(columns=("a$_$b", "$x$", "c"))
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    assert Path("run/marginals.png").stat().st_size > 5_000


def test_default_run_writes_what_the_run_folder_promises(capsys):
    main(["train", *QUICK, "--log-every", "2"])
    run = Path("runs/8gaussians-moons-vp")
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "data.json", "checkpoints", "metrics.jsonl", "flow.npz", "samples.csv",
        "results.json", "trajectories.png", "loss.png", "flow.gif",
    }  # fmt: skip
    assert logged_steps(run) == [2, 4]
    with np.load(run / "flow.npz") as flow:
        assert flow["xs"].shape == (8, 32, 2)
        np.testing.assert_allclose(flow["ts"], np.linspace(0, 1, 8))
        np.testing.assert_allclose(read(run / "samples.csv").values, flow["xs"][-1], rtol=1e-6)
    results = json.loads((run / "results.json").read_text())
    assert results["nfe"] > 6
    assert results["w2"] > results["w2_floor"] > 0
    out = capsys.readouterr().out
    for word in (str(run), "4 steps", "field evaluations", "W2", "energy distance"):
        assert word in out


def test_figures_of_snapshots_are_drawn():
    cells()
    main(["train", *QUICK, *SNAPSHOTS, "--out", "run"])
    for name in ("trajectories.png", "loss.png", "flow.gif"):
        assert Path("run", name).stat().st_size > 5_000

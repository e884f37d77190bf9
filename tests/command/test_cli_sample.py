"""Sampling by command: rows in the units of the data, by every solver."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from commands import (
    QUICK,
    table,
)
from flowmlx.command.cli import main
from flowmlx.data.arrays import read
from flowmlx.sampling import SAMPLERS
from flowmlx.solvers import GRIDS

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.npy", "data.npz"])
def test_rows_of_a_file_come_back_in_its_units(name, capsys):
    values = table()
    if name.endswith(".parquet"):
        names = ("height", "width", "depth")
        pa.parquet.write_table(pa.table(dict(zip(names, values.T, strict=True))), name)
    elif name.endswith(".npy"):
        np.save(name, values)
    elif name.endswith(".npz"):
        np.savez(name, values)
    main(["train", *QUICK, "--target", name, "--out", "run"])
    assert "marginals.png" in capsys.readouterr().out
    main(["sample", "run", "-n", "500", "-o", "new.parquet", "--batch-size", "200"])
    new = read("new.parquet")
    arrays = name.startswith("data.np")
    assert new.columns == (("x0", "x1", "x2") if arrays else ("height", "width", "depth"))
    assert new.values.shape == (500, 3)
    # Hardly trained, the flow is near the identity: standard normal in the file's units.
    spread = values.std(0)
    assert (np.abs(new.values.mean(0) - values.mean(0)) < 0.7 * spread).all()
    np.testing.assert_allclose(new.values.std(0), spread, rtol=0.6)


def test_samples_do_not_depend_on_the_file_type():
    table()
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    for name in ("new.csv", "new.parquet", "new.npy"):
        main(["sample", "run", "-n", "20", "-o", name, "--seed", "3"])
    csv, parquet, npy = (read(f"new.{end}").values for end in ("csv", "parquet", "npy"))
    np.testing.assert_array_equal(csv, parquet)
    np.testing.assert_array_equal(csv, npy)
    main(["sample", "run", "-n", "20", "-o", "other.npy", "--seed", "4"])
    assert (np.load("other.npy") != npy).any()


@pytest.fixture
def trained(capsys, in_folder):
    main(["train", *QUICK, "--out", "run"])
    capsys.readouterr()


@pytest.mark.usefixtures("trained")
def test_every_solver_samples_the_same_flow():
    ends = {}
    for name in SAMPLERS:
        main(["sample", "run", "-n", "20", "-o", "new.npy", "--solver", name])
        ends[name] = np.load("new.npy")
    for name, end in ends.items():
        tolerance = {"euler": 0.02, "dpmpp_2m": 5e-3, "unipc_2": 2e-3}.get(name, 1e-3)
        np.testing.assert_allclose(end, ends["dopri5"], atol=tolerance, err_msg=name)


@pytest.mark.usefixtures("trained")
def test_every_grid_is_used_with_a_step_size():
    ends = {}
    options = ["sample", "run", "-n", "20", "-o", "new.npy", "--solver", "euler", "--step-size"]
    for name in GRIDS:
        main([*options, "0.25", "--grid", name])
        coarse = np.load("new.npy")
        main([*options, "0.01", "--grid", name])
        ends[name] = coarse, np.load("new.npy")
    coarse, fine = (np.stack(arrays) for arrays in zip(*ends.values(), strict=True))
    assert np.ptp(fine, axis=0).max() < np.ptp(coarse, axis=0).max() / 10
    assert min(abs(coarse[a] - coarse[b]).max() for a, b in [(0, 1), (1, 2), (0, 2)]) > 1e-3


def test_the_grid_of_the_training_is_for_its_solver():
    """Another solver that takes none does without; one that does keeps it."""
    words = ["-m", "cfm", "--source", "normal", "--solver", "heun", "--step-size", "0.25"]
    for grid in ("uniform", "sine"):
        main(["train", *QUICK, *words, "--grid", grid, "--out", grid])
        for solver in ("euler_maruyama", "midpoint"):
            main(["sample", grid, "--solver", solver, "-o", f"{grid}-{solver}.npy"])
    samples = {path.stem: np.load(path) for path in Path().glob("*.npy")}
    assert (samples["sine-euler_maruyama"] == samples["uniform-euler_maruyama"]).all()
    assert (samples["sine-midpoint"] != samples["uniform-midpoint"]).any()


def test_sampling_needs_no_data_file():
    table()
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    Path("data.csv").unlink()
    main(["sample", "run", "-n", "5"])
    assert read("run/new.csv").values.shape == (5, 3)


def test_constant_column_is_carried_through_with_a_warning(capsys):
    table(constant=1)
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    error = capsys.readouterr().err
    assert "flowmlx: warning: constant, so carried through unchanged: 'width'\n" in error
    main(["sample", "run", "-n", "50", "-o", "new.csv"])
    np.testing.assert_array_equal(read("new.csv").values[:, 1], 7.25)

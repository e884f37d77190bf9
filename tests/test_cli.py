"""The command as a user meets it: runs, files, mistakes."""

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from flowmlx import sampling
from flowmlx.command.cli import COMMANDS, main
from flowmlx.couplings.semidiscrete import load_semidiscrete, semidiscrete
from flowmlx.data.arrays import read
from flowmlx.data.toy import moons
from flowmlx.experiment import build, runs
from flowmlx.experiment import options as settings
from flowmlx.experiment.options import METHODS, Info, Train
from flowmlx.guidance import GUIDANCE
from flowmlx.losses import TARGETS, flow_matching_loss
from flowmlx.metrics import energy_distance, wasserstein
from flowmlx.paths import Linear
from flowmlx.sampling import SAMPLERS
from flowmlx.solvers import GRIDS, SDE_METHODS, SolverError, Status
from flowmlx.training import checkpoint

QUICK = ["--steps", "4", "--batch-size", "16", "--width", "8", "--samples", "32", "--frames", "8"]
pytestmark = pytest.mark.usefixtures("without_compile", "in_folder")


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))


def refuse(capsys, *words):
    """Run words that must be refused; return the one line that says why."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    assert sorted(Path().rglob("*")) == before, "a refused command wrote something"
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("flowmlx: error: ")
    assert error.count("\n") == 1
    return error


def table(rows=60, columns=("height", "width", "depth"), name="data.csv", constant=None):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rows, len(columns))) * [100, 1, 0.01] + [1000, 0, 5]
    if constant is not None:
        values[:, constant] = 7.25
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in values.tolist())]
    Path(name).write_text("\n".join(lines) + "\n")
    return values


def logged_steps(run):
    return [
        json.loads(line)["step"] for line in Path(run, "metrics.jsonl").read_text().splitlines()
    ]


# Training


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


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method):
    main(["train", *QUICK, "--method", method, "--sigma", "0.1", "--out", "run"])
    assert json.loads(Path("run/results.json").read_text())["trained_steps"] == 4


@pytest.mark.parametrize(
    ("name", "path", "coupling"),
    [
        ("cfm", "Linear", "independent"), ("otcfm", "Linear", "exact_ot"),
        ("vp", "Trigonometric", "independent"), ("fm", "Target", "independent"),
        ("sbcfm", "Bridge", "schroedinger"), ("sf2m", "Bridge", "schroedinger"),
    ],
)  # fmt: skip
def test_methods_mean_what_the_field_means_by_them(name, path, coupling):
    config = settings.Train(flow=settings.FlowOptions(method=name, sigma=0.1))
    assert type(build.path(config)).__name__ == path
    assert build.method(config)[1:] == (coupling, name == "sf2m")


@pytest.mark.parametrize("regress", ["velocity", "x1", "x0"])
def test_what_is_regressed_is_what_the_option_says(regress, key):
    flow = settings.FlowOptions(method="cfm", regress=regress, sigma=0.0)
    x0, x1 = mx.random.normal((2, 64, 2), key=key)
    given = build.loss(settings.Train(flow=flow))(lambda t, x: x, x0, x1, key=key)
    plain = flow_matching_loss(Linear(), regress=regress)(lambda t, x: x, x0, x1, key=key)
    assert given.item() == plain.item()


@pytest.mark.parametrize(
    "option", ["path", "coupling", "prediction", "training_times", "loss_weight"]
)
def test_every_choice_is_used_and_kept(option):
    """Each name of an option trains, samples and goes on, and none does the same as another."""
    losses = {}
    table()
    target = "data.csv" if option == "coupling" else "moons"  # some are fitted to rows
    for name in settings.TABLES[option]:
        flag = f"--{option.replace('_', '-')}"
        noisy = option == "path" or name == "schroedinger"
        start = ["--source", "normal", "--sigma", "0.3" if noisy else "0", flag, name]
        start += ["--target", target]
        if name == "min_snr":
            start += ["--regress", "x1"]
        main(["train", *QUICK, *start, "--log-every", "1", "--out", name])
        losses[name] = runs.read_metrics(runs.open_run(name))[0]["loss"]
        main(["train", "--resume", name, "--steps", "5"])
        assert getattr(settings.read_config(f"{name}/config.yaml").flow, option) == name
        main(["sample", name, "-n", "20", "-o", f"{name}.npy"])
        assert np.isfinite(np.load(f"{name}.npy")).all()
        main(["evaluate", name, "--rows", "10"])
    assert len(set(losses.values())) == len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", TARGETS)
def test_every_prediction_learns_the_data(prediction):
    words = ["--source", "normal", "-m", "cfm", "--prediction", prediction, "--out", "run"]
    main(["train", "--steps", "1500", "--batch-size", "256", "--lr", "3e-3", *words])
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


def test_every_option_has_one_name():
    """Options are grouped in the help but flat on the command line and in files."""
    leaves = []

    def walk(fields):
        for name, field in fields.items():
            nested = getattr(field.type, "__dataclass_fields__", None)
            walk(nested) if nested else leaves.append(name)

    walk(Train.__dataclass_fields__)
    assert len(leaves) == len(set(leaves)) == len(settings.flatten(Train()))


# A file of numbers


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


def test_a_row_is_fixed_by_the_seed_alone(monkeypatch):
    """Bit for bit, whatever the number of rows and the batch size; with classes and noise too."""
    monkeypatch.setattr(sampling, "LEAST_BLOCK", 16)
    monkeypatch.setattr(sampling, "MOST_BLOCK", 64)
    kinds = [f"{a},{b},{'red' if k % 2 else 'blue'}" for k, (a, b, _) in enumerate(table())]
    Path("classes.csv").write_text("\n".join(["a,b,colour", *kinds]))
    words = ["--target", "classes.csv", "--condition", "colour", "--method", "cfm", "--out", "run"]
    main(["train", *QUICK, *words])
    trained = runs.load(runs.open_run("run"))

    def rows(solver, n, batch_size):
        options = settings.SolverOptions(solver, step_size=None if solver == "dopri5" else 0.25)
        more = {"solver": options, "seed": 3, "condition": "red"}
        runs.sample_to(trained, "new.npy", n=n, batch_size=batch_size, **more)
        return np.load("new.npy")

    for solver in ("dopri5", "rk4", "sra1"):
        whole = rows(solver, 150, 1000)
        assert len(np.unique(whole, axis=0)) == 150
        for n, batch_size in ((150, 7), (1, 10), (15, 4), (33, 64)):
            np.testing.assert_array_equal(rows(solver, n, batch_size), whole[:n], err_msg=solver)


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


def test_samples_are_the_ends_of_the_flow():
    """A field that is (30, -20) everywhere moves the standard normal there."""
    main(["train", *QUICK, "--source", "normal", "--out", "run"])
    run = runs.open_run("run")
    state = runs.build.train_state(settings.read_config(run.config), 2)
    checkpoint.load(run.checkpoints, state)
    last = state.ema["layers"][-1]
    last["weight"], last["bias"] = mx.zeros_like(last["weight"]), mx.array([30.0, -20.0])
    state.step += 1
    runs.save(run, state)
    main(["sample", "run", "-n", "900", "-o", "new.csv"])
    new = read("new.csv").values
    np.testing.assert_allclose(new.mean(0), [30, -20], atol=0.15)
    np.testing.assert_allclose(new.std(0), [1, 1], atol=0.1)


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


@pytest.mark.usefixtures("home")
def test_home_folder_is_understood_everywhere():
    table()
    Path("my.yaml").write_text("target: ~/data.csv\n")
    main(["train", *QUICK, "--config", "my.yaml", "--out", "run"])
    main(["train", "--resume", "run", "--steps", "5"])


def test_held_out_rows_are_never_trained_on():
    values = table()
    config = settings.parse(["--target", "data.csv", "--holdout", "0.25"])
    problem = runs.build.problem(config)
    assert problem.heldout.shape == (15, 3)
    seen = np.concatenate(
        [np.array(problem.target.batch(16, k, key=mx.random.key(0))) for k in range(6)]
    )
    both = problem.units.inverse(np.concatenate([np.unique(seen, axis=0), problem.heldout]))
    assert len(both) == len(values)
    np.testing.assert_allclose(np.sort(both, axis=0), np.sort(values, axis=0), rtol=1e-5, atol=1e-5)


def test_source_can_be_a_file_with_the_same_columns():
    table()
    table(name="before.csv")
    main(["train", *QUICK, "--source", "before.csv", "--target", "data.csv", "--out", "run"])
    main(["sample", "run", "-n", "5"])
    assert read("run/new.csv").columns == ("height", "width", "depth")


# Stopping and going on


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


def test_solver_that_fails_after_training_says_how_to_go_on(capsys, monkeypatch):
    def fail(*_, **__):
        raise SolverError(Status.STAGNATION, 0.5, 0.1, "stuck.")

    with monkeypatch.context() as patch:
        patch.setattr(runs.build, "sample", fail)
        with pytest.raises(SystemExit) as stop:
            main(["train", *QUICK, "--out", "run"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "trained and saved" in error
    assert "flowmlx train --resume run --rtol" in error
    main(["train", "--resume", "run"])
    assert "trajectories.png" in capsys.readouterr().out


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


def start(*words, **environment):
    """Start the command in a process of its own, uncompiled unless `environment` says otherwise."""
    environment = {**os.environ, **(environment or {"MLX_DISABLE_COMPILE": "1"})}
    command = [sys.executable, "-m", "flowmlx.command.cli", *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(folder, seconds=60):
    end = time.monotonic() + seconds
    while not checkpoint.steps_saved(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert checkpoint.steps_saved(folder), "no checkpoint appeared"


LONG = ["--steps", "1000000", *QUICK[2:]]
OFTEN = ["--checkpoint-every", "10", "--log-every", "10", "--out", "run"]


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


@pytest.mark.slow
def test_every_moment_is_safe_to_be_killed_in():
    """With a checkpoint at each step most moments fall into the writing of one."""
    words = ["train", *LONG, "--checkpoint-every", "1", "--log-every", "1", "--out", "run"]
    for delay in (0.0, 0.05, 0.11, 0.17):
        process = start(*words)
        before = max(checkpoint.steps_saved("run/checkpoints"), default=0)
        end = time.monotonic() + 60
        while max(checkpoint.steps_saved("run/checkpoints"), default=0) <= before:
            assert time.monotonic() < end, process.communicate()
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.communicate()
        run = runs.open_run("run")
        state = runs.build.train_state(settings.read_config(run.config), 2)
        assert checkpoint.load(run.checkpoints, state).step > before
        runs.read_metrics(run)
        words = ["train", "--resume", "run"]


@pytest.mark.slow
def test_without_a_compiler_it_trains_and_says_so_once(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    process = start("train", *QUICK, "--cpu", PATH=str(folder), TMPDIR=str(tmp_path))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert error.count("no C++ compiler (g++)") == 1


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepps", "3"], "Unrecognized options: --stepps"),
        (["--steps", "many"], "Error parsing -e/--steps"),
        (["--rtol", "0", "--atol", "0"], "--rtol and --atol are both 0"),
        (["--step-size", "1e-6"], "--step-size is 1e-06; expected a number at least 0.0001"),
        (["--seed", "99999999999999999999"], "--seed is 99999999999999999999; expected"),
        (["--target", "moon"], "'moon' is neither a toy data set (did you mean 'moons'?)"),
        (["--source", "8gaussian"], "did you mean '8gaussians'?"),
        (["--method", "vpp"], "unknown method 'vpp' (did you mean 'vp'?); known: cfm, vp, fm"),
        (["--solver", "dopri"], "unknown solver 'dopri' (did you mean 'dopri5'?); known: euler"),
        (["--grid", "sin"], "unknown grid 'sin' (did you mean 'sine'?); known: uniform"),
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
        (["--plan-steps", "0"], "--plan-steps is 0; expected a number at least 1"),
        (["--prediction", "x1", "--path", "bridge", "--sigma", "1"], "noise of its own beside x0"),
        (["--loss-weight", "snr"], "unknown loss weight 'snr'"),
        (["--activation", "swish"], "unknown activation 'swish'"),
        (["--lr-schedule", "linear"], "unknown lr schedule 'linear'"),
        (["--time-embedding", "x"], "unknown time embedding 'x'; known: raw, sinusoidal"),
        (["--target", "gone.csv"], "no file gone.csv"),
        (["--sigma", "-1"], "--sigma is -1.0; expected a number at least 0"),
        (["--sigma", "nan"], "--sigma is nan; expected a number at least 0"),
        (["--sigma", "1e300"], "--sigma is 1e+300; expected a number at least 0 and below 3e+38"),
        (["--batch-size", "0"], "--batch-size is 0; expected a number at least 1"),
        (["--batch-size", "3000000000"], "--batch-size is 3000000000; expected a number at least"),
        (["--frames", "3000000000"], "--frames is 3000000000; expected a number at least 2 and be"),
        (["--samples", "20000000000"], "--samples is 20000000000; expected a number at least 2"),
        (["--steps", "0"], "--steps is 0; expected a number at least 1"),
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
        ("batchsize: 4\n", "unknown option 'batchsize' (did you mean 'batch_size'?)"),
        ("- 1\n", "holds a list; expected lines 'option: value'"),
        ("steps: [1, 2]\n", "steps is a list; expected one value"),
        ("steps: many\n", "Error parsing -e/--steps"),
        ("a: b: c\n", "is not YAML"),
        ("resume: somewhere\n", "unknown option 'resume'"),
    ],
)
def test_bad_config_files_get_one_line(text, message, capsys):
    Path("bad.yaml").write_text(text)
    error = refuse(capsys, "train", "--config", "bad.yaml")
    assert message in error
    assert "bad.yaml" in error


@pytest.mark.parametrize("words", [["trian"], ["sample"]], ids=" ".join)
def test_words_that_do_not_parse_get_one_line(words, capsys):
    assert "see --help" in refuse(capsys, *words)


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


@pytest.mark.parametrize("width", [80, 120])
def test_help_breaks_lines_only_where_they_are_full(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ([], ["train"], ["sample"], ["evaluate"], ["plot"], ["reproduce"], ["info"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line) for line in lines if not line.startswith("usage:")) <= width
        boxes = [line[2:-2] for line in lines if line.startswith("│")]
        for line, following in itertools.pairwise(boxes):
            inside = [len(text) - len(text.lstrip()) for text in (line, following)]
            text = following.strip()
            if inside[0] == inside[1] >= 6 and text and not text.startswith(("•", "-")):
                assert len(line.rstrip() + " " + text.split()[0]) > len(line), line


def test_sample_mistakes(capsys):
    assert "it is not a folder" in refuse(capsys, "sample", "nowhere")
    main(["train", *QUICK, "--out", "run"])
    capsys.readouterr()
    assert "--n is 0" in refuse(capsys, "sample", "run", "-n", "0")
    assert ".csv" in refuse(capsys, "sample", "run", "-o", "new.xlsx")
    assert "no folder" in refuse(capsys, "sample", "run", "-o", "gone/new.csv")
    assert "no checkpoint of step 3" in refuse(capsys, "sample", "run", "--step", "3")
    assert "unknown solver" in refuse(capsys, "sample", "run", "--solver", "rk5")


# Scores


def test_evaluate_prints_likelihood_and_distances(capsys):
    table()
    main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    capsys.readouterr()
    main(["evaluate", "run"])
    out = capsys.readouterr().out
    nll, original = map(
        float, re.search(r"NLL +(\S+) .* rows; (\S+) in the original units", out).groups()
    )
    problem = runs.build.problem(settings.read_config("run/config.yaml"))
    # Hardly trained: close to the standard normal in model units.
    z = problem.heldout
    assert nll == pytest.approx((z**2).sum(1).mean() / 2 + 1.5 * np.log(2 * np.pi), abs=1.5)
    assert original - nll == pytest.approx(np.log(problem.units.scale).sum(), abs=1e-3)
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


# Figures and facts


def test_plot_samples_again_after_more_training():
    main(["train", *QUICK, "--out", "run"])
    run = runs.open_run("run")
    config = settings.read_config(run.config)
    state = runs.build.train_state(config, 2)
    checkpoint.load(run.checkpoints, state)
    state.step = 5
    runs.save(run, state)
    main(["plot", "run"])
    with np.load("run/flow.npz") as flow:
        assert flow["step"] == 5
    assert json.loads(Path("run/results.json").read_text())["step"] == 5


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


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in settings.flatten(Train()):
        assert f"--{name.replace('_', '-')}" in out


# Snapshots


def cells(name="cells.csv", days=(0, 2, 3, 8), rows=60):
    """Rows around (10 + day, 5 - 2 day), in random order, with the day in the middle."""
    rng = np.random.default_rng(0)
    day = rng.permutation(np.repeat(days, rows))
    noise = rng.normal(size=(2, len(day)))
    table = np.stack([10 + day + noise[0], day, 5 - 2 * day + noise[1]], 1)
    np.savetxt(name, table, delimiter=",", header="a,day,b", comments="")


SNAPSHOTS = ["--target", "cells.csv", "--time-column", "day"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [["otcfm"], ["sf2m", "--sigma", "0.3", "--solver", "sra1"]], ids=["otcfm", "sf2m"]
)
def test_snapshots_train_one_flow_that_predicts_the_day_left_out(method, capsys):
    cells()
    words = [*SNAPSHOTS, "--leave-out", "3", "-m", *method, "--lr", "3e-3", "--out", "run"]
    main(["train", "--steps", "600", "--batch-size", "120", *words])
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


def treated(names=("control", "drug"), rows=80, days=(0, 1, 2)):
    """Rows at (10, 5) on day 0, of which those of the second kind rise by 4 a day; the first of
    each day has a third of the rows. A column is constant from the start: 1 for the first kind."""
    rng, lines = np.random.default_rng(0), ["a,kind,day,b"]
    for day in days:
        for kind, name in enumerate(names):
            for a, b in rng.normal(size=(rows // (2 - kind), 2)) * 0.5:
                lines.append(f"{10 + a + 3 * (1 - kind)},{name},{day},{5 + b + 4 * kind * day}")
    Path("treated.csv").write_text("\n".join(lines) + "\n")


TREATED = ["--target", "treated.csv", "--time-column", "day", "--condition", "kind"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [["otcfm"], ["sf2m", "--sigma", "0.3", "--solver", "sra1"]], ids=["otcfm", "sf2m"]
)
def test_snapshots_with_classes_lead_each_its_own_way(method, capsys):
    treated()
    words = [*TREATED, "--leave-out", "1", "-m", *method, "--lr", "3e-3", "--out", "run"]
    main(["train", "--steps", "600", "--batch-size", "120", *words])
    config = settings.read_config("run/config.yaml")
    told = np.resize(build.problem(config).told.heldout, config.sampling.samples)
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


def test_the_floor_has_the_classes_of_the_held_out_rows():
    """As the samples have, beside which it stands: classes lie 10 apart, their rows 1."""
    kinds(rows=200)
    words = ["--target", "kinds.csv", "--condition", "kind"]
    problem = build.problem(settings.parse(words))
    found = runs.distances(problem, problem.reference)
    sides = (
        (problem.heldout, problem.told.heldout),
        (problem.reference, problem.told.reference),
    )
    of_class = [wasserstein(*(rows[labels == k] for rows, labels in sides)) for k in range(3)]
    assert found["w2_floor"] < 2 * max(of_class)
    assert found["energy_distance_floor"] < found["energy_distance"]
    # Of as many rows as there are: a few would be further from the held-out ones.
    few = problem._replace(
        reference=problem.reference[:20],
        told=problem.told._replace(reference=problem.told.reference[:20]),
    )
    small = runs.distances(few, problem.reference)
    assert found["energy_distance_floor"] < 0.8 * small["energy_distance_floor"]


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


# Conditions


def kinds(name="kinds.csv", rows=300, names=None):
    """Rows around (10 k, -k) for a kind k of 1, 2 or 4, and a weight that moves the second up.

    `names`: of the kinds, to write in their place.
    """
    rng = np.random.default_rng(0)
    kind = rng.choice([1, 2, 4], rows)
    weight = rng.normal(50, 5, rows)
    a = 10 * kind + rng.normal(size=rows)
    b = -kind + 0.2 * (weight - 50) + 0.1 * rng.normal(size=rows)
    table = np.stack([a, kind, b, weight], 1)
    np.savetxt(name, table, delimiter=",", header="a,kind,b,weight", comments="")
    if names:
        head, *lines = Path(name).read_text().splitlines()
        cells = [line.split(",") for line in lines]
        named = [f"{a},{names[int(float(k))]},{b},{weight}" for a, k, b, weight in cells]
        Path(name).write_text("\n".join([head, *named]) + "\n")


NAMES = {1: "setosa", 2: "virginica", 4: "Zea mays"}
LONGER = ["--steps", "800", "--batch-size", "128", "--lr", "3e-3", "-m", "cfm", "--out", "run"]


@pytest.mark.slow
def test_classes_are_told_and_asked_for(capsys):
    kinds()
    main(["train", *LONGER, "--target", "kinds.csv", "--condition", "kind"])
    for kind in (1, 2, 4):
        words = ["sample", "run", "-n", "200", "-o", "new.csv", "--condition", str(kind)]
        main(words)
        new = read("new.csv")
        assert new.columns == ("a", "b", "weight")
        np.testing.assert_allclose(new.values[:, 0].mean(), 10 * kind, atol=1.5)
        for method in ("cfg", "cfg_zero_star"):
            main([*words, "--guidance", "2", "--guidance-method", method])
            guided = read("new.csv").values
            np.testing.assert_allclose(guided[:, 0].mean(), 10 * kind, atol=4)
            assert (guided != new.values).any()
    main(["sample", "run", "-n", "300", "-o", "all.csv"])
    every = read("all.csv").values[:, 0]
    for kind in (1, 2, 4):
        assert 0.15 < (abs(every - 10 * kind) < 5).mean() < 0.6
    capsys.readouterr()
    main(["evaluate", "run"])
    assert "NLL" in capsys.readouterr().out
    for words, message in (
        (["--condition", "3"], "--condition is 3; kind was one of: 1, 2, 4"),
        (["--condition", "red"], "--condition is 'red'; expected a number for kind"),
        (["--guidance", "2"], "give one with --condition VALUE"),
        (["--guidance", "nan"], "--guidance is nan; expected a finite number"),
    ):
        assert message in refuse(capsys, "sample", "run", *words)


@pytest.mark.slow
def test_classes_of_text_are_told_and_asked_for_by_name():
    kinds(names=NAMES)
    main(["train", *LONGER, "--target", "kinds.csv", "--condition", "kind"])
    Path("kinds.csv").unlink()  # the labels are the run's
    for kind, name in NAMES.items():
        main(["sample", "run", "-n", "200", "-o", "new.csv", "--condition", name])
        new = read("new.csv")
        assert new.columns == ("a", "b", "weight")
        np.testing.assert_allclose(new.values[:, 0].mean(), 10 * kind, atol=1.5)


def test_named_classes_train_as_numbered_ones_do():
    """In one order of the classes they give the same run, which goes on bit for bit."""
    kinds(rows=60)
    kinds("named.csv", rows=60, names={1: "a", 2: "b", 4: "c"})
    for target, out, steps in (("kinds", "n", "4"), ("named", "a", "4"), ("named", "b", "2")):
        words = ["--target", f"{target}.csv", "--condition", "kind", "--out", out, "--steps", steps]
        main(["train", *QUICK, *words])
    main(["train", "--resume", "b", "--steps", "4"])
    numbered, whole, parts = (Path(run, "samples.csv").read_bytes() for run in "nab")
    assert numbered == whole == parts
    main(["sample", "a", "-n", "20", "--condition", "c", "-o", "named.npy"])
    main(["sample", "n", "-n", "20", "--condition", "4", "-o", "numbered.npy"])
    np.testing.assert_array_equal(np.load("named.npy"), np.load("numbered.npy"))
    main(["evaluate", "a", "--rows", "5"])


def test_mistakes_with_classes_of_text(capsys):
    kinds(rows=60, names=NAMES)
    words = ["train", *QUICK, "--target", "kinds.csv"]
    main([*words, "--condition", "kind", "--out", "run"])
    capsys.readouterr()
    message = "'setsoa' (did you mean 'setosa'?); kind was one of: 'Zea mays', 'setosa', "
    assert message in refuse(capsys, "sample", "run", "--condition", "setsoa")
    for condition, message in (
        ([], "columns that are not numbers: 'kind'"),
        (["--condition", "weight"], "columns that are not numbers: 'kind'"),
        (["--time-column", "kind"], "'kind' holds text; expected a number, such as the day"),
        (["--condition", "kind,weight"], "'kind' holds text, which has to be the only condition"),
    ):
        assert message in refuse(capsys, *words, *condition)
    kinds(rows=60, names={**NAMES, 1: "sativa"})  # in the same place of the order
    assert "the data has changed since run" in refuse(capsys, "train", "--resume", "run")


@pytest.mark.slow
def test_numbers_are_told_in_their_units():
    kinds()
    main(["train", *LONGER, "--target", "kinds.csv", "--condition", "kind,weight"])
    main(["sample", "run", "-n", "300", "-o", "new.csv", "--condition", "2,58"])
    new = read("new.csv")
    assert new.columns == ("a", "b")
    a, b = new.values.mean(0)
    assert a == pytest.approx(20, abs=1.5)
    assert b == pytest.approx(-2 + 0.2 * 8, abs=0.4)


def test_the_likelihood_of_a_conditional_run_is_that_of_its_condition():
    """It is what it was under the condition alone: other conditions would give another number."""
    kinds(rows=60)
    main(["train", *QUICK, "--target", "kinds.csv", "--condition", "kind", "--out", "run"])
    run = runs.open_run("run")
    trained = runs.load(run)
    problem = runs.open_problem(run, trained.config)
    options = {"rows": 100, "divergence": "exact"}
    right = runs.negative_log_likelihood(trained.config, problem, trained.field, **options)
    assert right["nll_rows"] == len(problem.heldout) == 6
    told = problem.told._replace(heldout=(problem.told.heldout + 1) % 3)
    other = problem._replace(told=told)
    wrong = runs.negative_log_likelihood(trained.config, other, trained.field, **options)
    assert right["nll"] != wrong["nll"]


@pytest.mark.parametrize("condition", ["kind", "weight"])
@pytest.mark.parametrize("coupling", ["exact_ot", "sinkhorn", "semidiscrete"])
def test_couplings_respect_the_condition(coupling, condition):
    """Over a condition the source is normal, and by distance alone it would not be."""
    kinds()
    words = ["--target", "kinds.csv", "--condition", condition, "--batch-size", "256"]
    config = settings.parse([*words, "--coupling", coupling, "-m", "cfm"])

    def dependence(config):
        problem = build.problem(config)
        fitted = build.fit_potential(config, problem) if build.needs_potential(config) else None
        batches = build.batches(config, problem, potential=fitted)
        x0, cond = (np.concatenate([batches(k)[name] for k in range(3)]) for name in ("x0", "cond"))
        if cond.ndim > 1:
            return abs(np.corrcoef(x0.T, cond[:, 0])[-1, :-1]).max()
        return max(abs(x0[cond == kind].mean(0)).max() for kind in range(3))

    told = replace(config, flow=replace(config.flow, condition_cost=1e-6))
    assert dependence(config) < 0.15
    assert dependence(told) > 0.3


def test_a_condition_goes_with_any_prediction():
    kinds(rows=60)
    words = ["--target", "kinds.csv", "--condition", "kind", "--prediction", "x1", "--out", "run"]
    main(["train", *QUICK, "-m", "cfm", *words])
    ends = []
    for kind in ("1", "4"):
        main(["sample", "run", "-n", "20", "--condition", kind, "--guidance", "2", "-o", "new.npy"])
        ends.append(np.load("new.npy"))
    assert np.isfinite(ends).all()
    assert (ends[0] != ends[1]).any()
    main(["evaluate", "run", "--rows", "5"])


@pytest.mark.parametrize("coupling", ["exact_ot", "semidiscrete"])
def test_a_conditional_run_goes_on_bit_for_bit(coupling):
    kinds(rows=60)
    words = ["--target", "kinds.csv", "--condition", "kind", "--coupling", coupling, "-m", "cfm"]
    for name, steps in (("a", "4"), ("b", "2")):
        main(["train", *QUICK, *words, "--out", name, "--steps", steps])
    main(["train", "--resume", "b", "--steps", "4"])
    assert read("a/samples.csv").values.tolist() == read("b/samples.csv").values.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--condition", "kin"], "there is no column 'kin' (did you mean 'kind'?)"),
        (["--condition", "a,kind,b,weight"], "so nothing left to learn"),
        (["--condition", "kind", "--condition-cost", "0"], "expected a number above 0"),
        (["--condition", "kind", "--condition-dropout", "1"], "expected a number at least 0 and"),
        (["--condition", "kind", "--target", "moons"], "--target moons has none"),
        (["--leave-out", "1"], "give the column of times with --time-column"),
    ],
)
def test_mistakes_with_conditions(words, message, capsys):
    kinds()
    assert message in refuse(capsys, "train", *QUICK, "--target", "kinds.csv", *words)


@pytest.mark.parametrize("method", settings.TABLES["guidance_method"])
def test_guidance_is_of_the_method_and_the_weight_that_are_given(method, monkeypatch):
    kinds(rows=40)
    main(["train", *QUICK, "--target", "kinds.csv", "--condition", "kind", "--out", "run"])
    used = []
    for name, plain in dict(GUIDANCE).items():
        monkeypatch.setitem(
            GUIDANCE,
            name,
            lambda f, c, w, name=name, plain=plain: (used.append((name, w)), plain(f, c, w))[1],
        )
    words = ["sample", "run", "-n", "5", "--condition", "4", "--guidance", "2.5"]
    main([*words, "--guidance-method", method, "-o", "a.csv"])
    assert used == [(method, 2.5)]


def test_conditions_need_a_run_that_knows_them(capsys):
    kinds(rows=40)
    main(["train", *QUICK, "--out", "plain"])
    words = ["--target", "kinds.csv", "--condition", "kind", "--condition-dropout", "0"]
    main(["train", *QUICK, *words, "--out", "sure"])
    main(["sample", "sure", "-n", "5", "--condition", "4"])
    capsys.readouterr()
    message = "--condition needs a run that was trained with --condition"
    assert message in refuse(capsys, "sample", "plain", "--condition", "1")
    message = "trained with --condition-dropout 0"
    assert message in refuse(capsys, "sample", "sure", "--condition", "4", "--guidance", "2")


# Bridges


@pytest.mark.parametrize("sigma", [0.5, 0.8])
def test_noise_of_samples_is_that_of_training(sigma):
    """Of the first step, from one point: variance sigma^2 h."""
    config = settings.Train(flow=settings.FlowOptions(method="sf2m", sigma=sigma))
    net = build.model(config, 2)
    options = replace(config.integration, solver="euler_maruyama", step_size=0.01)
    x0 = mx.zeros((20_000, 2))
    field = build.field(config, net)
    x = build.solve(field, x0, config, options, key=mx.random.key(0), ts=(0.3, 0.31)).xs[-1]
    assert np.array(x).std() == pytest.approx(sigma * 0.1, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["schroedinger", "exact_ot"])
def test_a_bridge_samples_its_data_with_noise_and_without(coupling):
    words = ["-m", "sf2m", "--sigma", "0.5", "--coupling", coupling, "--lr", "3e-3", "--out", "run"]
    main(["train", "--steps", "800", "--batch-size", "256", *words])
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


@pytest.mark.slow
def test_a_flow_from_noise_is_sampled_with_noise():
    words = ["--source", "normal", "-m", "cfm", "--lr", "3e-3", "--out", "run"]
    main(["train", "--steps", "800", "--batch-size", "256", *words])
    main(["sample", "run", "-n", "1000", "--solver", "sra1", "-o", "new.npy"])
    data = np.array(moons(1000, key=mx.random.key(9)))
    assert energy_distance(np.load("new.npy"), data) < 0.1


def test_steps_of_a_block_share_one_plan():
    """Its pairs are nearer than those of plans of one batch each."""
    costs = []
    for block in ("1", "8"):
        config = settings.parse(["-m", "otcfm", "--batch-size", "32", "--plan-steps", block])
        batches = build.batches(config, build.problem(config))
        x0, x1 = (np.concatenate([batches(k)[name] for k in range(8)]) for name in ("x0", "x1"))
        costs.append(((x0 - x1) ** 2).sum(1).mean())
    assert costs[1] < 0.95 * costs[0]


# Semidiscrete transport

SEMIDISCRETE = ["--target", "data.csv", "--coupling", "semidiscrete"]


def test_a_semidiscrete_run_pairs_by_one_map_to_all_rows(capsys):
    """The library's map, nearer than plans of one batch, with every row as often as the others."""
    table()
    main(["train", *QUICK, *SEMIDISCRETE, "--out", "run"])
    assert "fitting the coupling to 54 rows" in capsys.readouterr().err
    config = settings.read_config("run/config.yaml")
    problem = build.problem(config)
    fitted = load_semidiscrete("run/potential.safetensors")
    batches = build.batches(config, problem, potential=fitted)
    drawn = [batches(k) for k in range(300)]
    x0, x1 = (np.concatenate([batch[name] for batch in drawn]) for name in ("x0", "x1"))
    assert len(x0) == 300 * 16
    _, j = semidiscrete(fitted, problem.reference)(x0, problem.reference)
    np.testing.assert_array_equal(x1, problem.reference[np.array(j)])
    counts = np.bincount(j, minlength=54)
    assert ((counts - len(j) / 54) ** 2).sum() / (len(j) / 54) < 200  # chi-square, 53 degrees
    words = ["--target", "data.csv", "--coupling", "exact_ot", "--batch-size", "16"]
    by_batch = build.batches(settings.parse(words), problem)
    drawn = [by_batch(k) for k in range(300)]
    y0, y1 = (np.concatenate([batch[name] for batch in drawn]) for name in ("x0", "x1"))
    assert ((x0 - x1) ** 2).sum(1).mean() < 0.8 * ((y0 - y1) ** 2).sum(1).mean()


def test_a_semidiscrete_run_goes_on_bit_for_bit_with_its_potential(monkeypatch, capsys):
    table()
    table(name="before.csv", rows=600)
    words = [*QUICK, *SEMIDISCRETE, "--source", "before.csv"]
    main(["train", *words, "--out", "a"])
    main(["train", *words, "--out", "b", "--steps", "2"])
    monkeypatch.setattr(build, "fit_semidiscrete", None)
    main(["train", "--resume", "b", "--steps", "4"])
    assert Path("a/samples.csv").read_bytes() == Path("b/samples.csv").read_bytes()
    capsys.readouterr()
    assert "--seed was 0 in b" in refuse(capsys, "train", "--resume", "b", "--seed", "1")
    Path("b/potential.safetensors").unlink()
    message = "b/potential.safetensors is missing"
    assert message in refuse(capsys, "train", "--resume", "b", "--steps", "6")


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


def test_a_fit_that_is_stopped_or_has_no_folder_says_so(monkeypatch, capsys):
    """The folder is looked at before the fit, which may take minutes."""

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    table()
    Path("run").mkdir()
    Path("run/mine").touch()
    monkeypatch.setattr(build, "fit_semidiscrete", stopped)
    words = ["train", *QUICK, *SEMIDISCRETE, "--out"]
    assert "--out run is there already" in refuse(capsys, *words, "run")
    with pytest.raises(SystemExit) as stop:
        main([*words, "new"])
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "flowmlx: interrupted"
    assert not Path("new").exists()


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, capsys):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied", "/of/nobody/.config.x3.yaml")

    table()
    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(SystemExit) as stop:
        main(["train", *QUICK, "--target", "data.csv", "--out", "run"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("run/data.json: Permission denied\n")


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
    """Two Euler steps go nearly where many do, which they did not before."""
    words = ["-m", "cfm", "--steps", "1500", "--batch-size", "256", "--lr", "3e-3"]
    main(["train", *words, "--source", "normal", "--out", "first"])
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


def test_reflow_takes_the_data_and_the_condition_of_its_run():
    kinds(rows=60)
    main(["train", *QUICK, "--target", "kinds.csv", "--condition", "kind", "--out", "first"])
    main(["train", *QUICK, "--reflow", "first", "--reflow-pairs", "90", "--out", "second"])
    config = settings.read_config("second/config.yaml")
    assert (config.data.condition, config.data.source) == ("kind", "normal")
    assert config.flow.method == "cfm"
    first, problem = runs.load(runs.open_run("first")), build.problem(config)
    x0, x1, cond = runs.reflow_pairs(config, problem)
    told = build.under(first.field, mx.array(cond[:5]))
    ends = build.solve(
        told, mx.array(x0[:5]), first.config, first.config.integration, key=mx.random.key(0)
    )
    np.testing.assert_allclose(x1[:5], np.array(ends.xs[-1]), atol=1e-3)
    assert np.bincount(cond).min() > 0
    batch = build.batches(config, problem, (x0, x1, cond))(0)
    rows = [np.flatnonzero((x0 == row).all(1))[0] for row in np.array(batch["x0"])]
    np.testing.assert_array_equal(x1[rows], batch["x1"])
    np.testing.assert_array_equal(cond[rows], batch["cond"])


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


@pytest.mark.parametrize("pairs", [50, 70])
def test_a_reflow_makes_as_many_pairs_as_asked_for(pairs, monkeypatch):
    made, plain = [], build.reflow_pairs
    monkeypatch.setattr(
        build,
        "reflow_pairs",
        lambda f, x0, *a, **k: (made.append(len(x0)), plain(f, x0, *a, **k))[1],
    )
    main(["train", *QUICK, "--out", "first"])
    words = ["-m", "cfm", "--reflow", "first", "--reflow-pairs", str(pairs)]
    main(["train", *QUICK, *words, "--out", "run"])
    assert made == [pairs]


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

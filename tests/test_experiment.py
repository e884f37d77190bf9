"""The rooms behind the command, by their own functions: from options to data, losses and flows."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from commands import (
    LONG,
    QUICK,
    SEMIDISCRETE,
    SNAPSHOTS,
    cells,
    kinds,
    refuse,
    start,
    table,
)
from flowmlx import sampling
from flowmlx.bridges import under
from flowmlx.command.cli import main
from flowmlx.couplings import independent
from flowmlx.couplings.semidiscrete import load_semidiscrete, semidiscrete
from flowmlx.data.arrays import read
from flowmlx.experiment import dynamics, evaluate, pairing, resolve, runs
from flowmlx.experiment import folder as runfiles
from flowmlx.experiment import options as settings
from flowmlx.experiment.experiment import prepare
from flowmlx.experiment.loading import load
from flowmlx.experiment.own import Own, only_in_training
from flowmlx.experiment.rules import Resolved, check
from flowmlx.losses import flow_matching_loss
from flowmlx.metrics import wasserstein
from flowmlx.paths import Linear
from flowmlx.solvers import SolverError, Status
from flowmlx.spaces.ends import Rows
from flowmlx.training import checkpoint

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


def data_of(options):
    resolved = check(options)
    return resolve.kind(resolved).read(resolve.request(resolved))


def state_of(run):
    options = settings.read_config(run.config)
    return resolve.training_state(check(options), load(run.folder).space)


def arrays(batches, steps, *names):
    drawn = [batches(k) for k in range(steps)]
    return [np.concatenate([batch[name] for batch in drawn]) for name in names]


@pytest.mark.parametrize(
    ("name", "path", "coupling"),
    [
        ("cfm", "Linear", "independent"), ("otcfm", "Linear", "exact_ot"),
        ("vp", "Trigonometric", "independent"), ("fm", "Target", "independent"),
        ("sbcfm", "Bridge", "schroedinger"), ("sf2m", "Bridge", "schroedinger"),
    ],
)  # fmt: skip
def test_methods_mean_what_the_field_means_by_them(name, path, coupling):
    resolved = Resolved(settings.Train(flow=settings.FlowOptions(method=name, sigma=0.1)))
    assert type(resolved.path_object).__name__ == path
    assert resolved.named[1:] == (coupling, name == "sf2m")


@pytest.mark.parametrize("regress", ["velocity", "x1", "x0"])
def test_what_is_regressed_is_what_the_option_says(regress, key):
    flow = settings.FlowOptions(method="cfm", regress=regress, sigma=0.0)
    x0, x1 = mx.random.normal((2, 64, 2), key=key)
    given = resolve.pair_loss(check(settings.Train(flow=flow)))(lambda t, x: x, x0, x1, key=key)
    plain = flow_matching_loss(Linear(), regress=regress)(lambda t, x: x, x0, x1, key=key)
    assert given.item() == plain.item()


def test_a_row_is_fixed_by_the_seed_alone(monkeypatch):
    """Bit for bit, whatever the number of rows and the batch size; with classes and noise too."""
    monkeypatch.setattr(sampling, "LEAST_BLOCK", 16)
    monkeypatch.setattr(sampling, "MOST_BLOCK", 64)
    kinds = [f"{a},{b},{'red' if k % 2 else 'blue'}" for k, (a, b, _) in enumerate(table())]
    Path("classes.csv").write_text("\n".join(["a,b,colour", *kinds]))
    words = ["--target", "classes.csv", "--condition", "colour", "--method", "cfm", "--out", "run"]
    main(["train", *QUICK, *words])

    def rows(solver, n, batch_size):
        words = ["--solver", solver, "--seed", "3", "--condition", "red", "-o", "new.npy"]
        steps = [] if solver == "dopri5" else ["--step-size", "0.25"]
        main(["sample", "run", "-n", str(n), "-b", str(batch_size), *words, *steps])
        return np.load("new.npy")

    for solver in ("dopri5", "rk4", "sra1"):
        whole = rows(solver, 150, 1000)
        assert len(np.unique(whole, axis=0)) == 150
        for n, batch_size in ((150, 7), (1, 10), (15, 4), (33, 64)):
            np.testing.assert_array_equal(rows(solver, n, batch_size), whole[:n], err_msg=solver)


def test_samples_are_the_ends_of_the_flow():
    """A field that is (30, -20) everywhere moves the standard normal there."""
    main(["train", *QUICK, "--source", "normal", "--out", "run"])
    run = runfiles.open_run("run")
    state = state_of(run)
    checkpoint.load(run.checkpoints, state)
    last = state.ema["layers"][-1]
    last["weight"], last["bias"] = mx.zeros_like(last["weight"]), mx.array([30.0, -20.0])
    state.step += 1
    runs.save(run, state)
    main(["sample", "run", "-n", "900", "-o", "new.csv"])
    new = read("new.csv").values
    np.testing.assert_allclose(new.mean(0), [30, -20], atol=0.15)
    np.testing.assert_allclose(new.std(0), [1, 1], atol=0.1)


def test_held_out_rows_are_never_trained_on():
    values = table()
    config = settings.parse(["--target", "data.csv", "--holdout", "0.25"])
    experiment = prepare(check(replace(config, training=replace(config.training, batch_size=16))))
    test = experiment.data.test.points
    assert test.shape == (15, 3)
    (seen,) = arrays(experiment.pairing.batches, 6, "x1")
    rows = np.concatenate([np.unique(seen, axis=0), test])
    both = experiment.data.space.transform.inverse(rows)
    assert len(both) == len(values)
    np.testing.assert_allclose(np.sort(both, axis=0), np.sort(values, axis=0), rtol=1e-5, atol=1e-5)


def test_solver_that_fails_after_training_says_how_to_go_on(capsys, monkeypatch):
    def fail(*_, **__):
        raise SolverError(Status.STAGNATION, 0.5, 0.1, "stuck.")

    with monkeypatch.context() as patch:
        patch.setattr(dynamics, "sample", fail)
        with pytest.raises(SystemExit) as stop:
            main(["train", *QUICK, "--out", "run"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "trained and saved" in error
    assert "flowmlx train --resume run --rtol" in error
    main(["train", "--resume", "run"])
    assert "trajectories.png" in capsys.readouterr().out


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
        run = runfiles.open_run("run")
        assert checkpoint.load(run.checkpoints, state_of(run)).step > before
        runfiles.read_metrics(run)
        words = ["train", "--resume", "run"]


def test_plot_samples_again_after_more_training():
    main(["train", *QUICK, "--out", "run"])
    run = runfiles.open_run("run")
    state = state_of(run)
    checkpoint.load(run.checkpoints, state)
    state.step = 5
    runs.save(run, state)
    main(["plot", "run"])
    with np.load("run/flow.npz") as flow:
        assert flow["step"] == 5
    assert json.loads(Path("run/results.json").read_text())["step"] == 5


def test_the_floor_has_the_classes_of_the_held_out_rows():
    """As the samples have, beside which it stands: classes lie 10 apart, their rows 1."""
    kinds(rows=200)
    words = ["--target", "kinds.csv", "--condition", "kind"]
    data = data_of(settings.parse(words))
    found = evaluate.distances(data, data.train.points)
    sides = data.test, data.train
    of_class = [wasserstein(*(rows[labels == k] for rows, labels in sides)) for k in range(3)]
    assert found["w2_floor"] < 2 * max(of_class)
    assert found["energy_distance_floor"] < found["energy_distance"]
    # Of as many rows as there are: a few would be further from the held-out ones.
    few = data._replace(train=Rows(*(part[:20] for part in data.train)))
    small = evaluate.distances(few, data.train.points)
    assert found["energy_distance_floor"] < 0.8 * small["energy_distance_floor"]


def test_the_likelihood_of_a_conditional_run_is_that_of_its_condition():
    """It is what it was under the condition alone: other conditions would give another number."""
    kinds(rows=60)
    main(["train", *QUICK, "--target", "kinds.csv", "--condition", "kind", "--out", "run"])
    flow = load("run")
    data = runs.open_data(runfiles.open_run("run"), check(flow.options))
    options = {"rows": 100, "divergence": "exact"}
    right = evaluate.likelihood(flow, data, **options)
    assert right["nll_rows"] == len(data.test.points) == 6
    other = data._replace(test=data.test._replace(cond=(data.test.cond + 1) % 3))
    wrong = evaluate.likelihood(flow, other, **options)
    assert right["nll"] != wrong["nll"]


@pytest.mark.parametrize("condition", ["kind", "weight"])
@pytest.mark.parametrize("coupling", ["exact_ot", "sinkhorn", "semidiscrete"])
def test_couplings_respect_the_condition(coupling, condition):
    """Over a condition the source is normal, and by distance alone it would not be."""
    kinds(rows=120)
    words = ["--target", "kinds.csv", "--condition", condition, "--batch-size", "256"]
    config = settings.parse([*words, "--coupling", coupling, "-m", "cfm"])

    def dependence(config):
        x0, cond = arrays(prepare(check(config)).pairing.batches, 3, "x0", "cond")
        if cond.ndim > 1:
            return abs(np.corrcoef(x0.T, cond[:, 0])[-1, :-1]).max()
        return max(abs(x0[cond == kind].mean(0)).max() for kind in range(3))

    told = replace(config, flow=replace(config.flow, condition_cost=1e-6))
    assert dependence(config) < 0.15
    assert dependence(told) > 0.3


@pytest.mark.parametrize("sigma", [0.5, 0.8])
def test_noise_of_samples_is_that_of_training(sigma):
    """Of the first step, from one point: variance sigma^2 h."""
    config = settings.Train(flow=settings.FlowOptions(method="sf2m", sigma=sigma))
    flow = prepare(check(config)).flow()
    solver = replace(config.integration, solver="euler_maruyama", step_size=0.01)
    x0, field, key = mx.zeros((20_000, 2)), flow.dynamics.field(flow.net), mx.random.key(0)
    x = flow.dynamics.solve(field, x0, solver, key=key, ts=(0.3, 0.31)).xs[-1]
    assert np.array(x).std() == pytest.approx(sigma * 0.1, rel=0.02)


def test_noise_of_snapshots_passes_over_the_one_that_was_left_out():
    """Of one step in an interval of length l: variance sigma^2 h / l, and a hundredth of the
    shortest where no step is given. Days 0, 2, 3 and 8, without 3: lengths 1/4 and 3/4."""
    cells()
    words = [*SNAPSHOTS, "--leave-out", "3", "-m", "sf2m", "--sigma", "0.5"]
    config = settings.parse(words)
    flow = prepare(check(config)).flow()
    solver = replace(config.integration, solver="euler_maruyama")
    x0, field, key = mx.zeros((20_000, 2)), flow.dynamics.field(flow.net), mx.random.key(0)
    for day, length in ((1, 1 / 4), (2.5, 3 / 4), (5, 3 / 4)):
        ts, one = (day / 8, day / 8 + 0.01), replace(solver, step_size=0.01)
        x = flow.dynamics.solve(field, x0, one, key=key, ts=ts).xs[-1]
        assert np.array(x).std() == pytest.approx(0.5 * math.sqrt(0.01 / length), rel=0.02)
    solution = flow.dynamics.solve(field, x0[:2], solver, key=key, ts=(0.0, 0.01))
    assert solution.stats.accepted == 4


def test_steps_of_a_block_share_one_plan():
    """Its pairs are nearer than those of plans of one batch each."""
    costs = []
    for block in ("1", "8"):
        config = settings.parse(["-m", "otcfm", "--batch-size", "32", "--plan-steps", block])
        x0, x1 = arrays(prepare(check(config)).pairing.batches, 8, "x0", "x1")
        costs.append(((x0 - x1) ** 2).sum(1).mean())
    assert costs[1] < 0.95 * costs[0]


def test_a_flow_from_noise_is_sampled_with_noise():
    """By `sample_sde` where there is no score beside the velocity."""
    config = settings.parse(["-m", "cfm", "--source", "normal"])
    flow = prepare(check(config)).flow()
    solver = replace(config.integration, solver="sra1", step_size=0.1)
    x0, field = mx.random.normal((50, 2), key=mx.random.key(1)), flow.dynamics.field(flow.net)
    ends = []
    for key in (mx.random.key(0), mx.random.key(2)):
        ends.append(np.array(flow.dynamics.solve(field, x0, solver, key=key).xs[-1]))
        expected = sampling.sample_sde(field, x0, key=key, method="sra1", step_size=0.1)
        np.testing.assert_array_equal(ends[-1], expected.xs[-1])
    assert (ends[0] != ends[1]).all()


def test_a_semidiscrete_run_pairs_by_one_map_to_all_rows(capsys):
    """The library's map, nearer than plans of one batch, with every row as often as the others."""
    table()
    main(["train", *QUICK, *SEMIDISCRETE, "--out", "run"])
    assert "fitting the coupling to 54 rows" in capsys.readouterr().err
    config = settings.read_config("run/config.yaml")
    experiment = prepare(check(config), before=runfiles.open_run("run"))
    rows = experiment.data.train.points
    fitted = load_semidiscrete("run/potential.safetensors")
    x0, x1 = arrays(experiment.pairing.batches, 300, "x0", "x1")
    assert len(x0) == 300 * 16
    _, j = semidiscrete(fitted, rows)(x0, rows)
    np.testing.assert_array_equal(x1, rows[np.array(j)])
    counts = np.bincount(j, minlength=54)
    assert ((counts - len(j) / 54) ** 2).sum() / (len(j) / 54) < 200  # chi-square, 53 degrees
    words = ["--target", "data.csv", "--coupling", "exact_ot", "--batch-size", "16"]
    y0, y1 = arrays(prepare(check(settings.parse(words))).pairing.batches, 300, "x0", "x1")
    assert ((x0 - x1) ** 2).sum(1).mean() < 0.8 * ((y0 - y1) ** 2).sum(1).mean()


def test_a_semidiscrete_run_goes_on_bit_for_bit_with_its_potential(monkeypatch, capsys):
    table()
    table(name="before.csv", rows=600)
    words = [*QUICK, *SEMIDISCRETE, "--source", "before.csv"]
    main(["train", *words, "--out", "a"])
    main(["train", *words, "--out", "b", "--steps", "2"])
    monkeypatch.setattr(pairing, "fit_semidiscrete", None)
    main(["train", "--resume", "b", "--steps", "4"])
    assert Path("a/samples.csv").read_bytes() == Path("b/samples.csv").read_bytes()
    capsys.readouterr()
    assert "--seed was 0 in b" in refuse(capsys, "train", "--resume", "b", "--seed", "1")
    Path("b/potential.safetensors").unlink()
    message = "b/potential.safetensors is missing"
    assert message in refuse(capsys, "train", "--resume", "b", "--steps", "6")


def test_a_fit_that_is_stopped_or_has_no_folder_says_so(monkeypatch, capsys):
    """The folder is looked at before the fit, which may take minutes."""

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    table()
    Path("run").mkdir()
    Path("run/mine").touch()
    monkeypatch.setattr(pairing, "fit_semidiscrete", stopped)
    words = ["train", *QUICK, *SEMIDISCRETE, "--out"]
    assert "--out run is there already" in refuse(capsys, *words, "run")
    with pytest.raises(SystemExit) as stop:
        main([*words, "new"])
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "flowmlx: interrupted"
    assert not Path("new").exists()


def test_reflow_takes_the_data_and_the_condition_of_its_run():
    kinds(rows=60)
    main(["train", *QUICK, "--target", "kinds.csv", "--condition", "kind", "--out", "first"])
    main(["train", *QUICK, "--reflow", "first", "--reflow-pairs", "90", "--out", "second"])
    config = settings.read_config("second/config.yaml")
    assert (config.data.condition, config.data.source) == ("kind", "normal")
    assert config.flow.method == "cfm"
    first = load("first")
    x0, x1, cond = arrays(prepare(check(config)).pairing.batches, 6, "x0", "x1", "cond")
    field = under(first.dynamics.field(first.net), mx.array(cond[:5]))
    solver = first.options.integration
    ends = first.dynamics.solve(field, mx.array(x0[:5]), solver, key=mx.random.key(0))
    np.testing.assert_allclose(x1[:5], np.array(ends.xs[-1]), atol=1e-3)
    assert np.bincount(cond).min() > 0


@pytest.mark.parametrize("pairs", [50, 70])
def test_a_reflow_makes_as_many_pairs_as_asked_for(pairs, monkeypatch):
    made, plain = [], pairing.reflow_pairs
    monkeypatch.setattr(
        pairing,
        "reflow_pairs",
        lambda f, x0, *a, **k: (made.append(len(x0)), plain(f, x0, *a, **k))[1],
    )
    main(["train", *QUICK, "--out", "first"])
    words = ["-m", "cfm", "--reflow", "first", "--reflow-pairs", str(pairs)]
    main(["train", *QUICK, *words, "--out", "run"])
    assert made == [pairs]


@pytest.mark.parametrize("options", [{"reflow": "first"}, {"method": "fm"}], ids=str)
def test_a_coupling_of_ones_own_that_would_have_no_effect_is_refused(options):
    options = settings.from_keywords({"method": "cfm"}, **options)
    with pytest.raises(ValueError, match=r"^coupling is one of your own"):
        check(options, Own(coupling=lambda x0, x1, *, key: independent(x0, x1, key=key)))
    for own in (Own(), Own(coupling=independent), Own(coupling=only_in_training)):
        check(options, own)

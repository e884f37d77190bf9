"""`flowmlx.train`, `flowmlx.load` and `Flow`: what a user of Python meets first."""

import copy
import inspect
import json
import signal
import threading
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy import stats

import flowmlx
from flowmlx.bridges import TwoHeads
from flowmlx.command.cli import main
from flowmlx.couplings import exact_ot, independent
from flowmlx.data.arrays import Standardizer
from flowmlx.data.streams import generated
from flowmlx.data.toy import moons, normal
from flowmlx.keys import fold_in, generator
from flowmlx.losses import flow_matching_loss
from flowmlx.nets import MLP
from flowmlx.paths import AffinePath, Bridge, Linear, Trigonometric
from flowmlx.training import TrainState, fit, paired_batches

QUICK = {"steps": 4, "batch_size": 16, "width": 8, "depth": 1, "log_every": 2}
WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
pytestmark = pytest.mark.filterwarnings("ignore:constant")


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """As `without_compile`, for what the module trains once."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def frame(rows=60):
    """Heights far from 1, a constant, widths of another size, and a class of text."""
    rng = np.random.default_rng(0)
    kind = rng.choice(["cat", "dog"], rows)
    height = 1000 + 100 * rng.normal(size=rows) + 300 * (kind == "dog")
    width = 1e-3 * rng.normal(size=rows)
    return pd.DataFrame({"height": height, "one": 7.25, "width": width, "kind": kind})


def numbers():
    return frame().drop(columns="kind")


def seen(rows=30):
    """Snapshots of a cloud that moves by 5 in the two days from day 10 to day 12."""
    rng = np.random.default_rng(1)
    day = np.repeat([10.0, 11.0, 12.0], rows)
    x, y = rng.normal(size=(2, 3 * rows)) + 2.5 * (day - 10)
    return pd.DataFrame({"day": day, "x": x, "y": y, "kind": rng.integers(0, 2, 3 * rows)})


def gaussian(n, *, key):
    """A simulator of MLX: N(5, 2^2) and N(-1, 0.5^2)."""
    return mx.array([5.0, -1.0]) + mx.array([2.0, 0.5]) * mx.random.normal((n, 2), key=key)


def on_the_host(n, *, key):
    """The same in NumPy."""
    return [5.0, -1.0] + [2.0, 0.5] * generator(key).normal(size=(n, 2))


def values(rows):
    """Rows of any form as an array."""
    return rows.to_pandas().to_numpy() if isinstance(rows, pa.Table) else np.array(rows)


def weights(flow):
    return {name: np.array(w) for name, w in nn.utils.tree_flatten(flow.net.parameters())}


def labels(flow):
    """The classes of its condition, if any."""
    conditioning = flow.space.conditioning
    return conditioning.columns.labels if conditioning.names else ()


def assert_same(flow, other):
    """Two flows have the same weights and draw the same rows, bit for bit."""
    ours, theirs = weights(flow), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(values(flow.sample(5, seed=2)), values(other.sample(5, seed=2)))


# Against closed forms

MEAN, SCALE = np.array([1000.0, 7.25, -2e-3]), np.array([100.0, 0.0, 1e-3])  # of the transform
M, S = np.array([0.5, -1.0]), np.array([2.0, 0.3])  # of the two columns that vary, in its units


class Exact(nn.Module):
    """The velocity of N(0, 1) -> N(m, s^2) along the linear path."""

    def __init__(self, m=M, s=S):
        super().__init__()
        self.m, self.s = mx.array(m, mx.float32), mx.array(s, mx.float32)

    def __call__(self, t, x):
        t = mx.reshape(t, (-1, 1))
        a = t * t * self.s**2 + (1 - t) ** 2
        return self.m + (t * self.s**2 - (1 - t)) / a * (x - t * self.m)


def exact_flow(**changed):
    transform = Standardizer(("height", "one", "width"), MEAN, SCALE)
    flow = flowmlx.Flow.of(Exact(), like=numbers(), transform=transform)
    tight = replace(flow.options.integration, rtol=1e-6, atol=1e-6)
    return replace(flow, options=replace(flow.options, integration=tight), **changed)


def at(t, z0):
    """Where a point `z0` of the source is at time t, in model units."""
    return t * M + np.sqrt(t**2 * S**2 + (1 - t) ** 2) * z0


def rows_of(z):
    """Rows in the user's units of points in model units."""
    varying = MEAN[[0, 2]] + SCALE[[0, 2]] * z
    return np.stack([varying[:, 0], np.full(len(z), 7.25), varying[:, 1]], axis=1)


@pytest.fixture(scope="module")
def exact():
    return exact_flow()


@pytest.fixture(scope="module")
def z0():
    return np.random.default_rng(0).normal(size=(6, 2))


def test_log_prob_is_that_of_the_rows_in_their_own_units(exact, z0):
    rows, (deviations, means) = rows_of(at(1, z0)), (SCALE[[0, 2]] * S, rows_of(M[None])[0, [0, 2]])
    expected = stats.norm(means, deviations).logpdf(rows[:, [0, 2]]).sum(1)
    assert np.allclose(exact.log_prob(rows), expected, atol=1e-3)
    assert abs(exact.log_scale - np.log(100 * 1e-3)) < 1e-12
    estimate = exact.log_prob(rows, divergence="hutchinson", seed=1)
    assert np.allclose(estimate, expected, atol=1e-3)  # exact as well: the field has no mixed terms


def test_samples_have_the_moments_of_the_target(exact):
    rows = exact.sample(4000).to_numpy()
    assert (rows[:, 1] == 7.25).all()
    deviations = SCALE[[0, 2]] * S
    error = (rows[:, [0, 2]].mean(0) - rows_of(M[None])[0, [0, 2]]) / deviations
    assert np.abs(error).max() < 4 / 4000**0.5
    assert np.allclose(rows[:, [0, 2]].std(0), deviations, rtol=0.05)


def test_samples_at_a_time_on_the_way_are_distributed_as_there(exact):
    data = replace(exact.options.data, time_column="day", source="auto")
    solver = replace(exact.options.integration, solver="rk4", step_size=0.05, grid="sine")
    options = replace(exact.options, data=data, integration=solver)
    flow = replace(exact, space=replace(exact.space, times=(10.0, 14.0)), options=options)
    found = (flow.sample(4000, at_time=12.0).to_numpy() - MEAN)[:, [0, 2]] / SCALE[[0, 2]]
    deviations = 0.5 * np.sqrt(S**2 + 1)
    assert np.abs((found.mean(0) - 0.5 * M) / deviations).max() < 4 / 4000**0.5
    assert np.allclose(found.std(0), deviations, rtol=0.05)


@pytest.mark.parametrize("times", [[0.0, 1.0], [10.0, 14.0]])
def test_velocity_is_in_rows_per_time(exact, z0, times):
    flow = replace(exact, space=replace(exact.space, times=tuple(times)))
    rows, ahead = rows_of(at(0.3, z0)), rows_of(at(0.301, z0))
    behind, duration = rows_of(at(0.299, z0)), times[1] - times[0]
    found = flow.velocity(rows, times[0] + 0.3 * duration)
    expected = (ahead - behind) / (0.002 * duration)
    assert np.allclose(found / [100, 1, 1e-3], expected / [100, 1, 1e-3], atol=1e-4)
    assert (found[:, 1] == 0).all()


@pytest.mark.parametrize("times", [[0.0, 1.0], [10.0, 14.0]])
@pytest.mark.parametrize("way", [1, -1])
def test_trajectory_is_the_way_of_each_row(exact, z0, times, way):
    flow = replace(exact, space=replace(exact.space, times=tuple(times)))
    unit = [0.2, 0.5, 1.0][::way]
    asked = [times[0] + t * (times[1] - times[0]) for t in unit]
    found = flow.trajectory(rows_of(at(unit[0], z0)), asked)
    for t, rows in zip(unit, found, strict=True):
        assert np.allclose(rows / [100, 1, 1e-3], rows_of(at(t, z0)) / [100, 1, 1e-3], atol=1e-3)
        assert (rows[:, 1] == 7.25).all()


def test_encode_and_decode_are_the_ends_of_the_way(exact, z0):
    rows = rows_of(at(1, z0))
    assert np.allclose(exact.encode(rows), z0, atol=1e-4)
    decoded = exact.decode(mx.array(z0, mx.float32))
    assert isinstance(decoded, pd.DataFrame)
    assert [*decoded] == ["height", "one", "width"]
    assert np.allclose(decoded / [100, 1, 1e-3], rows / [100, 1, 1e-3], atol=1e-4)


def test_blocks_of_rows_do_not_change_what_is_found(exact, z0, monkeypatch):
    rows = rows_of(at(1, z0))
    whole = exact.log_prob(rows), np.array(exact.encode(rows))
    monkeypatch.setattr("flowmlx.experiment.flow.BATCH", 4)
    assert np.allclose(exact.log_prob(rows), whole[0], atol=1e-3)
    assert np.allclose(exact.encode(rows), whole[1], atol=1e-4)


def test_backwards_with_any_solver_of_the_training(exact, z0):
    """Also one with noise, with steps on a grid, or that knows the path."""
    for changes in (
        {"solver": "rk4", "step_size": 0.02, "grid": "sine"},
        {"solver": "unipc_2"},
        {"solver": "sra1"},
    ):
        solver = replace(exact.options.integration, **changes)
        flow = replace(exact, options=replace(exact.options, integration=solver))
        assert np.allclose(flow.encode(rows_of(at(1, z0))), z0, atol=2e-3), changes
        assert np.allclose(flow.decode(mx.array(z0)), rows_of(at(1, z0)), rtol=1e-3, atol=1e-6)


# Kinds

TRAININGS = {
    "plane": ("moons", {}),
    "table": (numbers, {}),
    "condition": (frame, {"condition": "kind", "method": "otcfm"}),
    "snapshots": (seen, {"time_column": "day"}),
    "classes of snapshots": (seen, {"time_column": "day", "condition": "kind"}),
    "score": (numbers, {"method": "sf2m", "sigma": 1.0}),
    "snapshots with a score": (seen, {"time_column": "day", "method": "sf2m", "sigma": 1.0}),
    "semidiscrete": (numbers, {"method": "cfm", "coupling": "semidiscrete"}),
    "simulation": (lambda: gaussian, {}),
    "simulation on the host": (lambda: on_the_host, {}),
    "rows as the source": (numbers, {"source": numbers(), "method": "cfm"}),
    "prediction": (numbers, {"prediction": "x1"}),
}


def of(target):
    return target() if callable(target) else target


@pytest.fixture(scope="module")
def trained():
    """Flows by the name of their training, each trained once."""
    flows = {}

    def get(name):
        if name not in flows:
            target, options = TRAININGS[name]
            flows[name] = flowmlx.train(of(target), **QUICK, **options)
        return flows[name]

    return get


@pytest.mark.parametrize("name", TRAININGS)
def test_a_flow_of_every_kind_is_saved_and_loaded_as_it_was(name, trained):
    flow = trained(name)
    flow.save("flow")
    again = flowmlx.load("flow")
    assert_same(flow, again)
    assert repr(again) == repr(flow)
    assert again.step == flow.step == 4
    for label in labels(flow):
        told, other = (values(one.sample(5, condition=label)) for one in (flow, again))
        assert np.array_equal(told, other)
        assert not np.array_equal(told, values(flow.sample(5)))
    rows = again.sample(5)
    assert type(rows) is type(flow.sample(1))
    if flow.source.log_prob is not None:
        assert np.array_equal(flow.log_prob(rows), again.log_prob(rows))
    assert np.isfinite(values(flow.velocity(rows, np.mean(flow.space.times)))).all()
    back = values(again.decode(again.encode(rows)))
    spread = np.where(flow.space.transform.scale > 0, flow.space.transform.scale, 1)
    assert np.abs((back - values(rows)) / spread).max() < 0.01
    again.save("another")
    assert_same(flow, flowmlx.load("another"))


@pytest.mark.parametrize("name", ["table", "condition", "snapshots", "simulation"])
def test_samples_are_those_that_the_command_writes(name, trained):
    flow = trained(name)
    flow.save("flow")
    words, options = [], {}
    if name == "condition":
        words, options = ["--condition=dog", "--guidance=2"], {"condition": "dog", "guidance": 2}
    if name == "snapshots":
        words, options = ["--at-time=10.5"], {"at_time": 10.5}
    main(["sample", "flow", "-n", "1030", "--seed", "3", "-o", "new.npy", *words])
    rows = values(flow.sample(1030, seed=3, **options))
    assert np.array_equal(rows, np.load("new.npy").astype(rows.dtype))


def test_the_solver_of_samples_is_chosen(trained):
    flow = trained("score")
    plain, noisy = flow.sample(20), flow.sample(20, solver="sra1", step_size=0.1)
    assert not np.allclose(plain, noisy)
    assert np.array_equal(noisy, flow.sample(20, solver="sra1", step_size=0.1))
    with pytest.raises(ValueError, match="score"):
        trained("table").sample(2, solver="sra1")


def test_a_condition_is_a_value_its_text_or_a_column(trained):
    flow, rows = trained("condition"), frame()
    dogs = rows[rows.kind == "dog"]
    assert np.array_equal(flow.sample(3, condition="dog"), flow.sample(3, condition=("dog",)))
    assert not np.array_equal(flow.sample(3, condition="dog"), flow.sample(3, condition="cat"))
    weighed = [flow.sample(3, condition="dog", guidance=weight) for weight in (0, 1, 2)]
    assert np.allclose(weighed[0], flow.sample(3), rtol=1e-4)  # as without a condition
    assert np.array_equal(weighed[1], flow.sample(3, condition="dog"))
    assert not np.allclose(weighed[2], weighed[1], rtol=1e-4)
    own, told = flow.log_prob(rows)[rows.kind == "dog"], flow.log_prob(dogs, condition="dog")
    assert np.allclose(own, told, atol=1e-4)
    assert not np.allclose(told, flow.log_prob(dogs, condition="cat"), atol=1e-4)
    assert not np.allclose(told, flow.log_prob(dogs.drop(columns="kind")), atol=1e-4)
    for ask in (flow.velocity, lambda rows, t, **told: flow.trajectory(rows, [t, 1.0], **told)[1]):
        own, told = (ask(dogs, 0.5), ask(dogs, 0.5, condition="dog"))
        assert np.allclose(own, told, rtol=1e-5)
        assert not np.allclose(own, ask(dogs, 0.5, condition="cat"), rtol=1e-5)
    assert np.array_equal(flow.encode(dogs), flow.encode(dogs, condition="dog"))


def test_rows_in_blocks_keep_their_own_conditions(trained, monkeypatch):
    flow, rows = trained("condition"), frame(10)
    whole = flow.log_prob(rows), np.array(flow.encode(rows)), flow.trajectory(rows, [1, 0.5])[1]
    monkeypatch.setattr("flowmlx.experiment.flow.BATCH", 4)
    assert np.allclose(flow.log_prob(rows), whole[0], atol=1e-4)
    assert np.allclose(flow.encode(rows), whole[1], atol=1e-3)
    assert np.allclose(flow.trajectory(rows, [1, 0.5])[1], whole[2], rtol=1e-3, atol=1e-6)


def test_a_class_is_a_number_of_any_library_or_a_truth():
    rows = numbers().assign(big=frame().height > 1100)
    flow = flowmlx.train(rows, condition="big", **QUICK)
    told = flow.sample(2, condition="1")
    for one in (1, True, np.True_, 1.0, np.int8(1), np.array(1), mx.array(1), [1]):
        assert np.array_equal(flow.sample(2, condition=one), told)
    assert np.array_equal(flow.encode(told, condition=True), flow.encode(told, condition=1))
    assert not np.array_equal(flow.sample(2, condition=False), told)


def test_conditions_that_are_numbers():
    rows = pd.DataFrame({"x": np.arange(40.0), "age": np.arange(40) / 7, "size": np.arange(40) % 9})
    flow = flowmlx.train(rows, condition=["age", "size"], **QUICK)
    one = flow.sample(2, condition=(1.5, 3))
    assert np.array_equal(one, flow.sample(2, condition="1.5,3"))
    assert np.array_equal(one, flow.sample(2, condition=[np.float64(1.5), np.int32(3)]))
    assert not np.array_equal(one, flow.sample(2, condition=(1.5, 4)))


def test_snapshots_start_from_the_rows_of_the_first_time(trained):
    flow = trained("snapshots")
    assert flow.space.times == (10.0, 11.0, 12.0)
    start = flow.source.start(200, key=mx.random.key(0))
    early = seen()[lambda rows: rows.day == 10]
    assert set(np.round(flow.space.transform.inverse(start)[:, 0], 3)) <= set(np.round(early.x, 3))
    with pytest.raises(ValueError, match="density"):
        flow.log_prob(early)
    with pytest.raises(ValueError, match="10 to 12"):
        flow.velocity(early, 0.5)


def test_a_reflow_is_trained_on_the_pairs_of_a_run():
    rows = numbers()
    flowmlx.train(rows, method="cfm", out="first", **QUICK)
    options = {"reflow": "first", "reflow_pairs": 50, **QUICK}
    flow = flowmlx.train(rows, **options)
    assert_same(flow, flowmlx.train(rows, **options))
    flow.save("second")
    assert_same(flow, flowmlx.load("second"))
    with pytest.raises(ValueError, match="is needed again"):
        flowmlx.train(**options)  # the rows of the first are not in its folder
    flowmlx.train("moons", method="cfm", source="normal", out="toy", **QUICK)
    again = flowmlx.train(reflow="toy", reflow_pairs=50, **QUICK)
    assert again.options.data.target == "moons"
    assert again.options.data.source == "normal"


LONGER = {**QUICK, "steps": 200, "log_every": 200, "lr": 0.02, "ema_decay": 0.9}


@pytest.mark.parametrize(
    "simulator", [gaussian, on_the_host, lambda n, *, key: gaussian(n, key=key)[:, 0]]
)
def test_a_simulator_is_drawn_anew_in_its_own_units(simulator):
    flow = flowmlx.train(simulator, **LONGER)
    rows = flow.sample(2000)
    assert isinstance(rows, mx.array if simulator is not on_the_host else np.ndarray)
    expected = [5.0, -1.0][: rows.shape[1]], [2.0, 0.5][: rows.shape[1]]
    assert np.allclose((values(rows).mean(0) - expected[0]) / expected[1], 0, atol=0.2)
    assert np.allclose(values(rows).std(0) / expected[1], 1, atol=0.25)


# Forms

FORMS = {
    "pandas": lambda rows: rows,
    "polars": lambda rows: pl.DataFrame(rows.to_dict("list")),
    "arrow": lambda rows: pa.table(rows.to_dict("list")),
    "numpy": lambda rows: rows.to_numpy(),
    "float32": lambda rows: rows.to_numpy().astype(np.float32),
    "mlx": lambda rows: mx.array(rows.to_numpy().astype(np.float32)),
    "csv": lambda rows: rows.to_csv("rows.csv", index=False) or "rows.csv",
    "path": lambda rows: rows.to_parquet("rows.parquet") or Path("rows.parquet"),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_goes_in_comes_out(form, trained):
    rows = FORMS[form](numbers())
    flow = flowmlx.train(rows, **QUICK)
    made = pa.Table if form in ("csv", "path") else type(rows)
    drawn = flow.sample(3)
    assert type(drawn) is made
    assert values(drawn).shape == (3, 3)
    if form == "float32":
        assert drawn.dtype == np.float32
    plain = trained("table")
    digits = 1e-3 if form in ("float32", "mlx") else 1e-6
    assert np.allclose(flow.log_prob(rows), plain.log_prob(numbers()), atol=digits)
    assert np.allclose(plain.log_prob(rows), plain.log_prob(numbers()), atol=digits)
    moved, expected = plain.velocity(rows, 0.5), plain.velocity(numbers(), 0.5)
    assert type(moved) is made
    assert np.allclose(values(moved), expected, rtol=digits, atol=1e-7)
    assert type(plain.trajectory(rows, [1, 0])[1]) is made
    flow.save("flow")
    assert type(flowmlx.load("flow").sample(1)) is made


def test_columns_are_found_by_their_names(trained):
    flow, rows = trained("table"), numbers()
    mixed = rows[["width", "height", "one"]].assign(more="text")
    assert np.array_equal(flow.log_prob(mixed), flow.log_prob(rows))
    assert np.array_equal(flow.log_prob(rows[:0]), np.zeros(0))
    assert (
        flow.velocity(rows[:0], 0.5).shape == flow.trajectory(rows[:0], [0, 1])[1].shape == (0, 3)
    )
    with pytest.raises(ValueError, match="width"):
        flow.log_prob(rows.drop(columns="width"))


def test_no_rows_and_many(trained):
    flow = trained("table")
    none = flow.sample(0)
    assert none.shape == (0, 3)
    assert [*none] == [*numbers()]
    many = flow.sample(9000, seed=1)
    assert np.array_equal(many[:2000], flow.sample(2000, seed=1))
    assert len(np.unique(many.height)) == 9000


# The same as the command


def files(folder):
    """What a run keeps, by name; the speed in a line of metrics is the machine's."""
    kept = [p for p in Path(folder).rglob("*") if p.is_file()]
    wanted = (".yaml", ".safetensors", ".npz")
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in kept
        if (p.suffix in wanted and p.name != "flow.npz") or p.name in ("data.json", "state.json")
    }


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {"target": "moons"}),
        (["--condition=kind", "--method=otcfm", "--seed=3"],
         {"target": "rows.csv", "condition": "kind", "method": "otcfm", "seed": 3}),
        (["--method=sf2m", "--sigma=0.5", "--source=normal", "--path=bridge", "--holdout=.2"],
         {"target": Path("rows.csv"), "condition": None, "method": "sf2m", "sigma": 0.5,
          "source": "normal", "path": "bridge", "holdout": 0.2}),
    ],
)  # fmt: skip
def test_a_run_is_that_of_the_command_byte_for_byte(words, options):
    rows = frame() if "kind" in str(words) else numbers()
    rows.to_csv("rows.csv", index=False)
    target = options.pop("target")
    flow = flowmlx.train(target, out="python", **QUICK, **options)
    small = ["--samples=8", "--frames=2"]
    main(["train", f"--target={target}", *WORDS, *words, *small, "--out=command"])
    ours, theirs = files("python"), files("command")
    config = theirs["config.yaml"].decode().replace("samples: 8", "samples: 1024")
    theirs["config.yaml"] = config.replace("frames: 2\n", "frames: 128\n").encode()
    assert ours == theirs
    assert {"config.yaml", "data.json", "checkpoints/00000004/ema.safetensors"} <= set(ours)
    assert_same(flow, flowmlx.load("python"))
    assert_same(flow, flowmlx.load("command", step=4))


def test_nothing_is_written_unless_asked_for(trained):
    flowmlx.train("moons", **QUICK)
    assert not [*Path().iterdir()]


def test_options_come_from_a_file_of_a_run(trained):
    flow = flowmlx.train("moons", out="run", seed=4, source="normal", **QUICK)
    assert_same(flow, flowmlx.train(config="run/config.yaml"))
    other = flowmlx.train("circles", config=Path("run/config.yaml"), steps=2)
    assert (other.options.data.target, other.options.run.seed, other.step) == ("circles", 4, 2)


def test_callbacks_and_a_bar_see_the_training(capsys):
    reports = []
    flowmlx.train("moons", callbacks=[reports.append], **QUICK)
    assert [report.step for report in reports] == [2, 4]
    assert "training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (numbers, {}),
        (frame, {"condition": "kind"}),
        (seen, {"time_column": "day"}),
        (lambda: gaussian, {}),
        (lambda: on_the_host, {"patience": 3}),
        (numbers, {"coupling": "semidiscrete", "method": "cfm"}),
        (numbers, {"coupling": "exact_ot", "method": "cfm", "source": numbers() + 1}),
    ],
)
def test_a_run_with_data_in_memory_goes_on_bit_for_bit(target, options):
    whole = flowmlx.train(target(), **QUICK, **options)
    flowmlx.train(target(), out="run", **{**QUICK, "steps": 2}, **options)
    given = {k: v for k, v in options.items() if k == "source"}
    parts = flowmlx.train(target(), resume="run", steps=4, **given)
    assert_same(whole, parts)
    assert_same(whole, flowmlx.load("run"))


def test_a_run_of_a_file_goes_on_without_naming_it():
    numbers().to_csv("rows.csv", index=False)
    whole = flowmlx.train("rows.csv", **QUICK)
    flowmlx.train("rows.csv", out="run", **{**QUICK, "steps": 2})
    assert_same(whole, flowmlx.train(resume="run", steps=4))
    assert_same(whole, flowmlx.train(numbers(), resume="run"))  # the same rows, in memory


def test_other_data_is_noticed():
    flowmlx.train(numbers(), out="rows", **QUICK)
    flowmlx.train(gaussian, out="simulator", **QUICK)
    with pytest.raises(ValueError, match="changed"):
        flowmlx.train(numbers() + 1, resume="rows", steps=5)
    with pytest.raises(ValueError, match="changed"):
        flowmlx.train(lambda n, *, key: 1.1 * gaussian(n, key=key), resume="simulator", steps=5)


# Objects of one's own


class Quadratic(AffinePath):
    def coefficients(self, t):
        return t**2, 1 - t**2, self.sigma


class Net(nn.Module):
    def __init__(self, dim=3):
        super().__init__()
        key = mx.random.key(5)
        self.layer = nn.Linear(dim, dim)
        self.layer.weight = 0.1 * mx.random.normal((dim, dim), key=key)
        self.layer.bias = mx.zeros(dim)

    def __call__(self, t, x):
        return self.layer(x)


def by_size(x0, x1, *, key):
    """Pairs in the order of the first column."""
    return mx.argsort(x0[:, 0]), mx.argsort(x1[:, 0])


def middle(field, x0, x1, *, key):
    return mx.mean((field(mx.array(0.5), x0) - x1) ** 2)


def the_mlp():
    return MLP(2, key=fold_in(mx.random.key(0), "weights"), width=8, depth=1)


# An object, the options that it stands for, and another one.
OWN = {
    "net": (the_mlp, {"width": 8, "depth": 1}, lambda: Net(2)),
    "path": (Linear, {"path": "linear"}, Quadratic),
    "coupling": (lambda: exact_ot, {"coupling": "exact_ot"}, lambda: by_size),
    "loss": (lambda: flow_matching_loss(Trigonometric()), {},
             lambda: middle),
    "optimizer": (lambda: optim.AdamW(0.01, weight_decay=0.01, bias_correction=True), {"lr": 0.01},
                  lambda: optim.SGD(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_an_object_is_used_as_the_name_that_it_stands_for(name):
    make, named, other = OWN[name]
    rows = numbers()
    small = {"steps": 4, "batch_size": 16, "log_every": 2}
    if name != "net":
        small |= {"width": 8, "depth": 1}
    given, another = make(), other()
    by_name, by_object = (
        flowmlx.train(rows, **small, **named),
        flowmlx.train(rows, **small, **{name: given}),
    )
    assert_same(by_name, by_object)
    assert_same(by_object, flowmlx.train(rows, **small, **{name: given}))  # which is as it was
    changed = flowmlx.train(rows, out="run", **small, **{name: another})
    assert not np.array_equal(changed.sample(3), by_name.sample(3))
    assert_same(changed, flowmlx.train(rows, **small, **{name: another}))

    needed = {name: another} if name in ("net", "path") else {}
    assert_same(changed, flowmlx.load("run", **needed))
    flowmlx.load("run", **needed).save("saved")
    assert_same(changed, flowmlx.load("saved", **needed))
    if needed:
        for folder in ("run", "saved"):
            with pytest.raises(ValueError, match=f"{folder}.*{name}=\\.\\.\\."):
                flowmlx.load(folder)
    flowmlx.train(rows, resume="run", steps=6, **{name: another})
    assert_same(
        flowmlx.load("run", **needed),
        flowmlx.train(rows, **{**small, "steps": 6}, **{name: another}),
    )
    with pytest.raises(ValueError, match=f"{name}=\\.\\.\\."):
        flowmlx.train(rows, resume="run", steps=8)


def test_the_command_says_what_to_do_with_objects_of_ones_own(capsys):
    flowmlx.train(numbers(), net=Net(2), out="run", steps=2, batch_size=16)
    flowmlx.train("moons", loss=flow_matching_loss(Linear()), out="loss", **QUICK)
    capsys.readouterr()
    for words, said in (
        (["sample", "run"], "flowmlx.load('run', net=...)"),
        (["evaluate", "run"], "flowmlx.load('run', net=...)"),
        (["train", "--resume", "run"], "flowmlx.train(resume='run', target=..., net=...)"),
        (["train", "--resume", "loss"], "flowmlx.train(resume='loss', loss=...)"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_one_network_serves_two_runs():
    net, rows = Net(2), numbers()
    before = np.array(net.layer.weight)
    for seed in (0, 1):
        flowmlx.train(rows, net=net, out=f"run{seed}", seed=seed, steps=2, batch_size=16)
    first, second = (flowmlx.load(f"run{seed}", net=net) for seed in (0, 1))
    assert not np.array_equal(first.net.layer.weight, second.net.layer.weight)
    assert np.array_equal(net.layer.weight, before)
    assert net.training


def test_a_generator_is_a_source_and_needed_again():
    def draw(n, *, key):
        return mx.random.uniform(-1, 1, (n, 2), key=key)

    flow = flowmlx.train(numbers(), source=draw, method="cfm", **QUICK)
    flow.save("flow")
    with pytest.raises(ValueError, match="source=\\.\\.\\."):
        flowmlx.load("flow")
    assert_same(flow, flowmlx.load("flow", source=draw))
    with pytest.raises(ValueError, match="density"):
        flow.log_prob(numbers())


def test_a_score_is_not_made_of_a_velocity_that_may_be_another():
    plain = {"method": "cfm", "source": "normal", **QUICK}
    assert flowmlx.train(numbers(), **plain).sample(2, solver="sra1").shape == (2, 3)
    for own in (
        {"coupling": exact_ot},
        {"loss": flow_matching_loss(Linear())},
        {"path": Quadratic()},
    ):
        flow = flowmlx.train(numbers(), **plain, **own)
        flow.save(folder := next(iter(own)))
        kept = {name: value for name, value in own.items() if name == "path"}
        for one in (flow, flowmlx.load(folder, **kept)):
            with pytest.raises(ValueError, match="score"):
                one.sample(2, solver="sra1")


def fitted(rows=numbers, net=None, path=None):
    """A network that was trained by `fit` alone, on standardised rows."""
    transform = Standardizer(("x0", "x1"), np.zeros(2), np.ones(2))
    key = mx.random.key(0)
    batches = paired_batches(generated(normal), generated(moons), 16, key=key, coupling=independent)
    state = TrainState(net or the_mlp(), optim.Adam(1e-3))
    fit(state, batches, loss=flow_matching_loss(path or Linear()), steps=2, key=key)
    return state, transform


@pytest.mark.parametrize(
    ("net", "path"),
    [
        (the_mlp, Linear()),
        (the_mlp, Quadratic()),
        (lambda: Net(2), Trigonometric(0.1)),
        (lambda: MLP(2, key=mx.random.key(0), cond_dim=3), Linear()),  # which no option names
    ],
)
def test_a_network_of_fit_is_made_a_flow_and_saved(net, path):
    state, _ = fitted(net=net(), path=path)
    flow = flowmlx.Flow.of(
        state.averaged(), like=np.array(moons(8, key=mx.random.key(1))), path=path
    )
    flow.save("flow")
    own = {"net": net()} if net is not the_mlp else {}
    own |= {"path": path} if isinstance(path, Quadratic) else {}
    assert_same(flow, flowmlx.load("flow", **own))
    field, x = state.averaged(), moons(3, key=mx.random.key(2))
    assert np.allclose(flow.velocity(x, 0.25), field(mx.array(0.25), x), atol=1e-6)
    with pytest.raises(ValueError, match="training"):
        flowmlx.train(moons(8, key=mx.random.key(1)), resume="flow", **own)


def test_a_network_with_a_score_is_made_a_flow_that_is_sampled_with_noise():
    net = TwoHeads(MLP(2, key=mx.random.key(0), width=8, out_dim=4))
    flow = flowmlx.Flow.of(net, like=np.eye(2), path=Bridge(sigma=0.5), source=np.eye(2))
    x = mx.array(np.eye(2, dtype=np.float32))
    assert np.allclose(flow.velocity(x, 0.25), net(mx.array(0.25), x)[0], atol=1e-6)
    flow.save("flow")
    again, noisy = flowmlx.load("flow"), {"solver": "sra1", "step_size": 0.1}
    assert_same(flow, again)
    assert np.array_equal(flow.sample(4, **noisy), again.sample(4, **noisy))
    assert not np.allclose(flow.sample(4, **noisy), flow.sample(4))


def test_a_flow_does_not_change_with_what_it_was_made_of():
    state, _ = fitted()
    net = state.model
    flow = flowmlx.Flow.of(net, like=np.eye(2))
    before = flow.sample(2)
    net.update(nn.utils.tree_map(lambda w: w + 1, net.parameters()))
    assert np.array_equal(flow.sample(2), before)
    assert net.training


# Mistakes

MISTAKES = {
    "None": (lambda flow: flowmlx.train(None), TypeError, "target is None"),
    "a dict": (lambda flow: flowmlx.train({"x": [1, 2]}), TypeError, "dict"),
    "a wrong toy": (lambda flow: flowmlx.train("moon"), ValueError, "moons"),
    "a wrong option": (lambda flow: flowmlx.train(step=3), ValueError, "steps"),
    "a wrong value": (lambda flow: flowmlx.train(steps="many"), ValueError, "steps.*many"),
    "a wrong column": (lambda flow: flowmlx.train(frame(), condition="kin"), ValueError, "kind"),
    "a column of a toy": (lambda flow: flowmlx.train("moons", condition="x0"), ValueError, "moons"),
    "a column of a simulator": (
        lambda flow: flowmlx.train(gaussian, condition="x0"), ValueError, "function"),
    "times of a simulator": (
        lambda flow: flowmlx.train(gaussian, time_column="x0"), ValueError, "time-column"),
    "a function without key": (
        lambda flow: flowmlx.train(lambda n: np.ones((n, 2))), TypeError, "key"),
    "a wrong number of draws": (
        lambda flow: flowmlx.train(lambda n, *, key: gaussian(5, key=key)), ValueError, "5, 2"),
    "draws that are not finite": (
        lambda flow: flowmlx.train(lambda n, *, key: [[np.inf]] * n), ValueError, "finite"),
    "draws from a global state": (
        lambda flow: flowmlx.train(lambda n, *, key: mx.random.normal((n, 2)), **QUICK),
        ValueError, "global"),
    "a name for a net": (lambda flow: flowmlx.train(net="mlp"), TypeError, "net is 'mlp'"),
    "a class for a net": (lambda flow: flowmlx.train(net=MLP), TypeError, "class MLP"),
    "a class for a path": (lambda flow: flowmlx.train(path=Linear), TypeError, "class Linear"),
    "a number for a path": (lambda flow: flowmlx.train(path=3), TypeError, "path is 3"),
    "a name for a loss": (lambda flow: flowmlx.train(loss="l2"), TypeError, "loss is 'l2'"),
    "an optimizer's name": (lambda flow: flowmlx.train(optimizer="adam"), TypeError, "'adam'"),
    "a number for a coupling": (lambda flow: flowmlx.train(coupling=3), TypeError, "coupling is 3"),
    "one callback": (lambda flow: flowmlx.train(callbacks=print), TypeError, "list"),
    "a net and its width": (lambda flow: flowmlx.train(net=Net(2), width=3), ValueError, "width"),
    "an optimizer and a rate": (
        lambda flow: flowmlx.train(optimizer=optim.SGD(1), lr=0.1), ValueError, "--lr"),
    "a loss and its weight": (
        lambda flow: flowmlx.train(loss=print, loss_weight="min_snr"), ValueError, "loss-weight"),
    "a path and its sigma": (
        lambda flow: flowmlx.train(path=Linear(), sigma=0.1), ValueError, "sigma"),
    "less than no rows": (lambda flow: flow.sample(-1), ValueError, "n is -1"),
    "half a row": (lambda flow: flow.sample(1.5), ValueError, "n is 1.5"),
    "a wrong condition": (lambda flow: flow.sample(1, condition="cow"), ValueError, "cat.*dog"),
    "conditions of each row": (
        lambda flow: flow.sample(2, condition=["cat", "dog"]), ValueError, "cat,dog"),
    "guidance to nothing": (lambda flow: flow.sample(1, guidance=2), ValueError, "condition"),
    "a wrong solver": (lambda flow: flow.sample(1, solver="dopri"), ValueError, "dopri5"),
    "a time of no snapshots": (lambda flow: flow.sample(1, at_time=1), ValueError, "time-column"),
    "other columns": (lambda flow: flow.log_prob(np.zeros((2, 5))), ValueError, r"\(2, 5\)"),
    "rows of text": (lambda flow: flow.log_prob(frame().astype(str)), ValueError, "height"),
    "a wrong class": (
        lambda flow: flow.log_prob(frame().assign(kind="cow")), ValueError, "cow.*cat"),
    "a time outside": (lambda flow: flow.velocity(frame(), 1.5), ValueError, "t is 1.5.*0 to 1"),
    "times that are words": (lambda flow: flow.velocity(frame(), "x"), TypeError, "t is 'x'"),
    "one time": (lambda flow: flow.trajectory(frame(), [0.5]), ValueError, "times"),
    "times to and fro": (lambda flow: flow.trajectory(frame(), [0, 1, 0]), ValueError, "times"),
    "points of another length": (lambda flow: flow.decode(mx.zeros((2, 3))), ValueError, "2, 3"),
    "no run": (lambda flow: flowmlx.load("nowhere"), ValueError, "nowhere"),
    "no step": (lambda flow: (flow.save("a"), flowmlx.load("a", step=9)), ValueError, "step 9"),
    "an object too many": (
        lambda flow: (flow.save("a"), flowmlx.load("a", net=Net())), ValueError, "net"),
    "a flow to resume": (
        lambda flow: (flow.save("a"), flowmlx.train(frame(), resume="a")), ValueError, "training"),
    "a flow of no network": (
        lambda flow: flowmlx.Flow.of(print, like=numbers()), TypeError, "net is"),
    "a flow on no path": (
        lambda flow: flowmlx.Flow.of(Net(), like=numbers(), path="linear"), TypeError, "path is"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_by_what_was_given(mistake, trained):
    call, kind, said = MISTAKES[mistake]
    with pytest.raises(kind, match=said):
        call(trained("condition"))


def test_a_folder_is_written_once(trained):
    flow = trained("table")
    flow.save("run")
    before = files("run")
    with pytest.raises(ValueError, match="run is there already"):
        flow.save("run")
    with pytest.raises(ValueError, match="run is there already"):
        flowmlx.train("moons", out="run", **QUICK)
    assert files("run") == before


def test_a_flow_that_cannot_be_written_leaves_the_folder_free(trained, monkeypatch):
    flow = trained("table")
    with monkeypatch.context() as patched:
        patched.setattr("flowmlx.experiment.flow.write_options", exec)  # a TypeError
        with pytest.raises(TypeError, match="exec"):
            flow.save("flow")
    trained("table").save("flow")
    assert_same(flowmlx.load("flow"), trained("table"))


# As a user finds it


def test_ctrl_c_saves_the_step_it_comes_in_and_the_run_goes_on(capsys):
    before = signal.getsignal(signal.SIGINT)

    def interrupt(report):
        if report.step == 2:
            signal.raise_signal(signal.SIGINT)

    rows = numbers()
    with pytest.raises(KeyboardInterrupt, match=r"after step 3, and saved.*resume='run'"):
        flowmlx.train(rows, out="run", callbacks=[interrupt], **QUICK)
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(flowmlx.train(rows, resume="run"), flowmlx.train(rows, **QUICK))
    with pytest.raises(KeyboardInterrupt, match="out= keeps"):
        flowmlx.train(rows, callbacks=[interrupt], **QUICK)


def test_a_run_on_rows_in_memory_is_measured_and_can_be_drawn(capsys):
    flowmlx.train(numbers(), out="run", samples=32, **QUICK)
    results = json.loads(Path("run/results.json").read_text())
    assert results["step"] == results["trained_steps"] == 4
    assert min(results["w2"], results["w2_floor"]) > 0
    main(["plot", "run"])
    assert Path("run/trajectories.png").stat().st_size > 10_000


def test_it_trains_in_any_thread():
    found = {}

    def work():
        found["flow"] = flowmlx.train("moons", **QUICK)
        found["rows"] = np.array(found["flow"].sample(3))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    flow = flowmlx.train("moons", **QUICK)
    assert np.array_equal(found["rows"], flow.sample(3))
    assert_same(found["flow"], flow)


def test_the_cpu_is_taken_for_the_training_alone():
    device = mx.default_device()
    flow = flowmlx.train("moons", cpu=True, **QUICK)
    assert mx.default_device() == device
    assert flow.options.run.cpu
    assert flow.sample(2).shape == (2, 2)


def test_names_and_options_are_found():
    assert {"train", "load", "Flow", "paths"} <= set(dir(flowmlx))
    options = inspect.signature(flowmlx.train).parameters
    assert options["steps"].default == 20_000
    assert options["condition"].default is None
    assert {"target", "net", "callbacks", "guidance"} & set(options) == {
        "target",
        "net",
        "callbacks",
    }
    assert "options" not in options
    assert repr(options["target"].default) == "'moons'"


def test_a_flow_is_shown_in_a_line_and_copied(trained):
    flow = trained("condition")
    shown = repr(flow)
    assert len(shown) < 200
    assert "\n" not in shown
    assert all(word in shown for word in ("table", "'height'", "'kind'", "Linear", "step 4"))
    copied = copy.deepcopy(flow)
    assert_same(flow, copied)
    copied.net.update(nn.utils.tree_map(lambda w: w + 1, copied.net.parameters()))
    assert not np.array_equal(flow.sample(2), copied.sample(2))
    wide = flowmlx.train(np.random.default_rng(0).normal(size=(20, 30)), **QUICK)
    assert len(repr(wide)) < 200
    assert "30" in repr(wide)

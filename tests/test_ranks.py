"""Several processes that train one model, connected by MLX's ring on this machine."""

import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from flowmlx.command.cli import main
from flowmlx.couplings import exact_ot, partial
from flowmlx.cpu import blas
from flowmlx.data.streams import generated, shuffled
from flowmlx.data.toy import normal
from flowmlx.experiment import folder as runfiles
from flowmlx.experiment import runs
from flowmlx.nets.mlp import MLP
from flowmlx.training import TrainState, fit, paired_batches, ranks

LAUNCH = Path(sys.executable).with_name("mlx.launch")
needs_launch = pytest.mark.skipif(not LAUNCH.exists(), reason="needs mlx.launch")
QUICK = ["--steps", "20", "--batch-size", "48", "--width", "8", "--samples", "32", "--frames", "8"]
QUICK += ["--log-every", "10", "--out", "run"]
COMMAND = [sys.executable, "-m", "flowmlx.command.cli"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(processes, words):
    port = random.randrange(20_000, 32_000, 8)
    return subprocess.Popen(
        [LAUNCH, "-n", str(processes), "-p", str(port), "--", *words],
        env={**os.environ, "MLX_DISABLE_COMPILE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(launcher):
    """Its output, errors, and the status of each rank that did not end with 0."""
    try:
        out, err = launcher.communicate(timeout=90)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    status = re.findall(r"Node with rank (\d) (?:exited with code (-?\d+)|was killed)", err)
    return out, err, {int(rank): int(code or -9) for rank, code in status}


def ours(err):
    return [line for line in err.splitlines() if line.startswith("flowmlx: error")]


# Parts of a batch


def group_of(rank, size):
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


def test_parts_are_the_batch_and_an_epoch_has_each_row_once(key):
    rows = np.arange(24, dtype=np.float32).reshape(12, 2)
    batches = paired_batches(generated(normal), shuffled(rows), 6, key=key, coupling=exact_ot)
    parts = [ranks.share(batches, group_of(rank, 3)) for rank in range(3)]
    for step in range(2):
        pairs = np.concatenate([np.hstack([*part(step).values()]) for part in parts])
        whole = np.hstack([*batches(step).values()])
        assert sorted(map(tuple, pairs.tolist())) == sorted(map(tuple, whole.tolist()))
    seen = np.concatenate([np.array(part(step)["x1"]) for part in parts for step in range(2)])
    np.testing.assert_array_equal(seen[np.argsort(seen[:, 0])], rows)


def test_parts_are_equal_where_a_coupling_leaves_points_out(key):
    batches = paired_batches(
        generated(normal), generated(normal), 48, key=key, coupling=partial(0.7)
    )
    assert len(batches(0)["x0"]) == 34
    parts = [ranks.share(batches, group_of(rank, 4))(0)["x0"] for rank in range(4)]
    assert [len(part) for part in parts] == [8, 8, 8, 8]
    with pytest.raises(ValueError, match="a batch of 34 for 35 ranks; expected at least one"):
        ranks.share(batches, group_of(0, 35))(0)


def test_alone_nothing_changes(key, without_compile):
    """A group of one and None train bit for bit alike, and hand on what they get."""
    alone, stop = mx.distributed.init(), bool
    ends = []
    for group in (None, alone):
        batches = paired_batches(
            generated(normal), generated(normal), 8, key=key, coupling=partial()
        )
        assert ranks.share(batches, group) is batches
        assert ranks.agreed(stop, group) is stop
        assert ranks.number(group) == 0
        assert ranks.count(group) == ranks.on_this_machine(group) == 1
        with pytest.raises(KeyError), ranks.together(group):
            raise KeyError
        state = TrainState(MLP(2, key=key, width=8), optim.Adam(1e-2))
        fit(state, batches, loss=quadratic, steps=3, key=key, group=group)
        ends.append(np.array(state.model.layers[0].weight))
    np.testing.assert_array_equal(*ends)


def quadratic(field, x0, x1, *, key):
    t = mx.random.uniform(shape=(len(x0),), key=key)
    return mx.square(field(t, x0) - x1).mean()


def test_without_a_launcher_there_is_no_group(monkeypatch, tmp_path):
    for name in ranks.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert ranks.launched() is None
    (tmp_path / "hosts").write_text("\n")  # as mlx.launch -n 1 writes it
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert ranks.launched() is None


# The library in two processes

PROGRAM = """
import sys
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, numpy as np
from mlx.utils import tree_flatten
from flowmlx.training import checkpoint, ranks
from flowmlx.nets import MLP
from flowmlx.training import NonFiniteLoss, TrainState, fit

group = ranks.launched()
rank = ranks.number(group)
key = mx.random.key(0)
x0, x1 = (mx.random.normal((16, 2), key=mx.random.key(k)) for k in (1, 2))
found = {}

def new(seed):
    return TrainState(MLP(2, key=mx.random.key(seed), width=8), optim.AdamW(1e-2))

def still(field, x0, x1, *, key):
    return mx.square(field(mx.array(0.5), x0) - x1).mean()

def flat(state, name):
    for k, a in tree_flatten([state.model.parameters(), state.ema, state.optimizer.state]):
        found[f"{name}.{k}"] = np.array(a)

# The same part for all, and other weights at first where this is not the first rank.
flat(fit(new(rank), lambda step: (x0, x1), loss=still, steps=8, key=key, group=group), "same")

# From a state that only the first rank has loaded.
state = new(5 + rank)
if rank == 0:
    state = fit(state, lambda step: (x0, x1), loss=still, steps=3, key=key)
    state = checkpoint.load(checkpoint.save("saved", state).parent, new(9))
flat(fit(state, lambda step: (x0, x1), loss=still, steps=8, key=key, group=group), "loaded")

# Parts of one batch.
part = ranks.share(lambda step: (x0, x1), group)
reports = []
state = fit(new(0), part, loss=still, steps=8, key=key, group=group, callbacks=[reports.append])
flat(state, "parts")
found["loss"] = reports[-1].loss

# Held-out data, in one go and from a state that only the first rank has loaded.
rows = [mx.random.normal((2, n, 2), key=mx.random.key(n)) for n in (5, 9, 12)]
test = [{"x0": a, "x1": a + b} for a, b in rows]

def tested(state, steps, losses):
    batch = {"x0": x0, "x1": x0 + x1}
    return fit(
        state, lambda step: batch, loss=still, steps=steps, key=key, group=group, log_every=2,
        test_batches=test, patience=2,
        callbacks=[lambda report: losses.append(report.test_loss)],
    )

losses, again = [], []
state = tested(new(rank), 80, losses)
flat(state, "best")
found["test"], found["ended"] = losses, state.step
state = tested(new(rank), 6, again)
if rank == 0:
    checkpoint.save("best", state)
state = new(5 + rank)
if rank == 0:
    state = checkpoint.load("best", state)
state = tested(state, 80, again)
flat(state, "resumed")
found["again"] = again

keys = []
def recorded(field, x0, x1, *, key):
    keys.append(np.array(key))
    return still(field, x0, x1, key=key)
asked = lambda step: rank == ranks.count(group) - 1 and step == 3
state = fit(new(0), part, loss=recorded, steps=90, key=key, group=group, stop=asked)
found["stopped"], found["keys"] = state.step, np.stack(keys)

poisoned = lambda step: (x0 * (float("nan") if rank == 1 and step == 4 else 1), x1)
try:
    fit(new(0), poisoned, loss=still, steps=30, key=key, group=group, log_every=10)
except NonFiniteLoss as error:
    found["broken"], found["why"] = error.step, str(error)

# A network that draws and remembers.
masks = []
class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        mx.random.seed(0)
        self.blocks = [nn.Dropout(0.5), [nn.Linear(2, 2), nn.BatchNorm(2)]]
        self.calls = mx.array(0)
        self.freeze(keys=["calls"], recurse=False)

    def __call__(self, t, x):
        self.calls = self.calls + 1
        masks.append(np.array(self.blocks[0](mx.ones((64,)))))
        for layer in self.blocks[1]:
            x = layer(x)
        return x

state = TrainState(Remembering(), optim.AdamW(0.0))
fit(state, part, loss=still, steps=5, key=key, group=group)
flat(state, "noted")
found["masks"] = np.stack(masks)

# Faults of one rank's part.
class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)

def labelled(field, x0, x1, y, *, key):
    return mx.square(field.table(y) - x1).mean()

labels = lambda step: (x0, x1, mx.full((16,), 7 * rank * (step == 5), mx.int32))
options = {"loss": labelled, "steps": 9, "key": key, "group": group, "log_every": 3}
try:
    fit(TrainState(Table(), optim.AdamW(1e-2)), labels, **options)
except NonFiniteLoss as error:
    found["label"] = str(error)

try:
    with ranks.together(group):
        if rank == 1:
            raise ValueError("mine")
except ranks.Agreed as error:
    found["error"] = str(error)
    found["elsewhere"] = isinstance(error, ranks.Elsewhere)
np.savez(f"{sys.argv[1]}-{rank}.npz", **found)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """What one process and each of two found."""
    if not LAUNCH.exists():
        pytest.skip("needs mlx.launch")
    folder = tmp_path_factory.mktemp("programs")
    Path(folder, "program.py").write_text(PROGRAM)
    before = Path.cwd()
    os.chdir(folder)
    try:
        environment = {**os.environ, "MLX_DISABLE_COMPILE": "1"}
        subprocess.run([sys.executable, "program.py", "one"], check=True, env=environment)
        _, err, status = finish(start(2, [sys.executable, "program.py", "two"]))
        assert not status, err
        return [dict(np.load(folder / f"{name}.npz")) for name in ("one-0", "two-0", "two-1")]
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", ["same", "loaded", "parts", "noted", "best", "resumed"])
def test_ranks_keep_the_same_state(programs, name):
    _, first, second = programs
    names = [k for k in first if k.startswith(name)]
    assert len(names) > 12
    for k in names:
        np.testing.assert_array_equal(first[k], second[k], err_msg=k)


@pytest.mark.parametrize("name", ["same", "loaded", "best", "resumed"])
def test_identical_parts_train_exactly_as_one_process(programs, name):
    one, first, _ = programs
    for k in [k for k in one if k.startswith(name)]:
        np.testing.assert_array_equal(first[k], one[k], err_msg=k)


def test_parts_together_train_as_the_whole_batch(programs):
    """The mean of the gradients of two halves is the gradient of the whole."""
    one, first, second = programs
    for k in [k for k in one if k.startswith("parts")]:
        np.testing.assert_allclose(first[k], one[k], rtol=2e-4, atol=2e-5, err_msg=k)
    assert first["loss"] == second["loss"] == pytest.approx(float(one["loss"]), rel=1e-5)


def test_the_test_loss_and_where_it_ends_are_those_of_one_process(programs):
    """Of three batches of different sizes, which two ranks share; resumed by the first alone."""
    one = programs[0]
    assert one["test"][0] > one["test"].min() < one["test"][-1]
    assert one["ended"] == 2 * len(one["test"]) < 80
    for found in programs:
        assert found["ended"] == one["ended"]
        np.testing.assert_array_equal(found["test"], one["test"])
        np.testing.assert_array_equal(found["again"], one["test"])


def test_ranks_draw_times_and_noise_of_their_own(programs):
    one, first, second = (found["keys"] for found in programs)
    np.testing.assert_array_equal(first[: len(one)], one)  # the first rank as a process alone
    both = np.concatenate([first, second])
    assert len(np.unique(both, axis=0)) == len(both) == 20


def test_all_stop_at_one_step_where_one_is_asked(programs):
    assert [int(found["stopped"]) for found in programs] == [3, 10, 10]


def test_all_stop_where_the_loss_of_one_is_not_finite(programs):
    one, first, second = programs
    assert "broken" not in one
    assert first["broken"] == second["broken"] == 5


def test_running_statistics_are_those_of_all_parts(programs):
    """Means of parts of one size are those of the whole; counts are not added up."""
    one, first, _ = programs
    for tree in (0, 1):
        name = f"noted.{tree}.blocks.1.1.running_mean"
        assert abs(one[name]).max() > 1e-3
        np.testing.assert_allclose(first[name], one[name], rtol=1e-4, atol=1e-6)
        assert first[f"noted.{tree}.calls"] == one[f"noted.{tree}.calls"] == 5


def test_ranks_draw_masks_of_their_own(programs):
    one, first, second = (found["masks"] for found in programs)
    np.testing.assert_array_equal(first, one)
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 10


def test_what_is_wrong_with_the_part_of_one_is_told_by_all(programs):
    one, first, second = programs
    assert "label" not in one
    assert "y holds the label 7" in str(second["label"])
    assert "y holds the label 7" in str(first["label"])
    for found in (first, second):
        assert "x0 holds NaN or infinity in 16 of 16 rows" in str(found["why"])


def test_an_error_of_one_stops_all_and_one_has_its_message(programs):
    _, first, second = programs
    assert str(second["error"]) == "mine"
    assert bool(first["elsewhere"])
    assert not bool(second["elsewhere"])


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the runs `one`, of this process, and `two`, of two; and what these printed.

    Semidiscrete transport, so that a potential is fitted before training.
    """
    if not LAUNCH.exists():
        pytest.skip("needs mlx.launch")
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    os.chdir(folder)
    mx.disable_compile()
    try:
        rng = np.random.default_rng(0)
        rows = 0.3 * rng.normal(size=(80, 2)) + 4 * rng.integers(0, 2, (80, 1))
        np.savetxt("data.csv", rows, delimiter=",", header="x,y", comments="")
        words = ["train", *QUICK, "--target", "data.csv", "--coupling", "semidiscrete", "-m", "cfm"]
        words += ["--steps", "60", "--lr", "1e-2", "--log-every", "20"]
        main([*words, "--out", "one"])
        out, err, status = finish(start(2, [*COMMAND, *words, "--out", "two"]))
        assert not status, err
    finally:
        mx.enable_compile()
        os.chdir(before)
    return folder, out


@pytest.mark.slow
def test_two_processes_write_one_run_and_print_once(trained):
    folder, out = trained
    assert out.count("energy distance") == 1
    assert sorted(p.name for p in folder.iterdir()) == ["data.csv", "one", "two"]
    run = runfiles.open_run(folder / "two")
    assert [line["step"] for line in runfiles.read_metrics(run)] == [20, 40, 60]
    assert runs.saved_step(run) == 60


@pytest.mark.slow
def test_the_loss_falls_alike_in_one_and_two_processes(trained):
    """Same batches, by the same potential on every rank; times are drawn anew."""
    folder, _ = trained
    one, two = (folder / run / "potential.safetensors" for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    one, two = (
        [line["loss"] for line in runfiles.read_metrics(runfiles.open_run(folder / run))]
        for run in ("one", "two")
    )
    assert one[-1] < 0.8 * one[0]
    assert one != two
    np.testing.assert_allclose(two, one, rtol=0.1)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(trained, without_compile):
    folder, _ = trained
    main(["train", "--resume", f"{folder}/two", "--steps", "64"])
    words = ["train", "--resume", f"{folder}/one", "--steps", "64"]
    _, err, status = finish(start(2, [*COMMAND, *words]))
    assert not status, err
    for name in ("one", "two"):
        run = runfiles.open_run(folder / name)
        assert [line["step"] for line in runfiles.read_metrics(run)][-2:] == [60, 64]
        assert runs.saved_step(run) == 64


@needs_launch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "49"], "--batch-size is 49, which does not divide among 2 processes; "),
        (["--lr", "1e30", "--checkpoint-every", "10"], "start again"),
    ],
)
def test_errors_of_all_are_told_once_and_end_all(words, message):
    _, err, status = finish(start(2, [*COMMAND, "train", *QUICK, *words]))
    assert len(ours(err)) == 1, err
    assert re.search(message, ours(err)[0])
    assert status == {0: 2, 1: 2}


@needs_launch
@pytest.mark.slow
def test_the_folder_of_another_run_is_refused_by_the_first_for_all():
    Path("run").mkdir()
    Path("run/mine").touch()
    _, err, status = finish(start(2, [*COMMAND, "train", *QUICK]))
    assert len(ours(err)) == 1
    assert "is there already" in ours(err)[0]
    assert status == {0: 2, 1: 2}
    assert [p.name for p in Path("run").iterdir()] == ["mine"]


@needs_launch
@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_what_ends_one_rank_ends_all(how):
    words = [*COMMAND, "train", *QUICK, "--steps", "100000"]
    launcher = start(2, words)
    try:
        log, end = Path("run/metrics.jsonl"), time.monotonic() + 60
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < end
            time.sleep(0.1)
        children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True)
        last = int(children.stdout.split()[-1])
        os.kill(last, signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    finally:
        out, err, status = finish(launcher)
    assert status.keys() == {0, 1}
    saved = runs.saved_step(runfiles.open_run("run"))
    if how == "interrupt":
        assert status == {0: 130, 1: 130}, err
        assert f"saved up to step {saved} of" in out
        assert saved > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels need a BLAS")
def test_processes_of_a_machine_share_its_cores(monkeypatch):
    """Of eight cores each of two processes takes four, by itself or, uncompiled, half of them."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(blas.blocks, "cores", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    openblas = blas._function(ctypes.CDLL(blas.status().path), "openblas_get_num_threads")
    before = openblas()
    taken, own = [], []
    for processes in (1, 2, 8):
        blas.share_processors(processes)
        taken.append((blas.blocks.threads(), openblas()))
        with monkeypatch.context() as uncompiled:
            uncompiled.setattr(blas.blocks, "product", lambda sgemm, threads: None)
            blas.share_processors(processes)
            own.append(openblas())
    monkeypatch.undo()
    blas.share_processors(1)
    assert openblas() == before
    if blas.blocks.threads():
        assert taken == [(8, 1), (4, 1), (0, 1)]
    assert own == [4, 2, 1]

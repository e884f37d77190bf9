"""Files of a run that were cut, edited or replaced: one line with their name, and the way out."""

import io
import json
import os
import shutil
import signal
import struct
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import yaml

from flowmlx import plots
from flowmlx.command.cli import main
from flowmlx.data.arrays import Standardizer
from flowmlx.experiment import folder as runfiles
from flowmlx.experiment import options as settings
from flowmlx.experiment import resolve, runs
from flowmlx.experiment.loading import load
from flowmlx.experiment.rules import check
from flowmlx.files import reading
from flowmlx.kinds import KINDS
from flowmlx.spaces.conditioning import UNCONDITIONAL
from flowmlx.spaces.ends import Rows
from flowmlx.spaces.space import Space
from flowmlx.training import checkpoint

OLD = Path(__file__).parent / "old_run"  # written before there were numbers of formats
NEWEST = "checkpoints/00000006"
COMMANDS = {
    "resume": ["train", "--resume", "run"],
    "sample": ["sample", "run", "-n", "4"],
    "evaluate": ["evaluate", "run"],
    "plot": ["plot", "run"],
}
# Files of a run, and the commands that need what is in them.
FILES = {
    "config.yaml": ["resume", "sample", "evaluate"],
    "data.json": [*COMMANDS],
    "potential.safetensors": ["resume"],
    "metrics.jsonl": ["resume", "plot"],
    "results.json": ["resume", "evaluate"],
    f"{NEWEST}/state.json": ["resume", "sample", "evaluate"],
    f"{NEWEST}/model.safetensors": ["resume", "sample", "evaluate"],
    f"{NEWEST}/ema.safetensors": ["resume", "sample", "evaluate"],
    f"{NEWEST}/optimizer.safetensors": ["resume"],
}
# What a crash can leave, and the commands pass over.
HARMLESS = [("metrics.jsonl", "empty"), ("metrics.jsonl", "cut")]


def empty(path):
    path.write_bytes(b"")


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(500) + b"\n")


def another(path):
    """Make of `path` a whole file of its kind with something else in it."""
    if path.suffix == ".safetensors":
        mx.save_safetensors(str(path), {"x": mx.ones(3)})
    elif path.suffix == ".npz":
        np.savez(path, x=np.ones(3))
    else:
        path.write_text("[1, 2]\n")


def folder(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def huge(path):
    """A terabyte, which takes no place on the disk."""
    os.truncate(path, 2**40)


DAMAGES = [empty, cut, garbage, another, folder, pipe, device, loop, huge]


@pytest.fixture
def run(tmp_path, monkeypatch, without_compile):
    """A run of the first version, in the working folder with its data. Figures take long."""
    monkeypatch.chdir(tmp_path)
    for figure in ("animation", "trajectories", "loss_curve"):
        monkeypatch.setattr(plots, figure, lambda *arguments, **options: None)
    return renew(Path("run"))


def renew(run):
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(OLD, run)
    (run / "animals.csv").replace("animals.csv")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("/data/", ""))
    return run


@pytest.fixture(autouse=True)
def in_time():
    """Let a test that hangs fail."""

    def late(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(capsys, name):
    """Run a command; return its status and what it said in errors and warnings."""
    status = 0
    with warnings.catch_warnings():  # each is told once a call
        warnings.simplefilter("default")
        try:
            main(COMMANDS[name])
        except SystemExit as stop:
            status = stop.code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return status, [line for line in said.splitlines() if line.startswith("flowmlx: ")]


named = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@named
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_in_one_line(name, damage, run, capsys):
    if (name, damage.__name__) in HARMLESS:
        pytest.skip("a crash may leave it so")
    damage(run / name)
    before = sorted(run.rglob("*"))
    for command in FILES[name]:
        status, said = call(capsys, command)
        errors = [line for line in said if line.startswith("flowmlx: error: ")]
        assert status == 2, (command, said)
        assert len(errors) == 1
        assert str(run / name) in errors[0]
        assert ";" in errors[0]  # and what to do
        assert sorted(run.rglob("*")) == before


@named
def test_damaged_flow_lines_are_sampled_again_and_named(damage, run, capsys):
    damage(run / "flow.npz")
    status, said = call(capsys, "plot")
    assert str(run / "flow.npz") in said[0]
    if damage is folder:  # which no file can replace
        assert (status, len(said)) == (2, 2)
        assert str(run / "flow.npz") in said[1]
    else:
        assert (status, len(said)) == (0, 1)
        with np.load(run / "flow.npz") as flow, np.load(OLD / "flow.npz") as before:
            assert flow["xs"].shape == before["xs"].shape


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json", "flow.npz"])
def test_what_can_be_made_again_may_be_missing(name, run, capsys):
    (run / name).unlink()
    for command in ("plot", "evaluate"):
        assert call(capsys, command) == (0, [])


@pytest.mark.parametrize("damage", [empty, cut])
def test_lost_lines_of_metrics_are_said(damage, run, capsys):
    damage(run / "metrics.jsonl")
    status, said = call(capsys, "resume")
    assert status == 0
    assert len(said) == 1
    assert "metrics.jsonl" in said[0]
    assert "to 6" in said[0]


@pytest.mark.parametrize("damage", [folder, pipe])
def test_a_folder_in_place_of_samples_loses_nothing(damage, run, capsys):
    damage(run / "samples.csv")
    status, said = call(capsys, "evaluate")
    if damage is folder:
        assert status == 2
        assert "run/samples.csv" in said[0]
    else:
        assert status == 0
        assert (run / "samples.csv").is_file()


def test_checkpoints_that_are_no_folder_are_not_begun_anew(run, capsys):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")
    status, said = call(capsys, "resume")
    assert status == 2
    assert "run/checkpoints" in said[0]


# What is inside


def edit_data(**changes):
    def edit(run):
        found = json.loads((run / "data.json").read_text())
        for place, value in changes.items():
            *path, name = place.split("_")
            inside = found
            for part in path:
                inside = inside[part]
            inside[name] = value
        (run / "data.json").write_text(json.dumps(found))

    return edit


@pytest.mark.parametrize(
    "changes",
    [
        {"units_mean": [float("nan"), 0.0]},
        {"units_mean": ["many", 0.0]},
        {"units_mean": [0.0]},
        {"units_mean": [None, 0.0]},
        {"units_scale": [float("inf"), 1.0]},
        {"units_scale": [-1.0, 1.0]},
        {"units_scale": [0.0, 0.0]},
        {"units_columns": [1, 2]},
        {"units_columns": ["height"]},
        {"units": None},
        {"fingerprint": 3},
        {"times": [0.0, 1.0]},
        {"times": "early"},
        {"condition": None},
        {"condition": {}},
        {"condition": []},
        {"pairs": 0},
        {"condition": {"columns": ["kind"]}},
        {"condition_labels": ["cat"]},
        {"condition_labels": [["cat"], ["dog"]]},
        {"condition_labels": None},
        {"condition_columns": []},
        {"format": "one"},
        {"format": -1},
    ],
    ids=str,
)
def test_a_transform_that_cannot_be_is_refused(changes, run, capsys):
    edit_data(**changes)(run)
    for command in ("sample", "evaluate"):
        status, said = call(capsys, command)
        assert status == 2
        assert len(said) == 1
        assert "run/data.json" in said[0]


def test_settings_that_grow_when_they_are_read_are_refused(run, capsys):
    """Each line is eight of the line before: in all as many values as the memory cannot hold."""
    lines = [
        "a0: &a0 [x]",
        *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 8)}]" for k in range(1, 9)),
    ]
    Path("run/config.yaml").write_text("\n".join([*lines, "format: *a8", "cpu: false\n"]))
    status, said = call(capsys, "sample")
    assert (status, len(said)) == (2, 1)
    assert "run/config.yaml, line 2: *a0 repeats" in said[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [(0.0, 1.0), (-1.0, 2.0, 5.5)])
def test_a_space_is_read_as_it_was_written(kind, times, tmp_path):
    run, units = runfiles.Run(tmp_path), Standardizer(("a", "b"), np.ones(2), np.array([3.0, 0]))
    runfiles.write_about(run, runfiles.About("mark", Space(kind, units, times=times, form="numpy")))
    space = runfiles.read_about(run).space
    assert (space.kind, space.times, space.form) == (kind, times, "numpy")
    assert space.transform.to_dict() == units.to_dict()


ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x1": ROWS},
        {"x0": ROWS[0]},
        {"x0": ROWS[:, :1]},
        {"x0": ROWS[:0]},
        {"x0": ROWS.astype(np.int32)},
        {"x0": np.array([["a", "b"]])},
        {"x0": np.full_like(ROWS, np.inf)},
        {"x0": ROWS, "cond": np.zeros(2, np.int32)},
        {"x0": ROWS, "cond": np.zeros(3, np.float32)},
        {"x0": ROWS, "cond": np.zeros((3, 1), np.int32)},
    ],
    ids=lambda arrays: ", ".join(f"{k} {x.dtype}{x.shape}" for k, x in arrays.items()),
)
def test_rows_to_start_from_that_cannot_be_are_refused(arrays, tmp_path):
    run = runfiles.Run(tmp_path)
    np.savez(run.source, **arrays)
    with pytest.raises(reading.Damaged, match=r"source\.npz"):
        runfiles.read_source(run, 2)


def test_rows_to_start_from_are_read_as_they_were_written(tmp_path):
    run, rows = runfiles.Run(tmp_path), Rows(ROWS, np.array([0, 2, 1], np.int32))
    runfiles.write_source(run, rows)
    for wrote, found in zip(rows, runfiles.read_source(run, 2), strict=True):
        np.testing.assert_array_equal(wrote, found)


def tensors(header, content=b"\0" * 48):
    """The bytes of a safetensors file with a header of one's own."""
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + content


def tensor(shape, start, end, dtype="F32"):
    return tensors({"w": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}})


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 10**18) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        b"\0\0\0",
        tensors(b"[]"),
        tensors(b"[" * 100_000 + b"]" * 100_000),
        tensors({"w": 3}),
        tensors({"w": {}}),
        tensor([2**32, 2**32], 0, 0),  # 2^66 bytes are 0 in a machine's whole numbers
        tensor([25 * 10**13], 0, 10**15),
        tensor([12], 1000, 1048),
        tensor([-12], 0, 48),
        tensor([12.0], 0, 48),
        tensor([13], 0, 48),
        tensor([12], 0, 48, "F31"),
        tensor([12], 0, 48, ["F32"]),
        tensor("12", 0, 48),
    ],
    ids=range(16),
)
def test_weights_that_cannot_be_are_refused(content, run, capsys):
    for name in ("potential.safetensors", f"{NEWEST}/ema.safetensors"):
        renew(run)
        (run / name).write_bytes(content)
        status, said = call(capsys, "resume")
        assert status == 2
        assert len(said) == 1
        assert f"run/{name} is missing or damaged" in said[0]


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * float("nan"),
        lambda x: x.astype(mx.float16),
        lambda x: x.astype(mx.int32),
        lambda x: x.reshape(1, *x.shape),
    ],
)
def test_weights_of_another_kind_are_refused(name, change, run, capsys):
    path = run / NEWEST / f"{name}.safetensors"
    arrays = mx.load(str(path))
    first = next(k for k, v in arrays.items() if v.dtype == mx.float32)
    mx.save_safetensors(str(path), {**arrays, first: change(arrays[first])})
    status, said = call(capsys, "resume")
    assert status == 2
    assert str(path) in said[0]
    assert first in said[0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"xs": np.full((4, 16, 2), np.nan, np.float32)},
        {"xs": np.zeros((4, 16, 3), np.float32)},
        {"xs": np.zeros((4, 16), np.float32)},
        {"xs": np.zeros((4, 0, 2), np.float32)},
        {"xs": np.zeros((4, 16, 2), "U3")},
        {"data": np.zeros((5, 1))},
        {"ts": np.zeros(3)},
        {"step": np.zeros(3)},
        {"step": np.array("six")},
    ],
    ids=range(9),
)
def test_flow_lines_that_cannot_be_are_sampled_again(arrays, run, capsys):
    with np.load(run / "flow.npz") as flow:
        np.savez(run / "flow.npz", **{**flow, **arrays})
    status, said = call(capsys, "plot")
    assert status == 0
    assert len(said) == 1
    assert "run/flow.npz" in said[0]


@pytest.mark.parametrize("shape", [(10**18, 16, 2), (0, 10**11), (2**32, 2**32), (-4, 16, 2)])
def test_a_header_that_claims_more_than_the_file_is_not_believed(shape, run, capsys):
    with np.load(run / "flow.npz") as flow:
        kept = dict(flow)
    np.savez(run / "flow.npz", **{k: v for k, v in kept.items() if k != "xs"})
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(run / "flow.npz", "a") as archive:
        archive.writestr("xs.npy", header.getvalue() + kept["xs"].tobytes())
    status, said = call(capsys, "plot")
    assert status == 0
    assert "run/flow.npz" in said[0]


def test_a_bomb_is_not_unpacked(run, capsys):
    np.savez_compressed(run / "flow.npz", x=np.zeros(10**7))
    assert "compressed" in call(capsys, "plot")[1][0]


@pytest.mark.parametrize(
    "line",
    [
        '{"loss": 1}',
        '{"step": "2", "loss": 1}',
        '{"step": -2, "loss": 1}',
        '{"step": 2, "loss": NaN}',
        '{"step": 2, "loss": "1"}',
        "[" * 100_000,
    ],
    ids=range(6),
)
def test_a_line_of_metrics_that_cannot_be_is_named(line, run, capsys):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    for command in ("resume", "plot"):
        status, said = call(capsys, command)
        assert status == 2
        assert "run/metrics.jsonl" in said[0]
        assert "line 4" in said[0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("width: 8", "width: -8", "--width is -8"),
        ("method: cfm", "method: cmf", "cfm"),
        ("solver: dopri5", "solver: [dopri5]", "--solver is ['dopri5']"),
        ("lr: 0.001", "lr: 2001-99-99", "month"),
        ("lr: 0.001", "lr: --help", "lr"),
        ("lr: 0.001", "lr: !!python/object:os.system x", "line 26"),
        ("seed: 0\n", "seed: 0\n? [a, b]\n: 1\n", "line"),
        ("cpu: false\n", "", "cut short"),
        ("cpu: false\n", "cp", "not YAML"),
    ],
)
def test_settings_that_cannot_be_are_named(before, after, message, run, capsys):
    text = (run / "config.yaml").read_text()
    assert before in text
    (run / "config.yaml").write_text(text.replace(before, after))
    for command in ("resume", "sample"):
        status, said = call(capsys, command)
        assert status == 2
        assert len(said) == 1
        assert "run/config.yaml" in said[0]
        assert message in said[0]


def test_the_last_option_tells_half_of_the_settings_from_all():
    options = list(settings.run_options(settings.Train()))
    assert options[-1] == settings.LAST_OPTION
    assert "format" not in options


# Older and newer versions


def test_a_run_of_the_first_version_goes_on(run, capsys):
    for command in ("sample", "evaluate", "plot"):
        assert call(capsys, command) == (0, [])
    space = replace(load(run).space, conditioning=UNCONDITIONAL)
    state = resolve.training_state(check(settings.read_config(run / "config.yaml")), space)
    with pytest.raises(ValueError, match="does not fit"):  # it has a condition
        checkpoint.load(run / "checkpoints", state)
    main([*COMMANDS["resume"], "--steps", "8"])
    assert [line["step"] for line in runfiles.read_metrics(runfiles.open_run(run))] == [2, 4, 6, 8]
    assert not [line for line in capsys.readouterr().err.splitlines() if "flowmlx:" in line]
    assert runs.saved_step(runfiles.open_run(run)) == 8


def number_of(run, name, number):
    """Give a file of a run a format."""
    path = run / name
    if name == "config.yaml":
        lines = [line for line in path.read_text().splitlines() if "format" not in line]
        path.write_text("\n".join([f"format: {number}", *lines, ""]))
    elif path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))
    else:
        arrays, metadata = mx.load(str(path), return_metadata=True)
        about = {**json.loads(metadata["semidiscrete"]), "format": number}
        mx.save_safetensors(str(path), arrays, {"semidiscrete": json.dumps(about)})


NUMBERED = ["config.yaml", "data.json", "potential.safetensors", f"{NEWEST}/state.json"]


@pytest.mark.parametrize("name", NUMBERED)
def test_a_newer_format_is_said_in_one_line(name, run, capsys):
    number_of(run, name, 1)
    assert call(capsys, "resume") == (0, [])
    number_of(run, name, 7)
    status, said = call(capsys, "resume")
    assert status == 2
    assert len(said) == 1
    assert f"run/{name} has format 7" in said[0]
    assert "update flowmlx" in said[0]


def test_files_carry_their_format(run):
    main([*COMMANDS["resume"], "--steps", "7"])
    assert yaml.safe_load((run / "config.yaml").read_text())["format"] == 1
    main(["train", "--config", "run/config.yaml", "--out", "new"])
    for name in ("config.yaml", "data.json", "checkpoints/00000007/state.json"):
        assert yaml.safe_load(Path("new", name).read_text())["format"] == 1


@pytest.mark.parametrize("name", ["config.yaml", "data.json", f"{NEWEST}/state.json"])
def test_unknown_keys_are_a_warning(name, run, capsys):
    path = run / name
    if name == "config.yaml":
        path.write_text("colour: green\n" + path.read_text())
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "green"}))
    for command in ("sample", "resume"):
        status, said = call(capsys, command)
        assert status == 0
        assert all(line.startswith("flowmlx: warning: ") for line in said)
        assert f"run/{name}" in said[0]
        assert "colour" in said[0]


@pytest.mark.parametrize("words", [["train", "--resume", "run"], ["train", "--config", "my.yaml"]])
def test_a_key_twice_is_refused_with_its_line(words, run, capsys):
    text = (run / "config.yaml").read_text() + "steps: 9\n"
    for path in (run / "config.yaml", Path("my.yaml")):
        path.write_text(text)
    line = text.splitlines().index("steps: 6") + 1
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "steps" in error
    assert f"line {text.count(chr(10))}" in error
    assert f"first in {line}" in error


# A damaged checkpoint


def test_a_damaged_checkpoint_names_those_that_can_be_taken(run, capsys):
    (run / NEWEST / "ema.safetensors").write_bytes(b"")
    for command in ("resume", "sample"):
        said = call(capsys, command)[1]
        assert "of step 4" in said[0]
        assert f"remove run/{NEWEST}" in said[0]
    main(["sample", "run", "-n", "4", "--step", "4"])
    shutil.rmtree(run / NEWEST)
    capsys.readouterr()
    assert call(capsys, "resume") == (0, [])
    assert runs.saved_step(runfiles.open_run(run)) == 6


def test_damaged_older_checkpoints_are_not_offered(run, capsys):
    for step in ("00000004", "00000006"):
        cut(run / "checkpoints" / step / "model.safetensors")
    said = call(capsys, "resume")[1]
    assert "no other checkpoint" in said[0]


def test_a_checkpoint_that_goes_while_it_is_read_is_read_anew(run, monkeypatch):
    """As that of a run that is trained meanwhile: the newest of then is taken."""
    read = checkpoint._read_about

    def removed(path):
        if path.name == "00000006" and path.exists():
            shutil.rmtree(path)
        return read(path)

    monkeypatch.setattr(checkpoint, "_read_about", removed)
    assert load(run).step == 4


def test_step_and_folder_of_a_checkpoint_agree(run, capsys):
    (run / NEWEST).rename(run / "checkpoints/00000005")
    for command in ("resume", "sample"):
        status, said = call(capsys, command)
        assert status == 2
        assert "00000005/state.json" in said[0]


def test_other_names_beside_the_checkpoints_are_not_taken_for_some(run, capsys):
    for name in ("7", "\N{SUPERSCRIPT TWO}" * 8, "notes.txt"):
        (run / "checkpoints" / name).write_text("")
    assert call(capsys, "sample") == (0, [])

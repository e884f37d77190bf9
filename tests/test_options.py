"""Options: their names, how values are read, and their help."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flowmlx.command.cli import COMMANDS, main
from flowmlx.experiment import options as settings
from flowmlx.experiment.options.old_names import NEW_NAMES
from flowmlx.experiment.options.ranges import RANGES

OLD_RUN = Path(__file__).parent / "old_run"  # written when all options had their old names


DEFAULT = settings.flatten(settings.Train())


# One declaration, three ways to give a value

# For each option that defines a run: a value, as Python has it, that is not the default.
VALUES = {
    "target": "data.csv",
    "source": "normal",
    "condition": "kind,weight",
    "holdout": 0.25,
    "time_column": None,
    "leave_out": None,
    "reflow": "first",
    "reflow_pairs": 70,
    "method": "sf2m",
    "sigma": 0.5,
    "path": "bridge",
    "coupling": "exact_ot",
    "prediction": "x1",
    "regress": "x0",
    "training_times": "beta",
    "loss_weight": "brownian",
    "plan_steps": 3,
    "condition_cost": 2.5,
    "condition_dropout": 0.0,
    "width": 8,
    "depth": 3,
    "activation": "relu",
    "time_embedding": "sinusoidal",
    "steps": 7,
    "batch_size": 16,
    "lr": 0.01,
    "lr_schedule": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.0,
    "clip_norm": 1.5,
    "ema_decay": 0.5,
    "log_every": 4,
    "checkpoint_every": 5,
    "patience": 6,
    "solver": "rk4",
    "rtol": 1e-3,
    "atol": 1e-5,
    "step_size": 0.125,
    "grid": "sine",
    "samples": 33,
    "frames": 9,
    "seed": 2**63 - 1,
    "cpu": True,
}
FOLDERS = {"out": "new", "config": "my.yaml", "resume": "old"}


def word(name, value):
    flag = "--" + name.replace("_", "-")
    return flag if value is True else f"{flag}={value}"


def test_a_keyword_a_word_and_a_line_of_yaml_say_the_same(tmp_path):
    """Each option alone, with a value of its own; what needs another option has it in all three."""
    assert {*VALUES, *FOLDERS} == set(settings.options_of(settings.Train))
    needs = {
        "leave_out": {"time_column": "day", "leave_out": 2.0},
        "time_column": {"time_column": "day"},
        "reflow_pairs": {"reflow": "first", "reflow_pairs": 70},
        "grid": {"grid": "sine", "step_size": 0.125},
    }
    for name, value in VALUES.items():
        options = needs.get(name, {name: value})
        config = settings.from_keywords(**options)
        assert settings.flatten(config)[name] == options[name] != DEFAULT[name]
        spelled = settings.given([word(*option) for option in options.items()])
        assert settings.from_keywords(**spelled) == config
        file = tmp_path / "my.yaml"
        file.write_text("".join(f"{k}: {v}\n" for k, v in options.items()))
        assert settings.from_keywords(settings.file_options(file)) == config
        file.write_text(settings.to_yaml(config))
        assert settings.read_config(file) == config


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("steps", np.int64(7), 7),
        ("steps", np.array(7), 7),
        ("steps", 2e4, 20_000),
        ("steps", "2e4", 20_000),
        ("seed", str(2**63 - 1), 2**63 - 1),
        ("lr", np.float32(0.5), 0.5),
        ("lr", 1, 1.0),
        ("lr", "1e-2", 0.01),
        ("clip_norm", None, None),
        ("clip_norm", "None", None),
        ("cpu", np.bool_(True), True),
        ("cpu", "true", True),
        ("target", Path("a") / "data.csv", "a/data.csv"),
        ("target", 2024, "2024"),
        ("condition", ["kind", "weight"], "kind,weight"),
        ("condition", (3,), "3"),
        ("condition", None, None),
    ],
)
def test_values_are_read_as_users_have_them(name, value, read):
    found = settings.flatten(settings.from_keywords(**{name: value}))[name]
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepps": 3}, r"unknown option stepps \(did you mean 'steps'\?\)"),
        ({"steps": "many"}, r"--steps is 'many'; expected a whole number$"),
        ({"steps": 2.5}, r"--steps is 2.5; expected a whole number$"),
        ({"steps": float("inf")}, r"--steps is inf; expected a whole number$"),
        ({"steps": True}, r"--steps is True; expected a whole number$"),
        ({"steps": None}, r"--steps is None; expected a whole number$"),
        ({"steps": [1, 2]}, r"--steps is \[1, 2\]; expected a whole number$"),
        ({"lr": np.ones(3)}, r"--lr is a NumPy array of float64 \(3,\); expected a number$"),
        ({"clip_norm": "small"}, r"--clip-norm is 'small'; expected a number, or None$"),
        ({"cpu": 1}, r"--cpu is 1; expected true or false$"),
        ({"cpu": "yes"}, r"--cpu is 'yes'; expected true or false$"),
        ({"target": None}, r"--target is None; expected a word$"),
        ({"target": ["a.csv"]}, r"--target is \['a.csv'\]; expected a word$"),
        ({"condition": [["a"]]}, r"expected a word"),
        ({"method": "vpp"}, r"unknown method 'vpp' \(did you mean 'vp'\?\)"),
        ({"steps": 0}, r"--steps is 0; expected a number at least 1$"),
    ],
)
def test_keywords_that_cannot_be_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        settings.from_keywords(**options)
    assert "\n" not in str(error.value)


def test_words_and_files_are_refused_as_keywords_are(tmp_path, capsys):
    file = tmp_path / "my.yaml"
    for name, value in (("steps", "many"), ("lr", "[1, 2]"), ("method", "vpp")):
        with pytest.raises(ValueError, match=r"\S") as error:
            settings.from_keywords(**{name: value})
        with pytest.raises(SystemExit):
            main(["train", word(name, value)])
        assert capsys.readouterr().err == f"flowmlx: error: {error.value}\n"
    file.write_text("steps: many\n")
    with pytest.raises(ValueError, match=r"my.yaml: --steps is 'many'; expected a whole"):
        settings.file_options(file)


def test_options_of_a_time_column_are_otcfm_unless_told_otherwise():
    assert settings.from_keywords(time_column="day").flow.method == "otcfm"
    assert settings.from_keywords({"time_column": "day"}, steps=3).flow.method == "otcfm"
    assert settings.from_keywords({"method": "vp"}, time_column="day").flow.method == "vp"
    assert settings.from_keywords(steps=3).flow.method == "vp"


def test_later_options_override_earlier_ones():
    config = settings.from_keywords({"steps": 3, "lr": 0.1, "cpu": True}, steps=4, cpu=False)
    assert (config.training.steps, config.training.lr, config.run.cpu) == (4, 0.1, False)
    assert settings.given(["--no-cpu", "-e", "5", "--batch_size=8"]) == {
        "cpu": False,
        "steps": "5",
        "batch_size": "8",
    }


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_has_one_name(command):
    """Options are grouped in the help but flat on the command line and in files."""

    def leaves(group):
        for field in fields(group):
            yield from leaves(field.type) if is_dataclass(field.type) else [field.name]

    assert list(settings.options_of(command)) == list(leaves(command))


def test_every_table_of_names_is_of_an_option():
    known = {name for command in COMMANDS for name in settings.options_of(command)}
    assert set(settings.TABLES) <= known


def test_every_number_has_a_range():
    """But for those that any number can be."""
    ranged = {name for names in RANGES.values() for name in names}
    numbers = {
        option.name
        for command in COMMANDS
        for option in settings.options_of(command).values()
        if option.kind in (int, float)
    }
    assert numbers - ranged == {"leave_out", "at_time", "guidance"}
    assert ranged <= numbers


# Old names

# A value for each option that once had another name, as it is written.
RENAMED = {
    "times": "9",
    "time_sampler": "beta",
    "weight": "brownian",
    "condition_weight": "2.5",
    "block": "3",
    "pairs": "70",
    "schedule": "cosine",
}


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_go_on_working_with_a_warning_that_names_the_new_one(old, tmp_path):
    new, value = NEW_NAMES[old], RENAMED[old]
    dashed = old.replace("_", "-")
    for words in ([f"--{dashed}", value], [f"--{dashed}={value}"], [f"--{old}", value]):
        now = f"{words[0].partition('=')[0]} is now --{new.replace('_', '-')};"
        with pytest.warns(FutureWarning, match=now):
            assert settings.given(words) == {new: value}
    file = tmp_path / "my.yaml"
    file.write_text(f"{old}: {value}\n")
    with pytest.warns(FutureWarning, match=rf"my.yaml: {old} is now {new};") as found:
        assert {k: str(v) for k, v in settings.file_options(file).items()} == {new: value}
    assert len(found) == 1
    with pytest.warns(FutureWarning, match=f"^{old} is now {new};"):
        config = settings.from_keywords(reflow="first", **{old: value})
    assert config == settings.from_keywords(reflow="first", **{new: value})


def test_the_command_warns_of_an_old_name_once(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--times", "0"])
    warning, error = capsys.readouterr().err.splitlines()
    assert "warning: --times is now --frames;" in warning
    assert "--frames is 0" in error


def test_an_old_name_is_of_the_command_that_had_it():
    with pytest.warns(FutureWarning, match="--time is now --at-time"):
        found = settings.parse(["run", "--time", "2.5"], settings.Sample)
    assert (found.run, found.at_time) == ("run", 2.5)
    with pytest.raises(ValueError, match="unknown option --time"):  # train never had it
        settings.given(["--time", "2"])


def test_an_option_by_both_of_its_names_is_refused(tmp_path):
    (tmp_path / "my.yaml").write_text("times: 4\nframes: 5\n")
    with pytest.raises(ValueError, match=r"my.yaml: times and frames are one option"):
        settings.file_options(tmp_path / "my.yaml")
    with pytest.raises(ValueError, match="times and frames are one option"):
        settings.from_keywords(times=4, frames=5)


def test_a_run_with_old_names_loads_without_a_warning(tmp_path):
    shutil.copy(OLD_RUN / "config.yaml", tmp_path)
    path = tmp_path / "config.yaml"
    text = path.read_text()
    for old, value in RENAMED.items():
        text, changed = re.subn(rf"^{old}: .*$", f"{old}: {value}", text, flags=re.MULTILINE)
        assert changed == 1
    path.write_text(text.replace("reflow: null", "reflow: first"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = settings.run_options(settings.read_config(path))
    assert {old: str(options[NEW_NAMES[old]]) for old in RENAMED} == RENAMED
    assert options["patience"] is None  # which there was not


# Help


def helped(capsys, monkeypatch, *words, width=80):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert "\x1b" not in out  # colours are for terminals
    return out


def test_help_of_a_command_is_one_screen(capsys, monkeypatch):
    most_needed = "target source condition method steps batch-size lr width depth out seed config"
    for command, options, lines in (
        ("train", most_needed + " resume help-all", 40),
        ("sample", "output condition guidance at-time seed help-all", 30),
    ):
        out = helped(capsys, monkeypatch, command, "--help")
        assert len(out.splitlines()) <= lines
        for option in options.split():
            assert f"--{option} " in out, option
        assert "--help-all" in out
    assert len(helped(capsys, monkeypatch).splitlines()) < 30
    for command in ("evaluate", "plot", "reproduce", "info"):
        assert "--help-all" not in helped(capsys, monkeypatch, command, "-h")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_all_help_names_every_option_once_with_text_names_and_default(command, capsys, monkeypatch):
    out = helped(capsys, monkeypatch, command.__name__.lower(), "--help-all")
    text = " ".join(re.sub(r"[│─╭╮╰╯]", " ", out).split())
    for option in settings.options_of(command).values():
        if option.shown.positional:
            assert f"{option.shown.value} " in text
            continue
        assert len(re.findall(rf"{option.flag}(?:, --no-\S+)? [A-Z]", text)) == 1, option.name
        about = re.search(rf"{option.flag}(?:, --no-\S+)? (?:[A-Z|.,a-z]+ )?([A-Z].*)", text)[1]
        if option.name in settings.TABLES:
            entry = about.partition("(default: ")[0]
            assert set(settings.TABLES[option.name]) <= set(re.findall(r"\w+", entry)), option.name
        if option.kind is not bool and option.default is not None:
            assert f"(default: {option.default})" in about
    assert "(default: None)" not in text
    assert "None:" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_breaks_lines_between_words_and_only_where_they_are_full(width, capsys, monkeypatch):
    for command in ([], *([c.__name__.lower()] for c in COMMANDS)):
        for ask in ("--help", "--help-all"):
            out = helped(capsys, monkeypatch, *command, ask, width=width)
            lines = out.splitlines()
            assert max(map(len, lines)) <= width
            boxes = [line[2:-2] for line in lines if line.startswith("│")]
            assert boxes
            for line, following in pairwise(boxes):
                inside = [len(text) - len(text.lstrip()) for text in (line, following)]
                text = following.strip()
                if inside[0] >= 2 and inside[0] == inside[1] and not text.startswith("•"):
                    assert len(f"{line.rstrip()} {text.split()[0]}") > len(line), line


def test_help_into_a_pipe_that_closes_is_quiet():
    command = [sys.executable, "-m", "flowmlx.command.cli", "train", "--help-all"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    process.stdout.close()  # before anything is written
    error = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert error == b""


def test_help_is_drawn_in_letters_that_the_terminal_has():
    command = [sys.executable, "-m", "flowmlx.command.cli", "plot", "--help"]
    out = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True
    ).stdout.decode("ascii")
    assert "--columns N" in out


# Words that do not parse


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "unknown command 'trian' (did you mean 'train'?); known: train, sample"),
        ("train --stepps=3", "unknown option --stepps (did you mean '--steps'?); flowmlx train"),
        ("train --batchsize 3", "unknown option --batchsize (did you mean '--batch-size'?)"),
        ("train data.csv", "unexpected 'data.csv'; a value follows its option, such as --target"),
        ("train --steps", "--steps needs a value"),
        ("train --steps --lr 1", "--steps needs a value"),
        ("train --cpu=5", "unexpected '5'"),
        ("sample", "RUN is missing: folder of the run"),
        ("sample a b", "unexpected 'b'"),
        ("reproduce 3d", "unknown table '3d'"),
        ("info --all", "unknown option --all"),
    ],
)
def test_words_that_do_not_parse_get_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("flowmlx: error: ")
    assert message in error
    assert error.count("\n") == 1

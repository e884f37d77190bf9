"""Options: their names, what is read as what, and their help."""

import shutil
import warnings
from pathlib import Path

import pytest

from flowmlx.command.cli import parse
from flowmlx.experiment import options as settings
from flowmlx.experiment.options.old_names import NEW_NAMES

OLD_RUN = Path(__file__).parent / "old_run"  # written when all options had their old names

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
    option = f"--{old.replace('_', '-')}"
    expected = parse(["train", f"--{new.replace('_', '-')}", value])
    assert expected != settings.Train()
    names = f"{option} is now --{new.replace('_', '-')};"
    for words in ([option, value], [f"{option}={value}"], [f"--{old}", value]):
        with pytest.warns(FutureWarning, match=names.replace(option, option[:4] + ".*")):
            assert parse(["train", *words]) == expected
    file = tmp_path / "my.yaml"
    file.write_text(f"{old}: {value}\n")
    with pytest.warns(FutureWarning, match=f"my.yaml: {old} is now {new};") as found:
        config = parse(["train", "--config", str(file)])
    assert len(found) == 1
    assert settings.run_options(config) == settings.run_options(expected)


def test_the_old_name_of_the_time_to_sample_at_goes_on_working():
    with pytest.warns(FutureWarning, match="--time is now --at-time"):
        assert parse(["sample", "run", "--time", "2.5"]).at_time == 2.5
    with pytest.raises(ValueError, match="unknown option --time"):  # train never had it
        parse(["train", "--time", "2"])


def test_an_option_by_both_of_its_names_in_a_file_is_refused(tmp_path):
    (tmp_path / "my.yaml").write_text("times: 4\nframes: 5\n")
    with pytest.raises(ValueError, match="times and frames are one option"):
        parse(["train", "--config", str(tmp_path / "my.yaml")])


def test_a_run_with_old_names_loads_without_a_warning(tmp_path):
    shutil.copy(OLD_RUN / "config.yaml", tmp_path)
    path = tmp_path / "config.yaml"
    text = path.read_text()
    for old, value in (("times", "4"), ("time_sampler", "uniform"), ("weight", "unweighted"),
                       ("block", "null"), ("condition_weight", "null"), ("pairs", "null"),
                       ("schedule", "constant")):  # fmt: skip
        assert f"\n{old}: {value}\n" in text
        text = text.replace(f"\n{old}: {value}\n", f"\n{old}: {RENAMED[old]}\n")
    path.write_text(text.replace("reflow: null", "reflow: first"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = settings.run_options(settings.read_config(path))
    assert {NEW_NAMES[old]: str(options[NEW_NAMES[old]]) for old in RENAMED} == {
        NEW_NAMES[old]: value for old, value in RENAMED.items()
    }
    assert options["patience"] is None

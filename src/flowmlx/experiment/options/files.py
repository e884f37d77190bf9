"""Options in YAML files: the settings of a run, and files that people write."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flowmlx.experiment.options import old_names
from flowmlx.experiment.options.declarations import Train
from flowmlx.experiment.options.fields import flatten, options_of
from flowmlx.experiment.options.ranges import check_values
from flowmlx.experiment.options.values import make, refuse_unknown
from flowmlx.files import reading

# Format of config.yaml; a number above it is of a version that means something else by the same.
FORMAT = 1
# The option that `to_yaml` writes last: a file that was cut short does not have it.
LAST_OPTION = "cpu"
# Options that say where a run comes from and goes to, and do not define it.
ELSEWHERE = ("out", "config", "resume")
# Bytes of a file of settings, at most.
MOST_TEXT = 2**20


def run_options(config: Train) -> dict[str, Any]:
    """The options that define a run, by name: all but where it comes from and goes to."""
    return {name: value for name, value in flatten(config).items() if name not in ELSEWHERE}


def to_yaml(config: Train) -> str:
    """The options that define a run, as YAML that `read_config` and a person can read."""
    return yaml.safe_dump({"format": FORMAT, **run_options(config)}, sort_keys=False)


def read_config(path: str | Path) -> Train:
    """Read the settings of a run.

    Options that this version does not know are left out, with a warning. Raises ValueError, with
    the file's name, for what `to_yaml` does not write, such as half of a file.
    """
    try:
        options, _ = _read_yaml(path)
        if LAST_OPTION not in options:
            raise ValueError(f"{path} was cut short: it has no {LAST_OPTION}, the last option")
        with _naming(path):
            config = make(Train, {k: v for k, v in options.items() if k in _known()})
            check_values(config)
    except reading.NewerFormat:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; mend it, or restore a copy: the run needs it") from error
    reading.warn_of_unknown(path, options, {"format", *_known()})
    return config


def file_options(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file that a person wrote, by name.

    Old names give a FutureWarning. Raises ValueError, with the file's name, where it is not a flat
    map of options to values that they can have.
    """
    options, changes = _read_yaml(path)
    if changes:
        warnings.warn(f"{path}: {changes}", FutureWarning, stacklevel=2)
    options.pop("format", None)
    with _naming(path):
        refuse_unknown(options, _known())
        make(Train, options)
    return options


def _known() -> list[str]:
    return [name for name in options_of(Train) if name not in ELSEWHERE]


def _read_yaml(path: str | Path) -> tuple[dict[str, Any], str]:
    """The values in a YAML file by the name their key has now, and what to say of old names.

    Raises ValueError for keys that are there twice, and as `_parsed` does.
    """
    try:
        text = reading.text(path, most=MOST_TEXT)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the settings {path}: {reading.why(error)}") from error
    node, options = _parsed(path, text)
    if node is None:  # comments
        return {}, ""
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path} holds a {type(options).__name__}; expected lines 'option: value'")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise ValueError(f"{path}, line {line}: {name} is there twice, first in {lines[name]}")
        lines[name] = line
    reading.check_format(path, options, FORMAT)
    with _naming(path):
        return old_names.renamed(options, _known())


def _parsed(path: str | Path, text: str) -> tuple[yaml.Node | None, Any]:
    """The node and the values of a YAML file.

    Raises ValueError for other text, and for a value that repeats another by *name: a short file
    can so hold more of them than fit in the memory.
    """
    try:
        events = yaml.parse(text, yaml.SafeLoader)
        repeated = next((event for event in events if isinstance(event, yaml.AliasEvent)), None)
        if repeated is None:
            return yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line} is not YAML: {error.problem}") from error
    except Exception as error:  # such as a date that there is not
        raise ValueError(f"{path} is not YAML: {' '.join(reading.why(error).split())}") from error
    raise ValueError(
        f"{path}, line {repeated.start_mark.line + 1}: *{repeated.anchor} repeats a value from "
        "above; write the value itself"
    )


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Name the file in which a mistake is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

"""Options by name and value, as a person or a program gives them, to the config of a command."""

import math
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from typing import Any, NoReturn

import numpy as np

from flowmlx.experiment.options import old_names
from flowmlx.experiment.options.declarations import Train
from flowmlx.experiment.options.fields import Option, build, options_of
from flowmlx.experiment.options.ranges import check_values
from flowmlx.names import suggest
from flowmlx.solvers.arrays import describe


def from_keywords(before: Mapping[str, Any] | None = None, /, **options: Any) -> Train:
    """The settings of a run from options by name, as the command line takes them.

    Values may be what the option holds, a number of NumPy, the text of the command line, a path
    for a file, or a list for an option of several columns. `before`: options that these override,
    such as those of a file. Old names give a FutureWarning. Raises ValueError as the command does,
    in one line: for a name that is no option, or a value that it cannot have. What goes together is
    for `experiment.rules`.
    """
    options, changes = old_names.renamed(options, options_of(Train))
    if changes:
        warnings.warn(changes, FutureWarning, stacklevel=2)
    refuse_unknown(options, options_of(Train))
    config = make(Train, {**(before or {}), **options})
    check_values(config)
    return config


def refuse_unknown(names: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse names that are not `known`. Raises ValueError, with the name that may be meant."""
    for name in names:
        if name not in known:
            raise ValueError(f"unknown option {name}{suggest(str(name), known)}")


def make(command: Any, options: Mapping[str, Any]) -> Any:
    """The config of a command from options by name. Raises ValueError for what one cannot be."""
    known = options_of(command)
    values = {name: convert(known[name], value) for name, value in options.items()}
    if values.get("time_column") is not None:
        # Between near snapshots a path that is not straight leads outside of both.
        values = {"method": "otcfm", **values}
    return build(command, values)


def convert(option: Option, value: Any) -> Any:
    """A value of an option, of the type that it is declared with. Raises ValueError."""
    if option.optional and (value is None or (isinstance(value, str) and value == "None")):
        return None
    read, expected = _KINDS[option.kind]
    if option.several:
        read, expected = _texts, "a word or a list of them"
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f"{option.flag} is {describe(value)}; expected {expected}"
            + (", or None" if option.optional else "")
        ) from None


def _texts(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return _text(value)
    return ",".join(map(_text, value)) if value else _refuse()


def _text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, Number) and not isinstance(value, bool):
        return str(value)  # such as a column whose name is a number
    _refuse()


def _number(value: Any) -> float:
    return _refuse() if isinstance(value, bool | np.bool_) else float(value)


def _whole_number(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        _refuse()
    try:
        return int(value) if isinstance(value, str) else operator.index(value)
    except (ValueError, TypeError):
        number = float(value)  # such as 2e4
        return int(number) if math.isfinite(number) and number == int(number) else _refuse()


def _truth(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    _refuse()


def _refuse() -> NoReturn:
    raise ValueError


# Type of an option -> how its values are read, and what they are to be.
_KINDS: dict[type, tuple[Callable[[Any], Any], str]] = {
    str: (_text, "a word"),
    int: (_whole_number, "a whole number"),
    float: (_number, "a number"),
    bool: (_truth, "true or false"),
}

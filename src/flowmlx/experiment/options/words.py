"""Words of the command line to the config of a command."""

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any

from flowmlx.experiment.options import old_names
from flowmlx.experiment.options.declarations import Train
from flowmlx.experiment.options.fields import Option, options_of
from flowmlx.experiment.options.values import make
from flowmlx.names import suggest


def parse(words: Sequence[str], command: Any = Train) -> Any:
    """Command-line words to the config of `command`.

    Raises ValueError, in one line, for words that do not parse.
    """
    return make(command, given(words, command))


def given(words: Sequence[str], command: Any = Train) -> dict[str, Any]:
    """The options that words give to `command`, by name, as they are written there.

    Old names give a FutureWarning. Raises ValueError, in one line, for words that do not parse.
    """
    import tyro  # takes a while, and Python users do without

    words, changes = old_names.renamed_words(words, options_of(command))
    if changes:
        warnings.warn(changes, FutureWarning, stacklevel=2)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            found, unknown = tyro.cli(
                _spelled(command), args=words, add_help=False, return_unknown_args=True
            )
    except SystemExit:
        # All else is looked at below: in its box tyro says which option has no value.
        option = re.search(r"'(-\S+)'", box.getvalue())
        said = f"{option[1]} needs a value" if option else " ".join(box.getvalue().split())
        raise ValueError(f"{said}; {_more(command)}") from None
    if unknown:
        raise ValueError(_unknown(unknown[0], command))
    return {name: value for name, value in vars(found).items() if value is not None}


def _unknown(word: str, command: Any) -> str:
    flags = [o.flag for o in options_of(command).values() if not o.shown.positional]
    if not word.startswith("-"):
        return f"unexpected {word!r}; a value follows its option, such as {flags[0]} {word}"
    flag = word.partition("=")[0]
    return f"unknown option {flag}{suggest(flag.replace('_', '-'), flags)}; {_more(command)}"


def _more(command: Any) -> str:
    return f"flowmlx {command.__name__.lower()} --help-all lists the options"


@functools.cache
def _spelled(command: Any) -> type:
    """The options of a command for tyro: their spelling alone, all of them words, or None."""
    declared = [(o.name, spelled(o), None) for o in options_of(command).values()]
    return make_dataclass(command.__name__, declared)


def spelled(option: Option, **notes: Any) -> Any:
    """How an option is written, as a type for tyro, with `notes` for its help.

    Values stay words: they are converted as those of files and keywords are.
    """
    from tyro.conf import DisallowNone, Positional, arg
    from tyro.constructors import PrimitiveConstructorSpec

    if option.kind is bool:
        return Annotated[DisallowNone[bool | None], arg(**notes)]
    word = PrimitiveConstructorSpec(
        nargs=1,
        metavar=value_name(option),
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    short = [] if option.shown.short is None else [option.shown.short]
    shown = arg(metavar=value_name(option), aliases=short, **notes)
    if option.shown.positional:
        return Annotated[str | None, word, Positional, shown]
    return Annotated[str | None, word, shown]


def value_name(option: Option) -> str:
    """What stands for the value of an option in the help."""
    return option.shown.value or {int: "N", float: "X", str: "NAME"}[option.kind]

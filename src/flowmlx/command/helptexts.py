"""The help of the commands, from what their dataclasses declare; tyro sets it on the screen.

`--help` is one screen: the options that most people need, with the first sentence of their text.
`--help-all` is everything, in groups.
"""

import codecs
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, Union, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, arg, subcommand

from flowmlx.experiment.options.choices import TABLES
from flowmlx.experiment.options.fields import Option, options_of, texts_of
from flowmlx.experiment.options.words import spelled

HELP, HELP_ALL = ("-h", "--help"), "--help-all"


def show_commands(commands: Mapping[str, type]) -> None:
    """Print the help of `flowmlx` itself: its commands."""
    named = [
        Annotated[make_dataclass(name, ()), subcommand(name, description=_paragraphs(command)[0])]
        for name, command in commands.items()
    ]
    about = (
        "Flow matching for MLX: train flows, sample and plot them.",
        "To see the options of a command: flowmlx COMMAND --help",
    )
    _show(Union[tuple(named)], "flowmlx COMMAND", about)  # noqa: UP007


def show_options(name: str, command: type, *, whole: bool) -> None:
    """Print the help of a command: one screen, or the `whole` of it."""
    options = options_of(command).values()
    first = [option for option in options if option.shown.first]
    screen = _grouped(command) if whole or not first else _one_screen(command, first)
    words = [o.shown.value or "" for o in options_of(command).values() if o.shown.positional]
    _show(screen, " ".join(["flowmlx", name, *words]), _paragraphs(command))


def _show(screen: Any, usage: str, paragraphs: Sequence[str]) -> None:
    """Print a usage line, paragraphs, and the options of `screen` as tyro draws them."""
    drawn, end_of_head = _Screen(sys.stdout), "#"
    with suppress(SystemExit), redirect_stdout(drawn):
        tyro.cli(screen, args=["--help"], description=end_of_head, config=(OmitArgPrefixes,))
    lines = drawn.getvalue().splitlines()
    boxes = lines[lines.index(end_of_head) + 1 :]  # tyro does not break the lines of its head
    width = shutil.get_terminal_size().columns
    head = (textwrap.fill(text, width) for text in (f"usage: {usage} [OPTIONS]", *paragraphs))
    print("\n\n".join(head), *boxes, sep="\n")


class _Screen(io.StringIO):
    """Text that is to be printed to a stream: with its colours and letters."""

    def __init__(self, stream: Any):
        super().__init__()
        self.stream = stream

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the stream, as tyro spells UTF-8; other letters have no lines for boxes."""
        return codecs.lookup(self.stream.encoding or "ascii").name

    def isatty(self) -> bool:
        """Whether the stream takes colours: https://no-color.org."""
        return self.stream.isatty() and not os.environ.get("NO_COLOR")


def _one_screen(command: type, options: list[Option]) -> type:
    """The first options of a command in one group, and where to see the others."""
    text = arg(help=f"show all {len(options_of(command))} options", help_behavior_hint="")
    more = "help_all", Annotated[FlagCreatePairsOff[bool], text], False
    shown = [(o.name, _described(o, _first_sentence(_text(o)))) for o in options]
    return make_dataclass(command.__name__, [*((n, kind, None) for n, kind in shown), more])


def _grouped(command: Any) -> Any:
    """All options of a command, in the groups that it has them in."""
    hints, declared = get_type_hints(command), []
    for each in fields(command):
        kind = hints[each.name]
        if is_dataclass(kind):
            group = _grouped(kind)
            declared.append((_heading(kind), group, field(default_factory=group)))
        else:
            option = options_of(command)[each.name]
            declared.append((each.name, _described(option, _text(option)), None))
    grouped = make_dataclass(command.__name__, declared)
    grouped.__doc__ = " ".join(_paragraphs(command))
    return grouped


def _heading(group: Any) -> str:
    return re.findall(r"[A-Z][a-z]+", group.__name__.removesuffix("Options"))[-1].lower()


def _described(option: Option, text: str) -> Any:
    """An option as a type for tyro, with its text, the names it may be and its default."""
    names = TABLES.get(option.name, {})
    if not set(names) <= set(re.findall(r"\w+", text)):
        text += f" One of: {', '.join(names)}."
    return spelled(option, help=text, help_behavior_hint=_default(option))


def _default(option: Option) -> str:
    if option.default is MISSING:
        return "(required)"
    if option.kind is bool:
        return ""
    none = re.search(_NONE, texts_of(option.group)[option.name])
    return f"(default: {none[1] if option.default is None and none else option.default})"


def _text(option: Option) -> str:
    """The text of an option without what None, its default, stands for."""
    return re.sub(_NONE, "", texts_of(option.group)[option.name])


_NONE = r" None: (.*)\.$"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[\w)]\.) ", text)[0]


def _paragraphs(command: type) -> list[str]:
    return [" ".join(text.split()) for text in (inspect.getdoc(command) or "").split("\n\n")]

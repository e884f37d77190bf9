"""What the dataclass of a command declares: its options, their types, defaults and help."""

import ast
import functools
import inspect
import sys
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Shown:
    """How an option is written and shown, beside its name: in the Annotated type of a field.

    `value`: what stands for its value in the help, which ends with ",..." where several values are
    joined by commas. `short`: another name, such as -m. `first`: on the first screen of the help.
    `positional`: written without its name.
    """

    value: str | None = None
    short: str | None = None
    first: bool = False
    positional: bool = False


class Option(NamedTuple):
    """An option as it is declared.

    `kind`: str, int, float or bool. `optional`: whether None is a value. `default`: MISSING where
    the option is required. `group`: the dataclass that declares it.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    shown: Shown
    group: type

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return self.name if self.shown.positional else as_flag(self.name)

    @property
    def several(self) -> bool:
        """Whether it takes several values, joined by commas."""
        return (self.shown.value or "").endswith(",...")


def as_flag(name: str) -> str:
    """The name of an option as the command line has it."""
    return "--" + name.replace("_", "-")


@functools.cache
def options_of(command: type) -> dict[str, Option]:
    """The options of a command by name, without the groups that they are in, in order."""
    hints, found = get_type_hints(command, include_extras=True), {}
    for field in fields(command):
        if is_dataclass(hints[field.name]):
            found |= options_of(hints[field.name])
        else:
            found[field.name] = _option(command, field, hints[field.name])
    return found


def _option(command: type, field: Field, hint: Any) -> Option:
    hint, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    kinds = get_args(hint) or (hint,)
    shown = next((note for note in notes if isinstance(note, Shown)), Shown())
    return Option(field.name, kinds[0], NoneType in kinds, field.default, shown, command)


@functools.cache
def texts_of(group: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields by name, each in one line."""
    tree = ast.parse(inspect.getsource(sys.modules[group.__module__]))
    bodies = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    texts = {}
    for pair in pairwise(bodies[group.__name__]):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                texts[name] = " ".join(text.split())
    return texts


def flatten(config: Any) -> dict[str, Any]:
    """All options of a config by name, without the nesting that only groups them."""
    flat = {}
    for name, value in asdict(config).items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def build(command: Any, values: dict[str, Any]) -> Any:
    """The config of a command with these values of its options; those left out are the defaults."""
    hints, given = get_type_hints(command), {}
    for field in fields(command):
        if is_dataclass(hints[field.name]):
            given[field.name] = build(hints[field.name], values)
        elif field.name in values:
            given[field.name] = values[field.name]
        elif field.default is MISSING:
            text = texts_of(command)[field.name]
            raise ValueError(f"{field.name.upper()} is missing: {text[0].lower()}{text[1:-1]}")
    return command(**given)

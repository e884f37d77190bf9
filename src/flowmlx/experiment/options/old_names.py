"""Names that options had in earlier versions, and go on working by."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

# Old name -> the name now, which one of the commands has as an option.
NEW_NAMES = {
    "times": "frames",
    "time": "at_time",
    "time_sampler": "training_times",
    "weight": "loss_weight",
    "condition_weight": "condition_cost",
    "block": "plan_steps",
    "pairs": "reflow_pairs",
    "schedule": "lr_schedule",
}


def new_name(name: str, known: Container[str]) -> str:
    """What an option is called now, of a command with the options `known`."""
    new = NEW_NAMES.get(name)
    return name if name in known or new is None or new not in known else new


def renamed(options: Mapping[str, Any], known: Container[str]) -> tuple[dict[str, Any], str]:
    """Options by the names they have now, and what to say of old ones: '' where there are none.

    Raises ValueError for an option that is there by both of its names.
    """
    new = {name: new_name(name, known) for name in options}
    for old, name in new.items():
        if old != name and name in options:
            raise ValueError(f"{old} and {name} are one option; leave out {old}, its old name")
    return {new[name]: value for name, value in options.items()}, _changes(new)


def renamed_words(words: Sequence[str], known: Container[str]) -> tuple[list[str], str]:
    """Command-line words with the names that options have now, and what to say of old ones."""
    changed, new = [], {}
    for word in words:
        option, equals, value = word.partition("=")
        old = option.removeprefix("--").replace("-", "_")
        name = new_name(old, known) if option.startswith("--") else old
        if name != old:
            new[option] = f"--{name.replace('_', '-')}"
            word = new[option] + equals + value
        changed.append(word)
    return changed, _changes(new)


def _changes(new: Mapping[str, str]) -> str:
    changes = [f"{old} is now {name}" for old, name in new.items() if old != name]
    if not changes:
        return ""
    names = "the old name" if len(changes) == 1 else "old names"
    return f"{', '.join(changes)}; {names} will go on working"

"""Names and numbers that options may be."""

from typing import Any, NamedTuple

from flowmlx.experiment.options.choices import TABLES
from flowmlx.experiment.options.fields import as_flag, flatten
from flowmlx.names import look_up

INFINITY = float("inf")
LENGTH = 2**31  # MLX counts what is along an axis in 32 bits
FLOAT32 = 3e38


class Range(NamedTuple):
    """Numbers from `low` on, or above it where it is `open`, and below `high`."""

    low: float
    high: float = INFINITY
    open: bool = False

    def __str__(self) -> str:
        below = f" and below {self.high}" if self.high < INFINITY else ""
        return f"{'above' if self.open else 'at least'} {self.low}{below}"

    def holds(self, number: float) -> bool:
        """Whether `number` is one of them; NaN is not."""
        return self.low < number < self.high or (not self.open and number == self.low)


RANGES = {
    Range(1): ("steps", "log_every", "checkpoint_every", "patience", "n", "rows"),
    Range(1, LENGTH): (
        *("batch_size", "width", "depth", "lines", "columns"),
        *("plan_steps", "reflow_pairs"),
    ),
    Range(2, LENGTH): ("samples", "frames"),
    Range(0): ("warmup_steps", "rtol", "atol", "step"),
    Range(0, FLOAT32): ("sigma", "weight_decay"),
    Range(0, 2**63): ("seed",),
    Range(0, FLOAT32, open=True): ("lr", "clip_norm", "condition_cost"),
    Range(1e-4): ("step_size",),
    Range(0, 1): ("ema_decay", "condition_dropout"),
    Range(0, 1, open=True): ("holdout",),
}


def check_values(command: Any) -> None:
    """Refuse a name that means nothing and a number out of range. Raises ValueError."""
    values = flatten(command)
    for name, table in TABLES.items():
        if values.get(name) is not None:
            look_up(table, values[name], name.replace("_", " "))
    for allowed, names in RANGES.items():
        for name in names:
            value = values.get(name)
            if value is not None and not allowed.holds(value):
                raise ValueError(f"{as_flag(name)} is {value}; expected a number {allowed}")

"""What is refused of options before anything is read or written."""

import math

from flowmlx.experiment.options.choices import SOLVERS, TABLES
from flowmlx.experiment.options.fields import flatten
from flowmlx.experiment.options.ranges import check_ranges
from flowmlx.names import look_up
from flowmlx.solvers import SDE_METHODS


def check(config) -> None:
    """Refuse names and numbers that no run can use, before anything is read or written.

    Raises ValueError.
    """
    values = flatten(config)
    for name, table in TABLES.items():
        if values.get(name) is not None:
            look_up(table, values[name], name.replace("_", " "))
    check_ranges(values)
    if values.get("rtol") == values.get("atol") == 0:
        raise ValueError("--rtol and --atol are both 0; expected one of them above 0")
    solver = values.get("solver")
    adaptive = solver is not None and getattr(SOLVERS[solver], "error", None) is not None
    if solver in SDE_METHODS and values["grid"] not in (None, "uniform"):
        raise ValueError(f"--solver {solver} takes equal steps; leave out --grid")
    if adaptive and values.get("grid") not in (None, "uniform") and not values["step_size"]:
        raise ValueError(
            f"--solver {solver} chooses its steps, so --grid {values['grid']} has no effect; give "
            "their number as well, such as --step-size 0.05"
        )
    if values.get("reflow") and values.get("time_column"):
        raise ValueError("--reflow goes from one source to one target; leave out --time-column")
    if values.get("leave_out") is not None and not values["time_column"]:
        raise ValueError("--leave-out names a time; give the column of times with --time-column")
    if values.get("reflow_pairs") and not values["reflow"]:
        raise ValueError(
            "--reflow-pairs is how many --reflow makes; give it a run with --reflow RUN"
        )
    if not math.isfinite(values.get("guidance", 1.0)):
        raise ValueError(f"--guidance is {values['guidance']}; expected a finite number, such as 2")
    if values.get("guidance", 1.0) != 1.0 and values["condition"] is None:
        raise ValueError("--guidance strengthens a condition; give one with --condition VALUE")
    if values.get("resume") and values.get("out"):
        raise ValueError("--resume goes on in the run's own folder; leave out --out")

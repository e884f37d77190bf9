"""Kinds of data: what a run is about, a file each.

A kind reads its data and holds out some, gives the source and the training batches, measures
samples, and says how rows become points of the model. Nothing else asks which kind a run has: a new
kind is a file here, and a line in KINDS.
"""

from typing import Any

from flowmlx.kinds import plane, simulation, snapshots, table
from flowmlx.spaces.kind import Kind

# In the order in which they are asked for a target; the last takes whatever is left.
KINDS: dict[str, Kind] = {
    "plane": plane.KIND,
    "simulation": simulation.KIND,
    "snapshots": snapshots.KIND,
    "table": table.KIND,
}


def kind_of(target: Any, time_column: str | None) -> str:
    """The kind of data that `target` is: the first in KINDS that takes it."""
    return next(name for name, kind in KINDS.items() if kind.takes(target, time_column))

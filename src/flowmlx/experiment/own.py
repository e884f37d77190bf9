"""Objects that a Python user hands over in place of names."""

from typing import Any, NamedTuple


class Own(NamedTuple):
    """What an option cannot say, None where an option says it.

    `target`, `source`: rows in memory, or functions that draw some. `net`: a field (t, x) or
    (t, x, cond). `path`, `coupling`, `loss`: as of `flowmlx.paths`, `.couplings`, `.losses`.
    `optimizer`: of `mlx.optimizers`.
    """

    target: Any = None
    source: Any = None
    net: Any = None
    path: Any = None
    coupling: Any = None
    loss: Any = None
    optimizer: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those that are there."""
        return tuple(name for name, value in self._asdict().items() if value is not None)


NO_OWN = Own()

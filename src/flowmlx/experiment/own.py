"""Objects that a Python user hands over in place of names."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
import mlx.optimizers as optim

from flowmlx.paths import check_path
from flowmlx.solvers.arrays import as_numpy, check_callable, describe


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

    @property
    def of_the_flow(self) -> bool:
        """Whether some say what the velocity means: then no option says that it gives a score."""
        return bool({"path", "coupling", "loss"} & set(self.names))

    def to_sample_with(self) -> "Own":
        """Without what only training needs and may be large."""
        return self._replace(target=None, optimizer=None)


NO_OWN = Own()


def check_own(own: Own) -> None:
    """Refuse an object that cannot stand where it was given. Raises TypeError.

    Rows are checked where they are read.
    """
    for name in own.names:
        CHECKS.get(name, lambda value: None)(getattr(own, name))


def check_there(
    folder: Path, trained_with: Collection[str], needed: Collection[str], own: Own, call: str
) -> None:
    """Refuse to go on without an object that a run was trained with.

    `trained_with`: names of its objects; `needed`: of those that count now; `call`: what takes
    them, such as "flowmlx.load(...". Raises ValueError.
    """
    missing = [name for name in trained_with if name in needed and name not in own.names]
    if missing:
        given = "".join(f", {name}=..." for name in missing)
        raise ValueError(
            f"{folder} was trained with objects of your own, {' and '.join(missing)}; hand them "
            f"over in Python: {call}{given})"
        )


def check_no_other(folder: Path, trained_with: Collection[str], own: Own) -> None:
    """Refuse an object where a run was trained with none. Raises ValueError."""
    other = [name for name in own.names if name not in trained_with]
    if other:
        raise ValueError(
            f"{folder} was not trained with an object of your own as {' and '.join(other)}; leave "
            "it out"
        )


def only_in_training(*points: Any, **options: Any) -> Any:
    """Stand for a coupling or loss of the training, which a flow knows of and does not call."""
    raise ValueError("a run does not hold the coupling or loss of your own that it was trained by")


def _check_net(net: Any) -> None:
    if not isinstance(net, nn.Module):
        came = f"the class {net.__name__}" if isinstance(net, type) else describe(net)
        raise TypeError(f"net is {came}; expected a network, an mlx.nn.Module that takes (t, x)")


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, optim.Optimizer):
        raise TypeError(
            f"optimizer is {describe(optimizer)}; expected one of mlx.optimizers, such as "
            "mlx.optimizers.Adam(1e-3)"
        )
    if taken := int(as_numpy(optimizer.step)):
        raise ValueError(f"optimizer has taken {taken:,} steps already; make a new one")


CHECKS: dict[str, Callable[[Any], None]] = {
    "net": _check_net,
    "path": check_path,
    "coupling": lambda value: check_callable(value, "coupling", "coupling(x0, x1, *, key)"),
    "loss": lambda value: check_callable(value, "loss", "loss(field, x0, x1, *, key)"),
    "optimizer": _check_optimizer,
}

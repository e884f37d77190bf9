"""What a model is told beside t and x: nothing, or columns of its data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from flowmlx import couplings
from flowmlx.conditions import conditional
from flowmlx.couplings import Coupling, HostCoupling
from flowmlx.data.arrays import Table
from flowmlx.data.conditions import ConditionColumns

# What a squared difference of conditions that are numbers counts in a coupling, unless told.
NUMBERS_COST = 10.0


def text_of(value: Any) -> str:
    """A condition as the command takes it: its text, those of several columns with commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(text_of, value))
    if isinstance(value, mx.array | np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    return str(int(value)) if isinstance(value, bool) else str(value)


class Conditioning(Protocol):
    """How the conditions of a run reach its loss, its coupling and its network."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that hold them."""
        ...

    @property
    def size(self) -> int | None:
        """The network's `cond_dim`, None for no condition."""
        ...

    def encode(self, values: np.ndarray) -> np.ndarray | None:
        """Values of the columns (n, columns) as the network takes them, (n, ...)."""
        ...

    def of_table(self, table: Table) -> np.ndarray | None:
        """The conditions of the rows of a table, None where it has not the columns."""
        ...

    def parse(self, value: Any) -> mx.array | None:
        """One condition, as a user wrote it."""
        ...

    def loss(self, loss: Callable, dropout: float) -> Callable:
        """A loss that shows the conditions to the field."""
        ...

    def coupling(self, coupling: Coupling, cost: float | None, dim: int) -> Coupling:
        """A coupling of points of length `dim` that respects the conditions, at a `cost`."""
        ...

    def transport(self, cond: np.ndarray | None, cost: float | None, dim: int) -> dict[str, Any]:
        """What `fit_semidiscrete` takes of the conditions of its rows."""
        ...

    def places(self, cond: np.ndarray | None, wanted: np.ndarray | None, n: int) -> np.ndarray:
        """Places of `n` rows, with conditions `cond`, that are comparable with those `wanted`."""
        ...

    def to_dict(self) -> dict | None:
        """As JSON, for `of_dict`."""
        ...


@dataclass(frozen=True)
class Unconditional:
    """No condition."""

    names: tuple[str, ...] = ()
    size: int | None = None

    def encode(self, values: np.ndarray) -> None:
        """No condition."""
        return None

    def of_table(self, table: Table) -> None:
        """No condition."""
        return None

    def parse(self, value: Any) -> None:
        """No condition. Raises ValueError for any other."""
        if value is not None:
            raise ValueError("--condition needs a run that was trained with --condition COLUMN")

    def loss(self, loss: Callable, dropout: float) -> Callable:
        """The loss itself."""
        return loss

    def coupling(self, coupling: Coupling, cost: float | None, dim: int) -> Coupling:
        """The coupling itself."""
        return coupling

    def transport(self, cond: np.ndarray | None, cost: float | None, dim: int) -> dict[str, Any]:
        """Nothing."""
        return {}

    def places(self, cond: np.ndarray | None, wanted: np.ndarray | None, n: int) -> np.ndarray:
        """All rows."""
        return np.arange(n)

    def to_dict(self) -> None:
        """Nothing to keep."""
        return None


UNCONDITIONAL = Unconditional()


@dataclass(frozen=True)
class OnColumns:
    """Classes or numbers in columns of the data."""

    columns: ConditionColumns

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return self.columns.columns

    @property
    def size(self) -> int:
        """Number of classes, or of numbers in a condition."""
        return self.columns.size

    @property
    def _classes(self) -> bool:
        return self.columns.labels is not None

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Labels (n,) or numbers (n, size)."""
        return self.columns.encode(values)

    def of_table(self, table: Table) -> np.ndarray | None:
        """Each row's own."""
        there = set(self.names) <= set(table.columns)
        return self.columns.encode_table(table) if there else None

    def parse(self, value: Any) -> mx.array | None:
        """A condition given by its value, its text, or the values of several columns."""
        if value is None:
            return None
        return self.columns.parse(text_of(value))

    def loss(self, loss: Callable, dropout: float) -> Callable:
        """The loss of `conditions.conditional`."""
        return conditional(loss, dropout=dropout)

    def coupling(self, coupling: Coupling, cost: float | None, dim: int) -> Coupling:
        """Pairs within classes, or with the difference of conditions in the cost."""
        if not isinstance(coupling, HostCoupling):
            return coupling
        return couplings.conditional(coupling, weight=self._weight(cost, dim))

    def transport(self, cond: np.ndarray | None, cost: float | None, dim: int) -> dict[str, Any]:
        """The conditions, and their weight in the cost."""
        return {"conditions": cond, "weight": self._weight(cost, dim)}

    def _weight(self, cost: float | None, dim: int) -> float:
        """Of the squared difference of conditions, beside the squared distance of points."""
        if cost is None:
            cost = math.inf if self._classes else NUMBERS_COST
        # Standardised, squared differences are about twice the number of columns; of classes, 1.
        return cost * dim / (1 if self._classes else self.size)

    def places(self, cond: np.ndarray | None, wanted: np.ndarray | None, n: int) -> np.ndarray:
        """As many rows of each class as are wanted, each row as often as the others at most."""
        if not self._classes or cond is None or wanted is None:
            return np.arange(n)
        wanted = np.resize(wanted, n)
        places = np.empty(n, int)
        for label in np.unique(wanted):
            have, those = np.flatnonzero(cond == label), wanted == label
            # A class may have been held out whole: then any row stands for it.
            places[those] = np.resize(have if len(have) else np.arange(n), those.sum())
        return places

    def to_dict(self) -> dict:
        """As JSON."""
        return self.columns.to_dict()


def of_dict(saved: dict | None) -> Conditioning:
    """Undo `to_dict`. Raises ValueError for what that does not make."""
    return UNCONDITIONAL if saved is None else OnColumns(ConditionColumns.from_dict(saved))

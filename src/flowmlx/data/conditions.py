"""Columns of a table as conditions: classes, or numbers in units of their spread."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from flowmlx.data.arrays import Standardizer, Table

# A single column of whole numbers with no more distinct values holds classes.
MOST_CLASSES = 100


@dataclass(frozen=True, eq=False)
class ConditionColumns:
    """How the columns of a condition become what a network is told.

    `labels`: for classes, the values of the one column, in order; then `units` is None. Else the
    columns are numbers, standardised by `units`.
    """

    columns: tuple[str, ...]
    labels: tuple[float, ...] | None
    units: Standardizer | None

    @classmethod
    def fit(cls, table: Table) -> "ConditionColumns":
        """Decide from the table of the columns.

        One column of whole numbers, of which 2 to MOST_CLASSES differ, holds classes; anything else
        numbers. Raises ValueError where every column is constant.
        """
        values = np.unique(table.values)
        whole = (values == np.round(values)).all()
        if len(table.columns) == 1 and whole and 2 <= len(values) <= MOST_CLASSES:
            return cls(table.columns, tuple(values.tolist()), None)
        return cls(table.columns, None, Standardizer.fit(table))

    @property
    def size(self) -> int:
        """Number of classes, or of numbers in a condition: the network's `cond_dim`."""
        if self.units is None:
            return len(self.labels or ())
        return len(self.units.modelled)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Rows of the columns (n, columns) -> labels (n,) int32, or numbers (n, size) float32."""
        if self.units is None:
            return np.searchsorted(np.array(self.labels), values[:, 0]).astype(np.int32)
        return np.array(self.units.transform(values))

    def parse(self, text: str) -> mx.array:
        """The condition that a user wrote, one value for each column, separated by commas.

        Raises ValueError for something else, or a class that the data does not have.
        """
        try:
            numbers = [float(word) for word in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != len(self.columns) or not np.isfinite(numbers).all():
            raise ValueError(
                f"--condition is {text!r}; expected a number for {', '.join(self.columns)}"
                + (", separated by commas" if len(self.columns) > 1 else "")
            )
        if self.labels is not None and numbers[0] not in self.labels:
            known = ", ".join(f"{label:g}" for label in self.labels)
            raise ValueError(f"--condition is {text}; {self.columns[0]} was one of: {known}")
        return mx.array(self.encode(np.array([numbers]))[0])

    def to_dict(self) -> dict:
        """Lists for JSON, without loss."""
        units = None if self.units is None else self.units.to_dict()
        return {"columns": list(self.columns), "labels": self.labels, "units": units}

    @classmethod
    def from_dict(cls, saved: dict) -> "ConditionColumns":
        """Undo `to_dict`."""
        units = None if saved["units"] is None else Standardizer.from_dict(saved["units"])
        labels = None if saved["labels"] is None else tuple(saved["labels"])
        return cls(tuple(saved["columns"]), labels, units)

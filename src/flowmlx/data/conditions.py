"""Columns of a table as conditions: classes, or numbers in units of their spread."""

from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from flowmlx.data.arrays import Standardizer, Table
from flowmlx.data.arrays.table import check_there, select
from flowmlx.data.arrays.words import quoted
from flowmlx.names import suggest
from flowmlx.solvers.arrays import as_numpy

# A single column of whole numbers with no more distinct values holds classes, as one of text does.
MOST_CLASSES = 100


@dataclass(frozen=True, eq=False)
class ConditionColumns:
    """How columns of a table become a network's condition.

    Either one column holds classes: `labels` are its values, in order, and `units` is None. Or the
    columns hold numbers: `units` standardises them, and `labels` is None.
    """

    columns: tuple[str, ...]
    labels: tuple[float, ...] | tuple[str, ...] | None
    units: Standardizer | None

    @classmethod
    def fit(cls, table: Table) -> "ConditionColumns":
        """Decide from the table of the columns.

        One column of text, or of whole numbers, of which 2 to MOST_CLASSES differ, holds classes;
        anything else numbers. Raises ValueError where every column is constant, and for text among
        several columns or with more values than that.
        """
        if table.labels:
            return cls(table.columns, _classes_of_text(table), None)
        values = np.unique(table.values)
        whole = (values == np.round(values)).all()
        if len(table.columns) == 1 and whole and 2 <= len(values) <= MOST_CLASSES:
            return cls(table.columns, tuple(values.tolist()), None)
        return cls(table.columns, None, Standardizer.fit(table))

    @property
    def text(self) -> bool:
        """Whether the classes are those of a column of text."""
        return bool(self.labels) and isinstance(self.labels[0], str)

    @property
    def size(self) -> int:
        """Number of classes, or of numbers in a condition: the network's `cond_dim`."""
        if self.units is None:
            return len(self.labels or ())
        return len(self.units.modelled)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Rows of the columns (n, columns) -> labels (n,) int32, or numbers (n, size) float32.

        Raises ValueError for a value that is none of the classes.
        """
        if self.units is not None:
            return as_numpy(self.units.transform(values))
        known = np.arange(self.size) if self.text else np.array(self.labels)
        if (other := ~np.isin(values[:, 0], known)).any():
            raise ValueError(f"{self.columns[0]} {values[other][0, 0]:g} is none of its classes")
        return np.searchsorted(known, values[:, 0]).astype(np.int32)

    def encode_table(self, table: Table) -> np.ndarray:
        """The same for a table that has the columns, among others; its labels may be others, too.

        Raises ValueError as well for a missing column, and for text where there was none.
        """
        check_there(self.columns, table.columns)
        part = select(table, self.columns)
        if not self.text:
            if part.labels:
                raise ValueError(
                    f"{quoted(part.labels)} holds text; expected numbers, as in the training data"
                )
            return self.encode(part.values)
        (name,) = self.columns
        texts = part.labels.get(name)
        distinct, rows = np.unique(part.values[:, 0], return_inverse=True)
        words = [texts[int(x)] if texts else f"{x:.15g}" for x in distinct]
        return np.array([self._place(word, name) for word in words], np.int32)[rows]

    def parse(self, text: str) -> mx.array:
        """The condition that a user wrote, one value for each column, separated by commas.

        Raises ValueError for something else, or a class that the data does not have.
        """
        if self.text:
            return mx.array(self._place(text.strip(), "--condition"), mx.int32)
        return mx.array(self.encode(np.array([self._numbers(text)]))[0])

    def _place(self, text: str, what: str) -> int:
        labels = cast(tuple[str, ...], self.labels)
        if text not in labels:
            raise ValueError(
                f"{what} is {text!r}{suggest(text, labels)}; {self.columns[0]} was one of: "
                + quoted(labels)
            )
        return labels.index(text)

    def _numbers(self, text: str) -> list[float]:
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
        return numbers

    def to_dict(self) -> dict:
        """Lists for JSON, without loss."""
        units = None if self.units is None else self.units.to_dict()
        return {"columns": list(self.columns), "labels": self.labels, "units": units}

    @classmethod
    def from_dict(cls, saved: dict) -> "ConditionColumns":
        """Undo `to_dict`. Raises ValueError for what that does not make."""
        columns = tuple(saved["columns"])
        if not columns or not all(isinstance(name, str) for name in columns):
            raise ValueError(f"columns are {columns}; expected their names")
        if saved["labels"] is None:
            units = Standardizer.from_dict(saved["units"])
            if units.columns != columns:
                raise ValueError(f"the units of {units.columns} for the columns {columns}")
            return cls(columns, None, units)
        labels = tuple(saved["labels"])
        texts = all(isinstance(label, str) for label in labels)
        if not texts and not np.isfinite(np.array(labels, np.float64)).all():
            raise ValueError(f"the labels are {labels}; expected texts, or finite numbers")
        if len(columns) > 1 or len(labels) < 2 or list(labels) != sorted(set(labels)):
            raise ValueError(f"the labels are {labels}; expected two or more of one column, sorted")
        return cls(columns, labels, None)


def _classes_of_text(table: Table) -> tuple[str, ...]:
    """The labels of a table that is one column of text."""
    name, labels = next(iter(table.labels.items()))
    if len(table.columns) > 1:
        raise ValueError(
            f"'{name}' holds text, which has to be the only condition; leave out "
            f"{', '.join(repr(other) for other in table.columns if other != name)}, or encode "
            f"'{name}' (one column of 0 and 1 for each text)"
        )
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise ValueError(
            f"'{name}' holds {len(labels)} different text{'s' * (len(labels) != 1)}; expected 2 to "
            f"{MOST_CLASSES} classes"
        )
    return labels

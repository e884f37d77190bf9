"""The map between rows in the user's units and what a model sees."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from flowmlx.data.arrays.table import Table
from flowmlx.data.arrays.words import quoted
from flowmlx.solvers.arrays import as_numpy


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Standardises the columns of a table for a model, and back: z = (x - mean) / scale.

    `columns`: their names. `mean` and `scale`: (columns,) float64. The scale is the population
    standard deviation; it is 0 for a constant column. Constant columns are not modelled:
    `transform` leaves them out, and `inverse` puts them back with exactly their value.
    """

    columns: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, table: Table) -> "Standardizer":
        """Compute mean and scale of each column of `table`; warns about constant columns.

        Raises ValueError if every column is constant.
        """
        low, high = table.values.min(0), table.values.max(0)
        centre, half = low / 2 + high / 2, high / 2 - low / 2
        constant = half == 0
        names = quoted(c for c, same in zip(table.columns, constant, strict=True) if same)
        if constant.all():
            raise ValueError(f"every column is constant ({names}), so there is nothing to learn")
        if constant.any():
            warnings.warn(f"constant, so carried through unchanged: {names}", stacklevel=2)
        # In units of the range, squares do not overflow, a large offset does not cancel, and a
        # constant column gets exactly its value and 0.
        u = (table.values - centre) / np.where(constant, 1.0, half)
        return cls(table.columns, centre + half * u.mean(0), half * u.std(0))

    @property
    def modelled(self) -> tuple[str, ...]:
        """Names of the columns that are not constant, in the order of the modelled array."""
        return tuple(c for c, s in zip(self.columns, self.scale, strict=True) if s > 0)

    def transform(self, x: np.ndarray) -> mx.array:
        """Rows in original units (n, columns) -> modelled array (n, modelled columns), float32.

        Raises ValueError for a wrong number of columns, and if a result overflows float32.
        """
        varies = self.scale > 0
        z = (rows_of(x, "x", self.columns)[:, varies] - self.mean[varies]) / self.scale[varies]
        large = np.argwhere(~(np.abs(z) <= np.finfo(np.float32).max))
        if len(large):
            row, column = large[0]
            raise ValueError(
                f"row {row + 1}: column '{self.modelled[column]}' is {z[row, column]:g} standard "
                "deviations from its mean, too many for float32; check its units"
            )
        return mx.array(z.astype(np.float32))

    def inverse(self, z: mx.array | np.ndarray) -> np.ndarray:
        """Modelled array (n, modelled columns) -> rows in original units (n, columns), float64.

        Raises ValueError for a wrong number of columns.
        """
        z = rows_of(z, "z", self.modelled)
        varies = self.scale > 0
        x = np.tile(self.mean, (len(z), 1))
        x[:, varies] += z * self.scale[varies]
        return x

    def to_dict(self) -> dict:
        """Lists for JSON, without loss: JSON text keeps every digit of a float."""
        return {
            "columns": list(self.columns),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_dict(cls, saved: dict) -> "Standardizer":
        """Undo `to_dict`. Raises ValueError for what that does not make."""
        columns = tuple(saved["columns"])
        mean, scale = (np.array(saved[name], np.float64) for name in ("mean", "scale"))
        if not all(isinstance(name, str) for name in columns):
            raise ValueError(f"columns are {columns}; expected their names")
        if not mean.shape == scale.shape == (len(columns),):
            raise ValueError(f"{len(columns)} columns, {mean.size} means and {scale.size} scales")
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale >= 0).all()):
            raise ValueError("means must be finite numbers, and scales at least 0 as well")
        if not scale.any():
            raise ValueError("every scale is 0; expected a column that varies")
        return cls(columns, mean, scale)


def rows_of(x: mx.array | np.ndarray, name: str, columns: Sequence[str]) -> np.ndarray:
    """`x` as float64, checked to be rows of `columns`."""
    x = as_numpy(x, name, np.float64)
    if x.ndim != 2 or x.shape[1] != len(columns):
        raise ValueError(
            f"{name} has shape {x.shape}; expected (n, {len(columns)}), the columns "
            f"{quoted(columns)}"
        )
    return x

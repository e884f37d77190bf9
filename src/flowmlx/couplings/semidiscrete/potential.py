"""A fitted potential, and its file."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from flowmlx.files import reading
from flowmlx.files.writing import replacing
from flowmlx.solvers.arrays import as_numpy

FORMAT = 1


@dataclass(frozen=True)
class Semidiscrete:
    """A potential fitted by `fit_semidiscrete`; `semidiscrete` makes a coupling of it.

    `potential`: (N,) float32, in units of squared distance. `reg`, `weight`: those of the fit.
    `box`: (2, d) float32, least and largest draw of the source in each column, and of the
    conditions where these enter the cost. `imbalance`: how far rows are from being chosen equally
    often, the root mean square of their relative errors. `fingerprint`: tells one set of rows, and
    their conditions, from another.
    """

    potential: np.ndarray
    box: np.ndarray
    reg: float
    imbalance: float
    fingerprint: str
    weight: float = math.inf


def save_semidiscrete(path: str | Path, fitted: Semidiscrete) -> None:
    """Write a fitted potential to `path` (.safetensors), whole or not at all."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"cannot write {path}; expected a name that ends in .safetensors")
    about = {
        "format": FORMAT,
        "reg": fitted.reg,
        "imbalance": fitted.imbalance,
        "fingerprint": fitted.fingerprint,
        "weight": None if fitted.weight == math.inf else fitted.weight,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        mx.save_safetensors(
            file,
            {"potential": mx.array(fitted.potential), "box": mx.array(fitted.box)},
            {"semidiscrete": json.dumps(about)},
        )


def load_semidiscrete(path: str | Path) -> Semidiscrete:
    """Read a fitted potential. Raises ValueError where `path` does not hold one."""
    with reading.checked(path, "so it holds no fitted potential"):
        arrays, metadata = reading.arrays_of_mlx(path)
        about = reading.parse_object(metadata["semidiscrete"])
        reading.check_format(path, about, FORMAT)
        potential, box = (as_numpy(arrays[name]).copy() for name in ("potential", "box"))
        if potential.ndim != 1 or box.ndim != 2 or len(box) != 2:
            raise ValueError(f"its arrays have the shapes {potential.shape} and {box.shape}")
        if (potential.dtype, box.dtype) != (np.float32, np.float32):
            raise ValueError(f"its arrays are {potential.dtype} and {box.dtype}, not float32")
        return Semidiscrete(
            potential,
            box,
            float(about["reg"]),
            float(about["imbalance"]),
            str(about["fingerprint"]),
            math.inf if about.get("weight") is None else float(about["weight"]),
        )

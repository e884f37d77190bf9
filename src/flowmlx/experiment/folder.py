"""The files of a run: their names, and what is in them, checked before it is used.

config.yaml      the settings; reads back with --config
data.json        column names, the transform to model units, a fingerprint of the data
potential.safetensors    of a coupling that is fitted before training
source.npz       rows to start from that were in memory, in model units
checkpoints/     one folder per saved step
metrics.jsonl    a line per log step
flow.npz         times, flow lines and rows of the data, in model units
samples.csv      the samples, in the original units
results.json     timings, field evaluations, distances to held-out data
*.png, *.gif     figures

All are written whole or not at all, but for lines of metrics, of which the last may be cut. What is
damaged is a ValueError in one line, with the file's name and the way out.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from flowmlx.couplings.semidiscrete import Semidiscrete, load_semidiscrete
from flowmlx.data.arrays import FORMS, Standardizer
from flowmlx.files import locks, reading, writing
from flowmlx.kinds import KINDS
from flowmlx.names import look_up
from flowmlx.spaces import conditioning
from flowmlx.spaces.ends import Rows
from flowmlx.spaces.kind import Data
from flowmlx.spaces.space import Space
from flowmlx.training import checkpoint

# Format of data.json; a number above it is of a version that means something else by the same.
FORMAT = 1


@dataclass(frozen=True)
class Run:
    """The files of a run, by name."""

    folder: Path

    config = property(lambda self: self.folder / "config.yaml")
    data = property(lambda self: self.folder / "data.json")
    potential = property(lambda self: self.folder / "potential.safetensors")
    source = property(lambda self: self.folder / "source.npz")
    checkpoints = property(lambda self: self.folder / "checkpoints")
    metrics = property(lambda self: self.folder / "metrics.jsonl")
    flow = property(lambda self: self.folder / "flow.npz")
    samples = property(lambda self: self.folder / "samples.csv")
    results = property(lambda self: self.folder / "results.json")


class About(NamedTuple):
    """What data.json holds.

    `fingerprint`: of the data; `space`: how rows become points of the model; `pairs`: a digest of
    those that --reflow made; `own`: which parts were objects of a Python user, which the options do
    not say; `weights_only`: whether there is nothing to go on with but averaged weights.
    """

    fingerprint: str
    space: Space
    pairs: str | None = None
    own: tuple[str, ...] = ()
    weights_only: bool = False


class Lines(NamedTuple):
    """What flow.npz holds.

    Times `ts` (times,), flow lines `xs` (times, n, d) and rows `data` (m, d) in model units, and
    the `step` whose weights made them.
    """

    ts: np.ndarray
    xs: np.ndarray
    data: np.ndarray
    step: int


def open_run(folder: str | Path) -> Run:
    """Return the run in `folder`. Raises ValueError where there is none."""
    run = Run(Path(folder))
    if not os.path.lexists(run.config):
        what = "holds no config.yaml" if run.folder.is_dir() else "is not a folder"
        raise ValueError(f"{folder} is not a run: it {what}; give a folder that train wrote")
    return run


@contextlib.contextmanager
def only_writer(run: Run) -> Iterator[None]:
    """Be the one process that trains in the folder of `run`, without what a killed one has left.

    Raises ValueError where another process is.
    """
    with locks.only_writer(run.folder):
        tidy(run)
        checkpoint.remove_stale(run.checkpoints)
        yield


def tidy(run: Run) -> None:
    """Remove temporary files of killed processes from the folder of a run."""
    writing.remove_stale(run.folder)


def is_empty(folder: Path) -> bool:
    """Whether `folder` holds nothing but perhaps the lock of this process, or is not there."""
    return not folder.exists() or (folder.is_dir() and set(os.listdir(folder)) <= {locks.NAME})


def write_about(run: Run, about: About) -> None:
    """Write data.json."""
    space = about.space
    found = {
        "fingerprint": about.fingerprint,
        "kind": space.kind,
        "form": space.form,
        "units": space.transform.to_dict(),
        "times": None if space.times == Space.times else list(space.times),
        "pairs": about.pairs,
        "condition": space.conditioning.to_dict(),
        "own": list(about.own) or None,
        "weights_only": about.weights_only or None,
    }
    kept = {name: value for name, value in found.items() if value is not None}
    writing.write_text(run.data, json.dumps({"format": FORMAT, **kept}, indent=1) + "\n")


# Keys of data.json.
ABOUT = (
    "format", "fingerprint", "kind", "form", "units", "times", "pairs", "condition", "own",
    "weights_only",
)  # fmt: skip


def read_about(run: Run) -> About:
    """Read data.json."""
    with reading.checked(run.data, "restore a copy, or train anew with --config config.yaml"):
        found = reading.json_object(run.data)
        reading.check_format(run.data, found, FORMAT)
        pairs = found.get("pairs")
        about = About(
            _text(found["fingerprint"], "fingerprint"),
            _space(found),
            None if pairs is None else _text(pairs, "pairs"),
            tuple(_text(name, "own") for name in found.get("own", ())),
            bool(found.get("weights_only")),
        )
    reading.warn_of_unknown(run.data, found, ABOUT)
    return about


def _space(found: dict[str, Any]) -> Space:
    """The space in data.json; before it named them, kind and form follow from the rest."""
    units, times = Standardizer.from_dict(found["units"]), _times(found.get("times"))
    toy = units.columns == ("x0", "x1") and not units.mean.any() and (units.scale == 1).all()
    kind = found.get("kind") or ("snapshots" if times else "plane" if toy else "table")
    form = found.get("form") or ("mlx" if kind == "plane" else "arrow")
    return Space(
        _known(KINDS, kind, "kind"),
        units,
        conditioning.of_dict(found.get("condition")),
        Space.times if times is None else tuple(times),
        _known(FORMS, form, "form"),
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, where text is expected")
    return value


def _times(value: Any) -> list[float] | None:
    if value is None:
        return None
    times = np.array(value, np.float64)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0).all():
        raise ValueError(f"times are {value}, where increasing numbers are expected")
    return times.tolist()


def write_source(run: Run, rows: Rows | None) -> None:
    """Write source.npz, where there are rows to keep."""
    if rows is None:
        return
    with writing.replacing(run.source) as path:
        np.savez(path, **cast(dict[str, Any], rows.named("x0")))


def read_source(run: Run, dim: int) -> Rows | None:
    """Read source.npz, with points of `dim` numbers; None where there is none."""
    if not os.path.lexists(run.source):
        return None
    with reading.checked(run.source, "restore a copy, or train anew"):
        found = reading.arrays_of_numpy(run.source)
        points, cond = found["x0"], found.get("cond")
        if points.shape[1:] != (dim,) or not points.size or not _finite(points):
            raise ValueError(f"x0 holds something else than rows of {dim} finite numbers")
        if cond is not None and (cond.shape != points.shape[:1] or cond.dtype.kind not in "iu"):
            raise ValueError("cond holds something else than a class for each row")
        return Rows(points, cond)


def read_potential(run: Run) -> Semidiscrete:
    """Read the potential that a run was begun with."""
    if not os.path.lexists(run.potential):
        raise ValueError(
            f"{run.potential} is missing, without which the run cannot go on as it was"
        )
    try:
        return load_semidiscrete(run.potential)
    except reading.Damaged as error:
        raise ValueError(f"{error}: restore a copy, or start a new run") from error


def read_metrics(run: Run) -> list[dict]:
    """Lines of metrics, oldest first; a last line that was cut short is left out."""
    if not os.path.lexists(run.metrics):
        return []
    remedy = "remove it: the curve of the loss is all that it is for"
    with reading.checked(run.metrics, remedy):
        text = reading.text(run.metrics, least=0)
        return [
            _metrics(line, number)
            for number, line in enumerate(text.splitlines(keepends=True), 1)
            if line.endswith("\n")
        ]


def _metrics(line: str, number: int) -> dict:
    try:
        found = reading.parse_object(line)
        reading.whole_number(found["step"], "step")
        for name in ("loss", "test_loss"):
            if not isinstance(found.get(name, 0.0 if name != "loss" else None), (int, float)):
                raise ValueError(f"{name} is {found.get(name)!r}, where a number is expected")
        return found
    except Exception as error:
        raise ValueError(f"line {number}: {reading.why(error)}") from error


def read_results(run: Run) -> dict[str, Any]:
    """Timings and distances that were measured before; none where there are none."""
    if not os.path.lexists(run.results):
        return {}
    with reading.checked(run.results, "remove it: evaluate measures again"):
        return reading.json_object(run.results)


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Write timings and distances as JSON, over those of the same names."""
    together = {**read_results(run), **results}
    writing.write_text(run.results, json.dumps(together, indent=1) + "\n")


def write_lines(run: Run, lines: Lines) -> None:
    """Write flow.npz."""
    with writing.replacing(run.flow) as path:
        np.savez(path, **cast(dict[str, Any], lines._asdict()))


def read_lines(run: Run, dim: int) -> Lines:
    """Read flow.npz, with points of `dim` numbers."""
    with reading.checked(run.flow, "plot samples again and replaces it"):
        found = reading.arrays_of_numpy(run.flow)
        lines = Lines(found["ts"], found["xs"], found["data"], int(found["step"]))
        shapes = (len(lines.ts),), (len(lines.ts), lines.xs.shape[1], dim), (len(lines.data), dim)
        if tuple(x.shape for x in lines[:3]) != shapes or not lines.xs.size:
            raise ValueError(f"its arrays have the shapes {[x.shape for x in lines[:3]]}")
        for name, x in zip(Lines._fields, lines[:3], strict=False):
            if not _finite(x):
                raise ValueError(f"{name} holds something else than finite numbers")
        return lines


def _finite(x: np.ndarray) -> bool:
    return x.dtype.kind == "f" and bool(np.isfinite(x).all())


def _known(table: Any, name: Any, kind: str) -> str:
    look_up(table, name, kind)
    return name


def check_data(run: Run, data: Data) -> None:
    """Refuse data that is not what `run` was trained on. Raises ValueError."""
    about = read_about(run)
    if about.weights_only:
        raise ValueError(
            f"{run.folder} holds a flow that was saved without its training, so it is not known "
            "which data that was on; take a run that train wrote"
        )
    if about.fingerprint != data.fingerprint:
        raise ValueError(
            f"the data has changed since {run.folder} was trained on it: it needs the same files, "
            "and the same --source, --target, --holdout, --condition, --time-column, --leave-out "
            "and --seed; or start a new run"
        )

"""Train a flow, load one, and hold it: `flowmlx.train`, `flowmlx.load`, `flowmlx.Flow`."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx

from flowmlx.experiment import new, progress, runs
from flowmlx.experiment.before import options_before
from flowmlx.experiment.experiment import begin
from flowmlx.experiment.flow import Flow
from flowmlx.experiment.flow import load as _load
from flowmlx.experiment.options import from_keywords
from flowmlx.experiment.own import Own
from flowmlx.experiment.rules import check
from flowmlx.spaces.ends import MEMORY, SIMULATOR
from flowmlx.training import Report

__all__ = ["Flow", "load", "train"]


def train(
    target: Any = "moons",
    *,
    source: Any = "auto",
    net: Any = None,
    path: Any = None,
    coupling: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    callbacks: Iterable[Callable[[Report], None]] = (),
    **options: Any,
) -> Flow:
    """Train a flow to `target`, with the options of `flowmlx train` by the same names.

    `target`: rows as a file, a pandas or polars DataFrame, a pyarrow.Table, or an array of NumPy or
    MLX (n, columns); the name of a toy distribution; or a simulator, a function
    `(n, *, key) -> (n, columns)` that draws rows. `source`: such, or "normal"; "auto" is noise for
    rows. `options`: `steps=5_000`, `condition="species"`, `method="otcfm"` and so on, with the
    defaults that `flowmlx train --help-all` lists. A run is written only where `out` names a
    folder, or `resume` a run to go on with.

    Objects of your own stand for names: `net`, a module (t, x) or (t, x, cond) for the columns that
    vary, standardised; `path`, of `flowmlx.paths`; `coupling`, of `flowmlx.couplings`; `loss`, a
    function (field, x0, x1, *, key); `optimizer`, of `mlx.optimizers`. `callbacks` get a
    `training.Report` every `log_every` steps.

    Raises ValueError for whatever cannot be trained, as the command says it, and NonFiniteLoss.
    """
    own, named = _parted(
        target=target,
        source=source,
        net=net,
        path=path,
        coupling=coupling,
        loss=loss,
        optimizer=optimizer,
    )
    facts = check(from_keywords(options_before(options), **named, **options), own)
    with contextlib.ExitStack() as held:
        if facts.cpu:
            held.enter_context(mx.stream(mx.cpu))
        experiment, run = begin(facts, held, folder=_folder, progress=progress.drawing)
        record = [] if run is None else [runs.recorder(run, facts.command)]
        bar = held.enter_context(progress.TrainingBar(facts.command, experiment.state.step))
        experiment.fit([*record, bar.show, *callbacks], bar.step)
        if run is not None:
            runs.save(run, experiment.state)
        return experiment.flow()


def _parted(**given: Any) -> tuple[Own, dict[str, Any]]:
    """What was given as objects, and what by name."""
    paths = {k: os.fspath(v) for k, v in given.items() if isinstance(v, os.PathLike)}
    named = {k: v for k, v in {**given, **paths}.items() if isinstance(v, str)}
    own = {k: v for k, v in given.items() if v is not None and k not in named}
    if "target" in own:
        named["target"] = SIMULATOR if callable(own["target"]) else MEMORY
    return Own(**own), named


def _folder(options: Any):
    return None if options.out is None else new.new_run(options.out)


def load(
    folder: str | Path,
    *,
    step: int | None = None,
    net: Any = None,
    path: Any = None,
    source: Any = None,
) -> Flow:
    """Load the flow of a run that `flowmlx train`, `flowmlx.train` or `Flow.save` wrote.

    `step`: of the checkpoint, None for the newest. `net`, `path`, `source`: objects of your own
    that the flow was trained with. Nothing in the folder is executed. Raises ValueError, which
    names the file, where one is missing or damaged, or such an object is needed.
    """
    return _load(folder, step=step, own=Own(net=net, path=path, source=source))

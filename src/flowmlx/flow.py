"""Train a flow, load one, and hold it: `flowmlx.train`, `flowmlx.load`, `flowmlx.Flow`."""

import contextlib
import inspect
import os
import signal
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx

from flowmlx.experiment import loading, new, progress, runs
from flowmlx.experiment.evaluate import evaluate
from flowmlx.experiment.experiment import Experiment, begin
from flowmlx.experiment.flow import Flow
from flowmlx.experiment.folder import Run, write_results
from flowmlx.experiment.inherited import inherited_options
from flowmlx.experiment.interrupting import interruptible
from flowmlx.experiment.options import Train, from_keywords, options_of
from flowmlx.experiment.own import Own
from flowmlx.experiment.rules import check
from flowmlx.solvers import SolverError
from flowmlx.solvers.arrays import describe
from flowmlx.spaces.ends import MEMORY
from flowmlx.training import Report

__all__ = ["Flow", "load", "train"]

# Of what may be an object or a name; the others are objects only.
BY_NAME = ("target", "source", "path", "coupling")


class _Unsaid:
    """A target that is not given, so that `resume`, `config` or `reflow` may say it.

    It is not None, which a function of the user's returns by mistake.
    """

    def __repr__(self) -> str:
        return repr(options_of(Train)["target"].default)


UNSAID: Any = _Unsaid()


def train(
    target: Any = UNSAID,
    *,
    source: Any = None,
    net: Any = None,
    path: Any = None,
    coupling: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    callbacks: Iterable[Callable[[Report], None]] = (),
    **options: Any,
) -> Flow:
    """Train a flow to `target`, with the options of `flowmlx train` as keywords.

    `target`: the path of a file; rows in memory, as a pandas or polars DataFrame, a pyarrow.Table,
    or an array of NumPy or MLX (n, columns); the name of a toy data set; or a simulator, a function
    `simulator(n, *, key)` that draws n rows (n, columns) from an MLX key. `source`: where the flow
    starts, in any of these forms. With None, a flow to rows starts from normal noise.
    `options`: options of `flowmlx train`, with the same names and defaults, such as `steps=5_000`,
    `condition="species"` or `seed=1`; see `flowmlx train --help-all`. Files are written only if you
    give a new folder as `out`, or a run to continue as `resume`; `flowmlx plot RUN` draws its
    figures.

    You may give your own objects in place of names; they are not changed. `net`: an `nn.Module`
    with the arguments (t, x) or (t, x, cond), where x has the standardised columns without the
    constant ones. `path`: from `flowmlx.paths`. `coupling`: from `flowmlx.couplings`. `loss`: a
    function (field, x0, x1, *, key). `optimizer`: from `mlx.optimizers`. `callbacks`: functions
    that are called with a `training.Report` every `log_every` steps.

    Ctrl-C ends the training after the current step, with KeyboardInterrupt; if `out` is given, that
    step is saved. Raises ValueError for wrong data or options, with the same message as the
    command; TypeError for objects of a wrong type; NonFiniteLoss if the loss becomes NaN or
    infinite.
    """
    callbacks = _functions(callbacks)
    own, named = _parted(
        target=target,
        source=source,
        net=net,
        path=path,
        coupling=coupling,
        loss=loss,
        optimizer=optimizer,
    )
    resolved = check(from_keywords(inherited_options(options), **named, **options), own)
    with contextlib.ExitStack() as held:
        if resolved.cpu:
            held.enter_context(mx.stream(mx.cpu))
        experiment, run = begin(resolved, held, folder=_folder, progress=progress.drawing)
        timings = _fit(experiment, run, callbacks)
        flow = experiment.flow()
        if run is not None:
            _measure(experiment, run, flow, timings)
        return flow


def _fit(experiment: Experiment, run: Run | None, callbacks: list) -> dict[str, float]:
    """Train, with a bar and the records of a run; return what it took."""
    record = [] if run is None else [runs.recorder(run, experiment.options)]
    with (
        interruptible((signal.SIGINT,)) as interrupted,
        progress.TrainingBar(experiment.options, experiment.state.step) as bar,
    ):

        def stop(step: int) -> bool:
            bar.step(step)
            return interrupted()

        try:
            experiment.fit([*record, bar.show, *callbacks], stop)
        except RuntimeError as error:  # Ctrl-C also reaches the compilers that MLX has started
            raise (KeyboardInterrupt if interrupted() else error) from error
        if run is not None:
            runs.save(run, experiment.state)
        if not experiment.ended:
            raise KeyboardInterrupt(_stopped(run, experiment.state.step))
    return bar.timings()


def _measure(experiment: Experiment, run: Run, flow: Flow, timings: dict[str, float]) -> None:
    """Keep samples and their distances in the run, for `flowmlx plot`; the flow is there anyhow."""
    try:
        write_results(run, evaluate(run, flow, experiment.data) | timings)
    except SolverError as error:
        warnings.warn(f"trained and saved, but sampling failed: {error}", stacklevel=3)


def _parted(**given: Any) -> tuple[Own, dict[str, str]]:
    """What was given as objects, and what by name."""
    if given["target"] is None:
        raise TypeError("target is None; expected a file, rows, the name of a toy data set, ...")
    given = {k: v for k, v in given.items() if v is not None and v is not UNSAID}
    named = {
        name: os.fspath(value)
        for name, value in given.items()
        if name in BY_NAME and isinstance(value, str | os.PathLike)
    }
    own = {name: value for name, value in given.items() if name not in named}
    if "target" in own:
        named["target"] = MEMORY
    return Own(**own), named


def _functions(callbacks: Any) -> list[Callable[[Report], None]]:
    if isinstance(callbacks, Iterable):
        callbacks = list(callbacks)
        if all(map(callable, callbacks)):
            return callbacks
    raise TypeError(f"callbacks is {describe(callbacks)}; expected a list of functions (report)")


def _stopped(run: Run | None, step: int) -> str:
    """Say where a training that was interrupted can go on."""
    if run is None:
        return f"stopped after step {step:,}; out= keeps a training that is stopped"
    folder = str(run.folder)
    return f"stopped after step {step:,}, and saved; flowmlx.train(resume={folder!r}) goes on"


def _folder(options: Train) -> Run | None:
    return None if options.out is None else new.new_run(options.out)


def _with_options(function: Callable, given: type) -> inspect.Signature:
    """The signature of a function with the options that it takes, for help and completion."""
    plain = inspect.signature(function)
    own = {name: p for name, p in plain.parameters.items() if p.kind is not p.VAR_KEYWORD}
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
        for name, option in options_of(given).items()
        if name not in own
    ]
    return plain.replace(parameters=[*own.values(), *options])


train.__signature__ = _with_options(train, Train)  # pyright: ignore[reportFunctionMemberAccess]


def load(
    folder: str | Path,
    *,
    step: int | None = None,
    net: Any = None,
    path: Any = None,
    source: Any = None,
) -> Flow:
    """Load the flow from a folder that `flowmlx train`, `flowmlx.train` or `Flow.save` wrote.

    `step`: training step of the checkpoint; None loads the newest. `net`, `path`, `source`: if the
    flow was trained with your own objects, give them here again; they are not changed. Nothing in
    the folder is executed. Raises ValueError if a file is missing or damaged, with its name, or if
    one of these objects is needed.
    """
    return loading.load(folder, step=step, own=Own(net=net, path=path, source=source))

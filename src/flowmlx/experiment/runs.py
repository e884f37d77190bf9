"""The folder of a run: made, gone on with, and recorded in while it trains."""

import json
import os
import warnings
from collections.abc import Callable

from flowmlx.couplings.semidiscrete import save_semidiscrete
from flowmlx.experiment import resolve
from flowmlx.experiment.folder import (
    About,
    Run,
    check_data,
    read_about,
    read_metrics,
    read_results,
    write_about,
    write_source,
)
from flowmlx.experiment.new import absolute, all_or_nothing, check_free, go_on, write_options
from flowmlx.experiment.options import Train, read_config, run_options
from flowmlx.experiment.own import Own, check_no_other, check_there
from flowmlx.experiment.pairing import Pairing
from flowmlx.experiment.rules import Resolved
from flowmlx.files.writing import flush, naming, write_text
from flowmlx.spaces.ends import MEMORY
from flowmlx.spaces.kind import Data
from flowmlx.training import Report, TrainState, checkpoint

KEEP_CHECKPOINTS = 3
# What may differ between a run and its continuation.
CHANGEABLE = {
    "source", "target", "reflow",  # where the files are; what is in them must be the same
    "steps", "lr", "clip_norm", "patience", "log_every", "checkpoint_every", "cpu",
    "samples", "frames", "solver", "rtol", "atol", "step_size", "grid",
}  # fmt: skip


def create(run: Run, data: Data, pairing: Pairing, resolved: Resolved) -> None:
    """Write the options of a new run, and what it is to go on with, into its empty folder.

    Raises ValueError where another process has begun a run in it meanwhile.
    """
    check_free(run.folder)
    with all_or_nothing(run):
        if pairing.potential is not None:
            save_semidiscrete(run.potential, pairing.potential)
        if {"target", "source"} & set(resolved.own.names):
            write_source(run, data.source.rows)
        write_about(run, About(data.fingerprint, data.space, pairing.pairs, resolved.own.names))
        write_options(run, resolved.command)  # the last, with which it is a run


def resume(run: Run, options: Train, state: TrainState) -> None:
    """Load the newest checkpoint of `run` into `state`, to go on as `options` say.

    Metrics from steps after the checkpoint are dropped: they will be made again. A run stopped
    before its first checkpoint starts over. Raises ValueError where the run is past the steps of
    `options`.
    """
    read_results(run)  # which are needed at the end
    if os.path.lexists(run.checkpoints) and not run.checkpoints.is_dir():
        raise ValueError(
            f"{run.checkpoints} is not a folder; restore it, or remove it to start over"
        )
    saved = saved_step(run)
    if saved:
        if options.training.steps < saved:
            raise ValueError(
                f"{run.folder} is at step {saved}, past --steps {options.training.steps}; give "
                "more steps to train further"
            )
        checkpoint.load(run.checkpoints, state)
    kept = [line for line in read_metrics(run) if line["step"] <= state.step]
    last = kept[-1]["step"] if kept else 0
    if last < state.step:
        warnings.warn(
            f"{run.metrics} has no lines of the steps {last + 1} to {state.step}, which the curve "
            "of the loss will lack",
            stacklevel=2,
        )
    write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
    write_options(run, options)


def check_own(run: Run, resolved: Resolved) -> None:
    """Refuse to go on with other objects of the user's than the run was begun with.

    Rows may come from a file or from memory as long as they are the same: `check_same` sees to
    that. Raises ValueError.
    """
    about, own = read_about(run), resolved.own
    if about.weights_only:
        raise ValueError(
            f"{run.folder} holds a flow that was saved without its training; train a new run"
        )
    named = {"target": resolved.target != MEMORY, "source": resolved.source != "auto"}
    needed = {name for name in Own._fields if not named.get(name)}
    call = f"flowmlx.train(resume={str(run.folder)!r}"
    check_there(run.folder, about.own, needed, own, call)
    check_no_other(run.folder, about.own, own._replace(target=None, source=None))


def check_same(run: Run, options: Train, data: Data) -> None:
    """Refuse options or data that would make another run of `run`. Raises ValueError."""
    before = run_options(read_config(run.config))
    for name, value in run_options(absolute(options)).items():
        if name not in CHANGEABLE and value != before[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} was {before[name]} in {run.folder} and cannot change "
                f"to {value} in a resumed run; start a new run, or change only: "
                + ", ".join(sorted(CHANGEABLE))
            )
    check_data(run, data)


def open_data(run: Run, resolved: Resolved) -> Data:
    """Read the data of `run` again.

    Raises ValueError as its kind does, for data that was an object in Python, and where the data
    has changed.
    """
    own_source = resolved.source == "auto" and "source" in read_about(run).own
    in_memory = {"target": resolved.target == MEMORY, "source": own_source}
    if needed := [name for name, so in in_memory.items() if so]:
        raise ValueError(
            f"{run.folder} was trained with objects of your own, {' and '.join(needed)}, which "
            f"only Python has: measure there what flowmlx.load({str(run.folder)!r}) samples, by "
            "flowmlx.metrics"
        )
    data = resolve.kind(resolved).read(resolve.request(resolved))
    check_data(run, data)
    return data


def recorder(run: Run, options: Train) -> Callable[[Report], None]:
    """Make the callback that writes a line of metrics, and a checkpoint when one is due."""

    def record(report: Report) -> None:
        line = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "steps_per_second": round(report.steps_per_second, 2),
        }
        if report.test_loss is not None:
            line["test_loss"] = report.test_loss
        with naming(run.metrics, run.metrics), run.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        every = options.training.checkpoint_every
        if report.step // every > saved_step(run) // every:
            save(run, report.state)

    return record


def save(run: Run, state: TrainState) -> None:
    """Save a checkpoint, unless this step has one."""
    if state.step not in checkpoint.steps_saved(run.checkpoints):
        flush(run.metrics)  # its lines up to this step
        checkpoint.save(run.checkpoints, state, keep=KEEP_CHECKPOINTS)


def saved_step(run: Run) -> int:
    """Step of the newest checkpoint; 0 where there is none."""
    return max(checkpoint.steps_saved(run.checkpoints), default=0)


def last_good(run: Run, change: str = "") -> str:
    """Say which checkpoint a run that broke can go on from, with words that `change` it."""
    step = saved_step(run)
    if not step:
        return f"No checkpoint was saved yet in {run.folder}; start again"
    return f"The last good checkpoint is step {step}; go on from it with: {go_on(run)}{change}"

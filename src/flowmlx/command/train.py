"""`flowmlx train`: train a flow in a run's folder, then sample, measure and draw it."""

import contextlib
import signal
import sys
from typing import Any

from flowmlx.command import process, report
from flowmlx.command.device import use_device
from flowmlx.command.interrupt import INTERRUPTED
from flowmlx.experiment import new, progress, runs
from flowmlx.experiment.evaluate import draw, evaluate
from flowmlx.experiment.experiment import Experiment, begin, prepare
from flowmlx.experiment.folder import Run, open_run, write_results
from flowmlx.experiment.interrupting import interruptible
from flowmlx.experiment.progress import TrainingBar
from flowmlx.experiment.rules import Resolved
from flowmlx.solvers import SolverError
from flowmlx.training import NonFiniteLoss, ranks


def train(resolved: Resolved) -> None:
    """Train, sample, measure and draw. Of several ranks the first has the run's folder."""
    with contextlib.ExitStack() as held:  # the run's folder, against other processes
        use_device(resolved.cpu)
        group = ranks.launched()
        process.share_processors(group)
        with ranks.together(group):
            experiment, run = _begin(resolved, group, held)
        if run is None:
            _train_along(experiment, group)
            return
        timings = _train(experiment, run, group)
        results, figures = _finish(experiment, run)
        write_results(run, results | timings)
        report.trained(run, results | timings, figures)


def _begin(
    resolved: Resolved, group: Any, held: contextlib.ExitStack
) -> tuple[Experiment, Run | None]:
    """The experiment and, on the first rank, its folder: a new one, or that of the run resumed."""
    processes = ranks.count(group)
    _check_share(resolved.batch_size, processes)
    if ranks.number(group):
        before = open_run(resolved.resume) if resolved.resume else None
        return prepare(resolved, before=before, processes=processes), None
    return begin(
        resolved,
        held,
        folder=new.make_folder,
        processes=processes,
        progress=progress.drawing,
    )


def _check_share(size: int, processes: int) -> None:
    if size % processes:
        raise ValueError(
            f"--batch-size is {size}, which does not divide among {processes} processes; take a "
            f"multiple of {processes}, such as {-(-size // processes) * processes}"
        )


def _train(experiment: Experiment, run: Run, group: Any) -> dict[str, Any]:
    """Train as the rank that records; return what it took. Ends the process where it is stopped."""
    options, state = experiment.options, experiment.state
    if experiment.ended:
        print(f"{run.folder} is at its end, step {state.step:,}; --steps N trains it further")
    with interruptible(_signals(group)) as interrupted, TrainingBar(options, state.step) as bar:

        def stop(step: int) -> bool:
            bar.step(step)
            return interrupted()

        with _explained(run, interrupted, group):
            experiment.fit([runs.recorder(run, options), bar.show], stop, group)
            runs.save(run, state)
    if not experiment.ended or (interrupted() and group is None):
        print(
            f"stopped; saved up to step {runs.saved_step(run):,} of {options.training.steps:,}. Go "
            f"on with: {new.go_on(run)}"
        )
        ranks.leave(group)
        sys.exit(INTERRUPTED)
    best = state.early_stopping
    return bar.timings() | ({} if best is None else {"best_step": best.step})


def _signals(group: Any) -> tuple[signal.Signals, ...]:
    """Signals that end a training after its step.

    In a group of ranks only Ctrl-C: launchers send SIGTERM when a rank has failed, for which the
    others would wait for ever.
    """
    return (signal.SIGINT,) if group else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _explained(run: Run, interrupted: Any, group: Any):
    """Say from where a training that broke can go on."""
    try:
        yield
    except NonFiniteLoss as error:
        way_out = runs.last_good(run, " --lr ... --clip-norm 1")
        raise ranks.Agreed(f"{error}. {way_out}") from error
    except OSError as error:  # such as a full disk
        raise ValueError(f"{report.said(error)}. {runs.last_good(run)}") from error
    except RuntimeError as error:
        if not interrupted():  # Ctrl-C also reaches the compilers that MLX has started
            raise
        if group is not None:  # the other ranks wait in a step, and not for this
            raise KeyboardInterrupt(str(error)) from error
        print(f"flowmlx: {error}", file=sys.stderr)


def _train_along(experiment: Experiment, group: Any) -> None:
    """Train as a rank that is not the first: the first records, and this one ends when it does."""
    with interruptible(_signals(group)) as interrupted:
        try:
            experiment.fit(stop=lambda step: interrupted(), group=group)
        except NonFiniteLoss as error:
            raise ranks.Elsewhere from error
    if not experiment.ended:
        ranks.leave(group)
        sys.exit(INTERRUPTED)


def _finish(experiment: Experiment, run: Run) -> tuple[dict[str, Any], Any]:
    """Sample, measure and draw what was trained."""
    again = new.go_on(run)
    try:
        return evaluate(run, experiment.flow(), experiment.data), draw(run)
    except SolverError as error:
        raise RuntimeError(
            f"trained and saved, but sampling failed: {error} From the command line: {again} "
            "--rtol 1e-3 --atol 1e-3"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"trained and saved; sample and draw with: {again}") from None

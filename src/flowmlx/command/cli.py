"""The `flowmlx` command: train, sample, evaluate, plot, reproduce, info."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowmlx import __version__
from flowmlx.command import helptexts, info, interrupt, process, report, reproduce
from flowmlx.command.device import use_device
from flowmlx.command.interrupt import INTERRUPTED
from flowmlx.command.stopping import outlive_terminal, unwind
from flowmlx.command.train import train
from flowmlx.data.arrays import write_rows
from flowmlx.experiment import evaluate as evaluation
from flowmlx.experiment import options as settings
from flowmlx.experiment import progress, rules, runs
from flowmlx.experiment.folder import Run, open_run, tidy, write_results
from flowmlx.experiment.inherited import inherited_options
from flowmlx.experiment.loading import load
from flowmlx.experiment.options import (
    Evaluate,
    Info,
    Plot,
    Reproduce,
    Sample,
    Train,
    read_config,
)
from flowmlx.experiment.rules import Resolved
from flowmlx.names import look_up
from flowmlx.solvers import backend
from flowmlx.training import ranks


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on a user's mistake and 130 on Ctrl-C.

    Set FLOWMLX_TRACEBACK=1 to see where an error came from.
    """
    warnings.showwarning = _show_warning
    group, rank = None, 0
    try:
        interrupt.loaded()
        group = ranks.launched()
        rank = ranks.number(group)
        backend.ready()
        if arguments is None:  # a process of our own
            process.keep_loops_private()
            outlive_terminal()
            if group is None:
                unwind()
            arguments = sys.argv[1:]
        with ranks.first_speaks(group):
            with ranks.together(group):
                resolved = rules.check(parse(list(arguments)))
            command = type(resolved.command)
            if rank == 0 or command is Train:  # the others have nothing to share
                COMMANDS[command](resolved)
    except KeyboardInterrupt as stop:
        print(f"\nflowmlx: {str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("FLOWMLX_TRACEBACK"):
            raise
        agreed = group is None or isinstance(error, ranks.Agreed)
        if not isinstance(error, ranks.Elsewhere):
            which = "" if agreed else f"rank {rank}: "
            print(f"flowmlx: error: {which}{report.said(error)}", file=sys.stderr)
        if agreed:
            ranks.leave(group)
        sys.exit(2)


def parse(words: list[str]) -> Any:
    """Command-line words to a config; prints the help that they ask for, and ends the process.

    Raises ValueError for words that are no command.
    """
    ask = {*helptexts.HELP, helptexts.HELP_ALL}
    commands = {command.__name__.lower(): command for command in COMMANDS}
    if words == ["--version"]:
        print(f"flowmlx {__version__}")
        sys.exit(0)
    if not words or words[0] in ask:
        helptexts.show_commands(commands)
        sys.exit(0)
    name, *rest = words
    command = look_up(commands, name, "command")
    if ask & set(rest):
        helptexts.show_options(name, command, whole=helptexts.HELP_ALL in rest)
        sys.exit(0)
    given = settings.given(rest, command)
    if command is Train:
        return settings.from_keywords(inherited_options(given), **given)
    return settings.make(command, given)


def sample(resolved: Resolved) -> None:
    """Write new rows from a trained run to a file."""
    config = resolved.command
    use_device(config.cpu)
    run = _opened(config.run)
    flow = load(run.folder, step=config.step)
    path = Path(config.output) if config.output else run.folder / "new.csv"
    start = time.perf_counter()
    with progress.bar(total=config.n, desc="sampling", unit=" rows", delay=0.5) as bar:
        rows = flow.drawn(config)
        write_rows(path, flow.columns, rows, batch_size=config.batch_size, progress=bar.update)
    print(f"{config.n} rows in {time.perf_counter() - start:.1f} s: {path}")


def evaluate(resolved: Resolved) -> None:
    """Measure a run on held-out data."""
    config = resolved.command
    use_device(config.cpu)
    run = _opened(config.run)
    flow = load(run.folder)
    data = runs.open_data(run, Resolved(flow.options))
    results, scored = evaluation.evaluate(run, flow, data), {}
    if data.source.log_prob is not None:
        scored = evaluation.likelihood(flow, data, rows=config.rows, divergence=config.divergence)
    results |= scored
    write_results(run, results)
    report.print_rows(
        {
            "run": f"{run.folder}, step {flow.step:,}",
            "NLL": report.likelihood_row(scored),
            **report.distance_rows(results),
        }
    )


def plot(resolved: Resolved) -> None:
    """Redraw a run's figures, sampling it first where that was not done."""
    config = resolved.command
    run = _opened(config.run)
    if not evaluation.is_evaluated(run):
        use_device(read_config(run.config).run.cpu)
        flow = load(run.folder)
        data = runs.open_data(run, Resolved(flow.options))
        write_results(run, evaluation.evaluate(run, flow, data))
    for path in evaluation.draw(run, lines=config.lines, columns=config.columns):
        print(path)


def _opened(folder: str) -> Run:
    """The run in `folder`, without what a killed process has left there."""
    run = open_run(folder)
    tidy(run)
    return run


def rerun(resolved: Resolved) -> None:
    """Compute what is missing of a published comparison, and summarise it."""
    config = resolved.command
    use_device(config.cpu)
    protocol = reproduce.QUICK if config.quick else reproduce.FULL
    folder = Path(config.out or f"reproduce-{config.table}{'-quick' if config.quick else ''}")
    seeds = _seeds(config.seeds)
    missing = sum(result is None for _, result in reproduce.found(folder, seeds, protocol))
    with progress.bar(total=missing * protocol.steps, unit="step") as bar:

        def step(cell: reproduce.Cell) -> None:
            bar.set_description(f"{cell.method}, {cell.problem}, seed {cell.seed}", refresh=False)
            bar.update()

        try:
            results = reproduce.run(folder, seeds, protocol, step=step)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; the same command goes on from here") from None
    paths = reproduce.write_summary(folder, results)
    print(f"\n{reproduce.tables(reproduce.summarise(results))}")
    seconds = sum(result["seconds"] for result in results)
    rows = {
        "numbers": "mean ± standard deviation over seeds, published ones in brackets",
        "seeds": ", ".join(map(str, seeds)) + (", the quick form" if config.quick else ""),
        "time": f"{seconds / 60:.0f} minutes in all",
        "files": "  ".join(map(str, paths)),
    }
    report.print_rows(rows)


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) < 2**63 for word in words):
        raise ValueError(f"--seeds is {text!r}; expected whole numbers below 2^63, such as 42,43")
    return sorted({int(word) for word in words})


def show_info(resolved: Resolved) -> None:
    """Print versions, device, BLAS, compiler and what is missing."""
    found, problems = info.gather()
    report.print_rows(found)
    for problem in problems:
        print(f"\n{problem}")


COMMANDS: dict[type, Callable] = {
    Train: train,
    Sample: sample,
    Evaluate: evaluate,
    Plot: plot,
    Reproduce: rerun,
    Info: show_info,
}


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"flowmlx: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()

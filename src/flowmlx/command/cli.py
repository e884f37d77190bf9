"""The `flowmlx` command: train, sample, evaluate, plot, reproduce, info."""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from flowmlx.command import helptexts, info, interrupt, reproduce
from flowmlx.command.interrupt import INTERRUPTED
from flowmlx.command.stopping import interruptible, outlive_terminal, unwind
from flowmlx.couplings.semidiscrete import Semidiscrete
from flowmlx.cpu import blas, jit
from flowmlx.experiment import build, limits, progress, runs
from flowmlx.experiment import options as settings
from flowmlx.experiment.build import Problem
from flowmlx.experiment.folder import Run, only_writer, tidy, write_results
from flowmlx.experiment.options import Evaluate, Info, Plot, Reproduce, Sample, Train
from flowmlx.names import look_up
from flowmlx.solvers import SolverError
from flowmlx.training import NonFiniteLoss, Report, TrainState, ranks


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
        if arguments is None:  # a process of our own
            jit.private_cache(rank)
            outlive_terminal()
            if group is None:
                unwind()
            arguments = sys.argv[1:]
        with ranks.first_speaks(group):
            with ranks.together(group):
                command = parse(list(arguments))
                settings.check(command)
            if rank == 0 or isinstance(command, Train):  # the others have nothing to share
                COMMANDS[type(command)](command)
    except KeyboardInterrupt as stop:
        print(f"\nflowmlx: {str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("FLOWMLX_TRACEBACK"):
            raise
        agreed = group is None or isinstance(error, ranks.Agreed)
        if not isinstance(error, ranks.Elsewhere):
            which = "" if agreed else f"rank {rank}: "
            print(f"flowmlx: error: {which}{_said(error)}", file=sys.stderr)
        if agreed:
            ranks.leave(group)
        sys.exit(2)


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"this machine has not the memory for it ({error}); take less at a time"
    return str(error)


def parse(words: list[str]) -> Any:
    """Command-line words to a config; prints the help that they ask for, and ends the process.

    Raises ValueError for words that are no command.
    """
    ask = {*helptexts.HELP, helptexts.HELP_ALL}
    commands = {command.__name__.lower(): command for command in COMMANDS}
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
        return settings.from_keywords(runs.options_before(given), **given)
    return settings.make(command, given)


def train(config: Train) -> None:
    """Train, sample, measure and draw. Of several ranks the first has the run's folder."""
    with contextlib.ExitStack() as held:  # the run's folder, against other processes
        _train(config, held)


def _train(config: Train, held: contextlib.ExitStack) -> None:
    _use_device(config.run.cpu)
    group = ranks.launched()
    if group is not None:
        blas.share_processors(ranks.on_this_machine(group))
    with ranks.together(group):
        _check_share(config, ranks.count(group))
        if ranks.number(group) == 0:
            if config.resume:
                held.enter_context(only_writer(runs.open_run(config.resume)))
            else:
                runs.check_free(config)
        limits.check_memory(config, 1, ranks.count(group))  # before as many samples are drawn
        loss, problem = build.loss(config), build.problem(config)
        limits.check_memory(config, problem.target.dim, ranks.count(group))
        pairs = runs.reflow_pairs(config, problem)
        potential = _potential(config, problem)
        batches = ranks.share(build.batches(config, problem, pairs, potential), group)
        state = build.train_state(config, problem.target.dim, problem.told and problem.told.columns)
        run = None
        if ranks.number(group) == 0:
            run = _open_to_train(config, held, problem, state, pairs, potential)
    if run is None:
        _train_along(config, state, batches, loss, group)
        return
    first, start, compiled = state.step, time.perf_counter(), None
    with interruptible(group) as interrupted, _training_bar(config, first) as bar:

        def stop(step: int) -> bool:
            nonlocal compiled
            if compiled is None:  # MLX compiles a step when it is first taken
                compiled = time.perf_counter()
                progress.begin(bar)
                bar.set_postfix_str("", refresh=False)
            bar.update()
            return interrupted()

        def show(report: Report) -> None:
            bar.set_postfix(loss=f"{report.loss:.4f}", refresh=False)

        try:
            callbacks = [runs.recorder(run, config), show]
            build.train(config, state, batches, loss, callbacks, stop, group)
            runs.save(run, state)
        except NonFiniteLoss as error:
            way_out = runs.last_good(run, " --lr ... --clip-norm 1")
            raise ranks.Agreed(f"{error}. {way_out}") from error
        except OSError as error:  # such as a full disk
            raise ValueError(f"{_said(error)}. {runs.last_good(run)}") from error
        except RuntimeError as error:
            if not interrupted():  # Ctrl-C also reaches the compilers that MLX has started
                raise
            if group is not None:  # the other ranks wait in a step, and not for this
                raise KeyboardInterrupt(str(error)) from error
            print(f"flowmlx: {error}", file=sys.stderr)
    compiled = compiled or start
    timings = {
        "trained_steps": state.step - first,
        "training_seconds": time.perf_counter() - compiled,
        "compile_seconds": compiled - start,
    }
    if state.step < config.training.steps or (interrupted() and group is None):
        steps = config.training.steps
        print(
            f"stopped; saved up to step {runs.saved_step(run):,} of {steps:,}. Go on with: "
            f"{runs.go_on(run)}"
        )
        ranks.leave(group)
        sys.exit(INTERRUPTED)
    again = runs.go_on(run)
    try:
        results = runs.evaluate(run, config, problem)
        figures = runs.draw(run)
    except SolverError as error:
        raise RuntimeError(
            f"trained and saved, but sampling failed: {error} From the command line: {again} "
            "--rtol 1e-3 --atol 1e-3"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"trained and saved; sample and draw with: {again}") from None
    results |= timings if state.step > first else {}
    write_results(run, results)
    _summarise(run, results, figures)


def _open_to_train(
    config: Train, held: contextlib.ExitStack, problem: Problem, state: TrainState, pairs, potential
) -> Run:
    """Make the folder of a new run, or load the run that `config` resumes into `state`."""
    if not config.resume:
        run = runs.make_folder(config)
        held.enter_context(only_writer(run))
        runs.create(run, config, problem, pairs, potential)
        return run
    run = runs.open_run(config.resume)
    runs.resume(run, config, problem, state, pairs)
    return run


def _check_share(config: Train, processes: int) -> None:
    size = config.training.batch_size
    if size % processes:
        raise ValueError(
            f"--batch-size is {size}, which does not divide among {processes} processes; take a "
            f"multiple of {processes}, such as {-(-size // processes) * processes}"
        )


def _train_along(config: Train, state: TrainState, batches: Callable, loss: Callable, group):
    """Train as a rank that is not the first: the first records, and this one ends when it does."""
    with interruptible(group) as interrupted:
        try:
            build.train(config, state, batches, loss, [], lambda step: interrupted(), group)
        except NonFiniteLoss as error:
            raise ranks.Elsewhere from error
    if state.step < config.training.steps:
        ranks.leave(group)
        sys.exit(INTERRUPTED)


def _opened(folder: str) -> Run:
    """The run in `folder`, without what a killed process has left there."""
    run = runs.open_run(folder)
    tidy(run)
    return run


def sample(config: Sample) -> None:
    """Write new rows from a trained run to a file."""
    _use_device(config.cpu)
    run = _opened(config.run)
    trained = runs.load(run, step=config.step)
    given = {k: v for k, v in asdict(config.integration).items() if v is not None}
    path = Path(config.output) if config.output else run.folder / "new.csv"
    start = time.perf_counter()
    with progress.bar(total=config.n, desc="sampling", unit=" rows", delay=0.5) as bar:
        runs.sample_to(
            trained,
            path,
            n=config.n,
            batch_size=config.batch_size,
            solver=replace(trained.config.integration, **given),
            seed=config.seed,
            time=config.at_time,
            condition=config.condition,
            weight=config.guidance,
            guidance=config.guidance_method,
            progress=bar.update,
        )
    print(f"{config.n} rows in {time.perf_counter() - start:.1f} s: {path}")


def evaluate(config: Evaluate) -> None:
    """Measure a run on held-out data."""
    _use_device(config.cpu)
    run = _opened(config.run)
    trained = runs.load(run)
    problem = runs.open_problem(run, trained.config)
    results, scored = runs.evaluate(run, trained.config, problem), {}
    if problem.source.log_prob is not None:
        scored = runs.negative_log_likelihood(
            trained.config, problem, trained.field, rows=config.rows, divergence=config.divergence
        )
    results |= scored
    write_results(run, results)
    rows = {
        "run": f"{run.folder}, step {trained.step:,}",
        "NLL": _likelihood_row(scored),
        **_distance_rows(results),
    }
    _print_rows(rows)


def plot(config: Plot) -> None:
    """Redraw a run's figures, sampling it first where that was not done."""
    run = _opened(config.run)
    if not runs.is_evaluated(run):
        trained_with = settings.read_config(run.config)
        _use_device(trained_with.run.cpu)
        problem = runs.open_problem(run, trained_with)
        write_results(run, runs.evaluate(run, trained_with, problem))
    for path in runs.draw(run, lines=config.lines, columns=config.columns):
        print(path)


def rerun(config: Reproduce) -> None:
    """Compute what is missing of a published comparison, and summarise it."""
    _use_device(config.cpu)
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
    _print_rows(rows)


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) < 2**63 for word in words):
        raise ValueError(f"--seeds is {text!r}; expected whole numbers below 2^63, such as 42,43")
    return sorted({int(word) for word in words})


def show_info(config: Info) -> None:
    """Print versions, device, BLAS, compiler and what is missing."""
    facts, problems = info.gather()
    _print_rows(facts)
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


def _use_device(cpu: bool) -> None:
    if cpu:
        mx.set_default_device(mx.cpu)
    if mx.default_device() == mx.cpu and info.compiler() is None:
        print(f"flowmlx: {info.NO_COMPILER}", file=sys.stderr)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"flowmlx: warning: {message}", file=sys.stderr)


def _potential(config: Train, problem: build.Problem) -> Semidiscrete | None:
    """The potential of the coupling, where it has one: that of the run to resume, or fitted now."""
    if not build.needs_potential(config):
        return None
    if config.resume:
        return runs.potential(runs.open_run(config.resume), config, problem)
    with progress.bar(
        desc=f"fitting the coupling to {len(problem.reference):,} rows",
        unit=" draws",
        unit_scale=True,
    ) as bar:
        return build.fit_potential(config, problem, bar.update)


def _training_bar(config: Train, first: int) -> tqdm:
    return progress.bar(
        total=config.training.steps,
        initial=first,
        desc="training",
        unit="step",
        postfix="compiling",
    )


def _summarise(run: Run, results: dict, figures: Sequence[Path]) -> None:
    rows = {"run": str(run.folder)}
    if "trained_steps" in results:
        seconds, steps = results["training_seconds"], results["trained_steps"]
        rows["training"] = (
            f"{steps:,} steps in {seconds:.1f} s ({(steps - 1) / seconds:,.0f} steps/s), after "
            f"{results['compile_seconds']:.1f} s of compiling"
        )
    rows |= _distance_rows(results)
    rows["figures"] = "  ".join(path.name for path in figures)
    _print_rows(rows)


def _likelihood_row(scored: dict) -> str:
    if not scored:
        known = " or ".join(build.SOURCE_DENSITIES)
        return f"none: where the flow starts has no density with a formula, as {known} have"
    error = scored["nll_standard_error"]
    return (
        f"{scored['nll']:.4f}"
        + (f" +- {error:.4f}" if error is not None else "")
        + f" nats per row over {scored['nll_rows']:,} held-out rows"
        + f"; {scored['nll_original_units']:.4f} in the original units"
    )


def _distance_rows(results: dict) -> dict[str, str]:
    rows = {
        "sampling": f"{results['samples']:,} points at {results['times']} times in "
        f"{results['sampling_seconds']:.2f} s, {results['nfe']} field evaluations",
        "W2": f"{results['w2']:.4f} from samples to held-out data, {results['w2_floor']:.4f} from "
        f"data to held-out data ({results['w2_points']:,} points)",
        "energy distance": f"{results['energy_distance']:.5f} and "
        f"{results['energy_distance_floor']:.5f} in the same order",
    }
    for arrival in results.get("snapshots", ()):
        kind = "left out" if arrival["left_out"] else "held-out rows"
        rows[f"time {arrival['time']:g}"] = (
            f"W1 {arrival['w1']:.4f}, W2 {arrival['w2']:.4f} to {kind}, carried from time "
            f"{arrival['start']:g}; without moving {arrival['w1_before']:.4f} and "
            f"{arrival['w2_before']:.4f} ({arrival['points']:,} points)"
        )
    ours, floor = results["column_w1"], results["column_w1_floor"]
    if len(ours) > 2:
        mean, floor_mean = (sum(w.values()) / len(w) for w in (ours, floor))
        worst = max(ours, key=lambda name: ours[name])
        rows["column W1"] = (
            f"{mean:.4f} and {floor_mean:.4f} on average, worst {ours[worst]:.4f} ({worst}), "
            "in standard deviations"
        )
    return rows


def _print_rows(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    main()

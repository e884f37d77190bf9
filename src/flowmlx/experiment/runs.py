"""A run: made, continued, recorded, sampled, measured and drawn in its folder."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx import metrics
from flowmlx.conditions import conditioned
from flowmlx.couplings.semidiscrete import Semidiscrete, save_semidiscrete
from flowmlx.data.arrays import Standardizer, open_writer
from flowmlx.data.conditions import ConditionColumns
from flowmlx.experiment import build
from flowmlx.experiment import options as settings
from flowmlx.experiment.build import Problem
from flowmlx.experiment.folder import (
    About,
    Flow,
    Run,
    is_empty,
    open_run,
    read_about,
    read_flow,
    read_metrics,
    read_potential,
    read_results,
    write_about,
    write_flow,
)
from flowmlx.experiment.options import SolverOptions, Train
from flowmlx.files.reading import Damaged
from flowmlx.files.writing import flush, naming, write_text
from flowmlx.guidance import GUIDANCE
from flowmlx.keys import fold_in
from flowmlx.likelihood import log_prob
from flowmlx.sampling import row_blocks
from flowmlx.snapshots import arrivals
from flowmlx.solvers.arrays import as_numpy
from flowmlx.training import Report, TrainState, checkpoint

# Exact W2 is an assignment, whose cost grows as n^3; energy distance grows as n^2.
W2_POINTS, ENERGY_POINTS = 2048, 4096
# Rows of the data that figures show.
DRAWN_POINTS = 5_000
# Rows that are scored at a time, which bounds memory.
SCORED_BATCH = 4096
KEEP_CHECKPOINTS = 3
# What may differ between a run and its continuation.
CHANGEABLE = {
    "source", "target", "reflow",  # where the files are; what is in them must be the same
    "steps", "lr", "clip_norm", "log_every", "checkpoint_every", "patience", "cpu",
    "samples", "frames", "solver", "rtol", "atol", "step_size", "grid",
}  # fmt: skip


def reflow_pairs(config: Train, problem: Problem) -> tuple[np.ndarray, ...] | None:
    """The pairs of the run that `config` names with reflow; None where it names none.

    Raises ValueError where that run has other data.
    """
    if config.data.reflow is None:
        return None
    run = _reflow_run(config.data.reflow)
    _check_data(run, problem)
    first = load(run)
    return build.pairs(config, problem, first.field, first.config)


def options_before(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that those `given` for training override, by name.

    They are of the run to resume, of a file of options, and of the run whose pairs are trained on.
    """
    options: dict[str, Any] = {}
    if given.get("resume") is not None:
        options |= settings.run_options(settings.read_config(open_run(given["resume"]).config))
    named = {} if given.get("config") is None else settings.file_options(given["config"])
    if given.get("reflow") is not None:
        return options | named | reflow_options(given["reflow"])
    if named.get("reflow") is not None:  # which may itself say what the data is
        named = reflow_options(named["reflow"]) | named
    return options | named


def reflow_options(folder: str) -> dict[str, Any]:
    """Options of a run on the pairs of another, by name: its data, and the linear path."""
    config = settings.read_config(_reflow_run(folder).config)
    data = replace(config.data, source=build.source_name(config), reflow=None)
    if data.time_column is not None:
        raise ValueError(f"{folder} goes through snapshots; --reflow takes one source and target")
    given = {name: value for name, value in asdict(data).items() if value is not None}
    return {**given, "seed": config.run.seed, "method": "cfm"}


def _reflow_run(folder: str) -> Run:
    try:
        return open_run(folder)
    except ValueError as error:
        raise ValueError(f"--reflow: {error}; if it was moved, give its place now") from None


def make_folder(config: Train) -> Run:
    """Make the folder of a new run. Raises ValueError as `check_free` does."""
    check_free(config)
    if config.out is None:
        return Run(_new_folder(Path("runs"), default_name(config)))
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder)


def create(
    run: Run,
    config: Train,
    problem: Problem,
    pairs: tuple[np.ndarray, ...] | None = None,
    potential: Semidiscrete | None = None,
) -> None:
    """Write the settings of a new run, and what it is to go on with, into its empty folder.

    Raises ValueError where another process has begun a run in it meanwhile.
    """
    check_free(config)
    about = About(
        problem.fingerprint,
        problem.units,
        None if problem.series is None else list(problem.series.times),
        None if pairs is None else _digest(pairs),
        None if problem.told is None else problem.told.columns,
    )
    try:
        if potential is not None:
            save_semidiscrete(run.potential, potential)
        write_about(run, about)
        write_settings(run, config)  # the last, with which it is a run
    except BaseException:  # a full disk, or Ctrl-C: the folder is to be free again
        for path in (run.potential, run.data, run.config):
            path.unlink(missing_ok=True)
        raise


def check_free(config: Train) -> None:
    """Refuse a folder for a new run that has something in it, or a file. Raises ValueError."""
    if config.out is None or is_empty(folder := Path(config.out)):
        return
    other = f", or go on with: {go_on(Run(folder))}" if os.path.lexists(Run(folder).config) else ""
    raise ValueError(f"--out {folder} is there already; choose another name{other}")


def default_name(config: Train) -> str:
    """Name a run after its source, target and method."""
    ends = [Path(name).stem for name in (build.source_name(config), config.data.target)]
    return "-".join([*ends, config.flow.method])


def _new_folder(parent: Path, name: str) -> Path:
    """Make `parent`/`name`, or the first of `name`-2, `name`-3, ... that is free."""
    parent.mkdir(parents=True, exist_ok=True)
    k = 1
    while True:
        folder = parent / (name if k == 1 else f"{name}-{k}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            k += 1


def write_settings(run: Run, config: Train) -> None:
    """Write the settings of a run, with data files as absolute paths."""
    write_text(run.config, settings.to_yaml(build.absolute(config)))


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def resume(
    run: Run,
    config: Train,
    problem: Problem,
    state: TrainState,
    pairs: tuple[np.ndarray, ...] | None = None,
) -> None:
    """Load the newest checkpoint of `run` into `state`, to go on as `config` says.

    Metrics from steps after the checkpoint are dropped: they will be made again. A run stopped
    before its first checkpoint starts over. Raises ValueError where the data or a setting that
    would make another run has changed, or the run is past `config`'s steps.
    """
    _check_same(run, config, problem)
    read_results(run)  # which are needed at the end
    if pairs is not None and _digest(pairs) != read_about(run).pairs:
        raise ValueError(
            f"{config.data.reflow} has changed since {run.folder} was trained on its pairs; start "
            "a new run"
        )
    if os.path.lexists(run.checkpoints) and not run.checkpoints.is_dir():
        raise ValueError(
            f"{run.checkpoints} is not a folder; restore it, or remove it to start over"
        )
    saved = saved_step(run)
    if saved:
        if config.training.steps < saved:
            raise ValueError(
                f"{run.folder} is at step {saved}, past --steps {config.training.steps}; give "
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
    write_settings(run, config)


def _check_same(run: Run, config: Train, problem: Problem) -> None:
    """Refuse settings or data that would make another run of `run`."""
    before = settings.run_options(settings.read_config(run.config))
    for name, value in settings.run_options(build.absolute(config)).items():
        if name not in CHANGEABLE and value != before[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} was {before[name]} in {run.folder} and cannot change "
                f"to {value} in a resumed run; start a new run, or change only: "
                + ", ".join(sorted(CHANGEABLE))
            )
    _check_data(run, problem)


def potential(run: Run, config: Train, problem: Problem) -> Semidiscrete:
    """The potential that `run` was begun with, to go on with.

    Raises ValueError as `resume` does, and where the file is missing or damaged.
    """
    _check_same(run, config, problem)
    return read_potential(run)


def open_problem(run: Run, config: Train) -> Problem:
    """Read the data of `run` again. Raises ValueError as `build.problem`, and where it changed."""
    problem = build.problem(config)
    _check_data(run, problem)
    return problem


def _check_data(run: Run, problem: Problem) -> None:
    if read_about(run).fingerprint != problem.fingerprint:
        raise ValueError(
            f"the data has changed since {run.folder} was trained on it: it needs the same files, "
            "and the same --source, --target, --holdout, --condition, --time-column, --leave-out "
            "and --seed; or start a new run"
        )


def recorder(run: Run, config: Train) -> Callable[[Report], None]:
    """Make the callback that writes a line of metrics, and a checkpoint when one is due."""

    def record(report: Report) -> None:
        line = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "steps_per_second": round(report.steps_per_second, 2),
        }
        with naming(run.metrics, run.metrics), run.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        every = config.training.checkpoint_every
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


class Trained(NamedTuple):
    """A trained run: its settings, averaged field, source, units, and the step they are from.

    `times`: of the snapshots in the file, None without a time column. `told`: the columns of its
    condition, None without.
    """

    config: Train
    field: Callable
    source: build.End
    units: Standardizer
    times: list[float] | None
    told: ConditionColumns | None
    step: int


def load(run: Run, *, step: int | None = None) -> Trained:
    """Load a run to sample it; its target's file is not needed.

    Raises ValueError where there is no checkpoint (of `step`), or a file of the run is damaged.
    """
    config = settings.read_config(run.config)
    about = read_about(run)
    units, times, told = about.units, about.times, about.condition
    for name, found in (("time_column", times), ("condition", told)):
        if (getattr(config.data, name) is None) != (found is None):
            raise ValueError(f"{run.data} does not go with {name} of {run.config}; restore copies")
    dim = len(units.modelled)
    net = build.model(config, dim, told)
    step = checkpoint.load_ema(run.checkpoints, net, step=step)
    source = build.source(config, dim, units)
    return Trained(config, build.field(config, net), source, units, times, told, step)


def sample_to(
    trained: Trained,
    path: str | Path,
    *,
    n: int,
    batch_size: int,
    solver: SolverOptions,
    seed: int,
    time: float | None = None,
    condition: str | None = None,
    weight: float = 1.0,
    guidance: str = "cfg",
    progress: Callable[[int], object] = lambda rows: None,
) -> None:
    """Write `n` new rows in the original units to `path`, `batch_size` at a time.

    Row k is a function of `seed` and k: drawn and solved in its block of `sampling.row_blocks`.
    `time`: one up to the last of the snapshots; None is the last. `condition`: as the user wrote
    it, with a `weight` by the method `guidance`, a name in GUIDANCE. Raises ValueError for another
    time, for any in a run without snapshots, for a condition that the run does not know, and for a
    file type that cannot be written, SolverError where the solver fails.
    """
    cond = _condition(trained, condition, weight)
    field = guided(trained, cond, weight, guidance)
    key, ts = fold_in(mx.random.key(seed), "sample"), (0.0, _unit_time(trained, time))
    waiting = []
    with open_writer(path, trained.units.columns) as writer:
        for start, size in row_blocks(n):
            x0 = trained.source.start(size, cond, key=fold_in(key, start))
            solution = build.solve(
                field,
                x0,
                trained.config,
                solver,
                ts=ts,
                key=fold_in(key, "noise", start),
                times=trained.times,
            )
            waiting.append(as_numpy(solution.xs[-1])[: n - start])
            progress(len(waiting[-1]))
            done = start + size >= n
            if done or sum(map(len, waiting)) >= batch_size:
                writer.write(trained.units.inverse(np.concatenate(waiting)))
                waiting = []


def _condition(trained: Trained, condition: str | None, weight: float) -> mx.array | None:
    if condition is None:
        return None
    if trained.told is None:
        raise ValueError("--condition needs a run that was trained with --condition COLUMN")
    if weight != 1 and trained.config.flow.condition_dropout == 0:
        raise ValueError(
            "--guidance compares with the flow without condition, which this run has not learned: "
            "it was trained with --condition-dropout 0"
        )
    return trained.told.parse(condition)


def guided(trained: Trained, cond: mx.array | None, weight: float, method: str) -> Callable:
    """The field of a run under a condition, of a `weight` by a `method`, a name in GUIDANCE."""
    if cond is None or weight == 1:
        return build.under(trained.field, cond)
    return build.under(trained.field, cond, GUIDANCE[method], weight)


def _unit_time(trained: Trained, time: float | None) -> float:
    """A time of the file as the flow counts it."""
    if time is None:
        return 1.0
    if trained.times is None:
        raise ValueError("--at-time needs a run that was trained with --time-column")
    first, last = trained.times[0], trained.times[-1]
    if not first < time <= last:
        raise ValueError(
            f"--at-time is {time:g}; expected a time above {first:g} and up to {last:g}"
        )
    return build.unit_time(time, trained.times)


def last_good(run: Run, change: str = "") -> str:
    """Say which checkpoint a run that broke can go on from, with words that `change` it."""
    step = saved_step(run)
    if not step:
        return f"No checkpoint was saved yet in {run.folder}; start again"
    return f"The last good checkpoint is step {step}; go on from it with: {go_on(run)}{change}"


def go_on(run: Run) -> str:
    """The command that goes on with a run, as a shell takes it."""
    return f"flowmlx train --resume {quote(str(run.folder))}"


def evaluate(run: Run, config: Train, problem: Problem) -> dict[str, Any]:
    """Sample the newest checkpoint, measure the samples against held-out data, and keep both.

    Distances are in model units. Flow lines are kept where the data has two dimensions, beside rows
    of the data, which are those of all times there.
    """
    read_results(run)  # which these will be added to
    options = config.sampling
    told = problem.told
    net = build.model(config, problem.target.dim, told and told.columns)
    step = checkpoint.load_ema(run.checkpoints, net)
    ts = np.linspace(0, 1, options.frames) if problem.target.dim == 2 else np.array([0.0, 1.0])
    key = fold_in(mx.random.key(config.run.seed), "evaluation")
    cond = None
    if told is not None:  # the conditions of rows that were held out, as often as there are samples
        cond = mx.array(np.resize(told.heldout, (options.samples, *told.heldout.shape[1:])))
    x0 = problem.source.start(options.samples, cond, key=key)
    mx.eval(x0)
    start = time.perf_counter()
    plain = build.field(config, net)
    field = build.under(plain, cond)
    noise = fold_in(key, "noise")
    times = None if problem.series is None else problem.series.times
    solution = build.solve(field, x0, config, config.integration, ts=ts, key=noise, times=times)
    mx.eval(solution.xs)
    seconds = time.perf_counter() - start

    xs = as_numpy(solution.xs)
    results = {
        "step": step,
        "samples": options.samples,
        "times": len(ts),
        "sampling_seconds": seconds,
        "nfe": solution.stats.nfe,
        **distances(problem, xs[-1]),
    }
    if problem.series is not None:
        results["snapshots"] = _arrivals(config, problem.series, plain)
    rows = [problem.heldout, problem.reference]
    if problem.series is not None and len(ts) > 2:
        rows = [*problem.series.heldout.values(), *problem.series.training.values()]
    data = np.concatenate(rows)
    if len(data) > DRAWN_POINTS:
        data = data[as_numpy(mx.random.permutation(len(data), key=key))[:DRAWN_POINTS]]
    write_flow(run, Flow(ts, xs, data, step))
    with open_writer(run.samples, problem.units.columns) as writer:
        writer.write(problem.units.inverse(xs[-1]))
    return results


def _arrivals(config: Train, series: build.Series, field: Callable) -> list[dict[str, Any]]:
    """How well each snapshot is predicted from the one before, by its time in the file."""
    key = fold_in(mx.random.key(config.run.seed), "snapshots")
    found = arrivals(
        field,
        [series.training.get(time, series.heldout[time]) for time in series.times],
        [build.unit_time(time, series.times) for time in series.times],
        heldout=[series.heldout[time] for time in series.times],
        labels=_labels(series),
        under=build.under,
        key=key,
        solve=lambda field, x0, ts: build.solve(
            field,
            x0,
            config,
            config.integration,
            ts=ts,
            key=fold_in(key, "noise"),
            times=series.times,
        ),
    )
    return [
        {**arrival._asdict(), "time": time, "start": start, "left_out": time not in series.training}
        for arrival, (start, time) in zip(found, pairwise(series.times), strict=True)
    ]


def _labels(series: build.Series) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """Labels of the rows that `_arrivals` starts from and compares with."""
    if series.labels is None:
        return None
    training, heldout = series.labels
    start = [(training if t in series.training else heldout)[t] for t in series.times]
    return start, [heldout[t] for t in series.times]


def negative_log_likelihood(
    config: Train, problem: Problem, field: Callable, *, rows: int, divergence: str
) -> dict[str, Any]:
    """Score the first `rows` held-out rows: mean nats per row, and its standard error.

    In model units and, for a file, in the original ones: they differ by the sum of the logarithms
    of the scales. Raises ValueError where the source's density has no formula.
    """
    density = problem.source.log_prob
    if density is None:
        raise ValueError(
            "the source has no density to score with; train from one of: "
            + ", ".join(build.SOURCE_DENSITIES)
        )
    key = fold_in(mx.random.key(config.run.seed), "likelihood")

    def score(k: int) -> np.ndarray:
        part = slice(k, min(k + SCORED_BATCH, rows))
        cond = None if problem.told is None else mx.array(problem.told.heldout[part])
        scored = log_prob(
            conditioned(field, cond),
            mx.array(problem.heldout[part]),
            density,
            key=fold_in(key, k),
            divergence=divergence,
        )
        return -as_numpy(scored.log_prob)

    rows = min(rows, len(problem.heldout))
    nll = np.concatenate([score(k) for k in range(0, rows, SCORED_BATCH)])
    scale = problem.units.scale
    return {
        "nll_rows": len(nll),
        "nll": float(nll.mean()),
        "nll_standard_error": float(nll.std(ddof=1) / len(nll) ** 0.5) if len(nll) > 1 else None,
        "nll_original_units": float(nll.mean() + np.log(scale[scale > 0]).sum()),
    }


def distances(problem: Problem, samples: np.ndarray) -> dict[str, Any]:
    """Distances from `samples` (n, d) to held-out data, in model units.

    Beside each stands the same distance between training data and held-out data, its floor: two
    finite samples of one distribution are not at distance zero. Where there are classes, `samples`
    are of those of the held-out rows, and so is that training data.
    """
    heldout, reference = problem.heldout, problem.reference
    if problem.told is not None and problem.told.columns.labels is not None:
        wanted = np.resize(problem.told.heldout, len(reference))
        reference = reference[_alike(problem.told.reference, wanted)]
    n = min(len(samples), len(heldout), len(reference), W2_POINTS)
    m = ENERGY_POINTS
    names = problem.units.modelled

    def column_w1(x):
        return dict(zip(names, metrics.column_wasserstein(x, heldout).tolist(), strict=True))

    return {
        "w2_points": n,
        "w2": metrics.wasserstein(samples[:n], heldout[:n]),
        "w2_floor": metrics.wasserstein(reference[:n], heldout[:n]),
        "energy_distance": metrics.energy_distance(samples[:m], heldout[:m]),
        "energy_distance_floor": metrics.energy_distance(reference[:m], heldout[:m]),
        "column_w1": column_w1(samples),
        "column_w1_floor": column_w1(reference),
    }


def _alike(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places in `labels` with those that are wanted, each place as often as the others at most."""
    places = np.empty(len(wanted), int)
    for label in np.unique(wanted):
        have = np.flatnonzero(labels == label)
        those = wanted == label
        # A class may have been held out whole: then any row stands for it.
        places[those] = np.resize(have if len(have) else np.arange(len(labels)), those.sum())
    return places


def is_evaluated(run: Run) -> bool:
    """Whether the kept flow lines are those of the newest checkpoint."""
    if not os.path.lexists(run.flow):
        return False
    dim = len(read_about(run).units.modelled)
    try:
        return read_flow(run, dim).step == saved_step(run)
    except Damaged as error:
        warnings.warn(str(error), stacklevel=2)
        return False


def draw(run: Run, *, lines: int = 512, columns: int = 6) -> Sequence[Path]:
    """Draw the figures of a run that has been evaluated; return their paths."""
    from flowmlx import plots

    figures = []
    logged = read_metrics(run)
    if logged:
        figures.append(run.folder / "loss.png")
        plots.loss_curve([m["step"] for m in logged], [m["loss"] for m in logged], figures[-1])
    units = read_about(run).units
    names = units.modelled
    ts, xs, data, _ = read_flow(run, len(names))
    varies = [name in names for name in units.columns]
    data, *xs = (units.inverse(x)[:, varies] for x in (data, *xs))
    if len(names) == 2:
        figures.append(run.folder / "trajectories.png")
        plots.trajectories(np.stack(xs), data, names, figures[-1], lines=lines)
        figures.append(run.folder / "flow.gif")
        plots.animation(ts, np.stack(xs), data, names, figures[-1])
    else:
        figures.append(run.folder / "marginals.png")
        plots.marginals(data, xs[-1], names, figures[-1], columns=columns)
    return figures

"""Settings to objects: the data, path, coupling, network and optimizer that a config names."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from flowmlx import couplings
from flowmlx.bridges import TwoHeads, VelocityOf, sample_bridge, score_flow_loss
from flowmlx.conditions import conditional, conditioned
from flowmlx.conversions import to_velocity
from flowmlx.couplings import COUPLINGS, SIGMA_COUPLINGS, Coupling, HostCoupling
from flowmlx.couplings.semidiscrete import FITTED_COUPLINGS, Semidiscrete, fit_semidiscrete
from flowmlx.data import streams
from flowmlx.data.arrays import (
    READERS,
    Standardizer,
    Table,
    by_value,
    read,
    split,
    take_columns,
)
from flowmlx.data.conditions import ConditionColumns
from flowmlx.data.toy import TOY, eight_gaussians_log_prob
from flowmlx.experiment.options import METHODS, Method, SolverOptions, Train
from flowmlx.keys import fold_in
from flowmlx.likelihood import standard_normal_log_prob
from flowmlx.losses import WEIGHTS, flow_matching_loss
from flowmlx.names import look_up, suggest
from flowmlx.nets.mlp import MLP
from flowmlx.paths import PATHS, AffinePath, BrownianPath
from flowmlx.sampling import PATH_METHODS, reflow_pairs, sample, sample_sde
from flowmlx.snapshots import sample_bridges, snapshot_batches, snapshots_loss
from flowmlx.solvers import ADAPTIVE, GRIDS, SDE_METHODS, Solution
from flowmlx.solvers.arrays import as_numpy
from flowmlx.solvers.exponential import check_direction
from flowmlx.times import TIME_SAMPLERS
from flowmlx.training import Report, TrainState, fit, learning_rate, paired_batches
from flowmlx.transport.entropic import NotConverged

# Sources whose log-density has a formula.
SOURCE_DENSITIES = {"normal": standard_normal_log_prob, "8gaussians": eight_gaussians_log_prob}


# Step of the solvers that do not choose their own, and pairs for reflow, where none are given.
FIXED_STEP, PAIRS = 0.01, 50_000


class End(NamedTuple):
    """One end of a flow, in model units.

    `batch(n, step, *, key)` streams training batches; `draw(n, *, key)` makes independent draws,
    and `alike(labels, *, key)` one for each label, None where the end has no labels; `log_prob(x)`
    is the log-density (n,) of x (n, dim), None where it has no formula; `fingerprint` tells one
    data set from another.
    """

    dim: int
    batch: streams.Stream
    draw: Callable[..., mx.array]
    log_prob: Callable[[mx.array], mx.array] | None
    fingerprint: str
    alike: Callable[..., mx.array] | None = None

    def start(self, n: int, cond: mx.array | None = None, *, key: mx.array) -> mx.array:
        """`n` draws to start from, under a condition, one for all or for each, where it matters."""
        if self.alike is None or cond is None:
            return self.draw(n, key=key)
        return self.alike(mx.broadcast_to(cond, (n,)), key=key)


class Problem(NamedTuple):
    """Two ends, held-out data in model units, and the data's names and units.

    `reference` is more data, not held out, against which the held-out data shows how far two
    samples of one distribution are apart.
    """

    source: End
    target: End
    heldout: np.ndarray
    reference: np.ndarray
    units: Standardizer
    series: "Series | None" = None
    told: "Told | None" = None

    @property
    def fingerprint(self) -> str:
        """Tells the data of one run from that of another."""
        return f"{self.source.fingerprint} -> {self.target.fingerprint}"


class Series(NamedTuple):
    """Snapshots in model units, by the time in the file at which they were seen.

    `training`: rows to train on, none of the time that was left out; `heldout`: rows that were
    not trained on, all of them for that time. `labels`: of both, without a condition None.
    """

    times: tuple[float, ...]
    training: dict[float, np.ndarray]
    heldout: dict[float, np.ndarray]
    labels: tuple[dict[float, np.ndarray], dict[float, np.ndarray]] | None = None

    def streams(self) -> list[streams.Stream]:
        """A stream of each snapshot that is trained on, with its labels."""
        if self.labels is None:
            return [streams.shuffled(rows) for rows in self.training.values()]
        return [streams.Labelled(rows, self.labels[0][t]) for t, rows in self.training.items()]


class Told(NamedTuple):
    """Conditions as the network is told them, for the rows of a `Problem` in their order.

    `batch(n, step, *, key)`: streams (rows of the target, their conditions).
    """

    columns: ConditionColumns
    batch: streams.Stream
    heldout: np.ndarray
    reference: np.ndarray


def problem(config: Train) -> Problem:
    """Read both ends of the flow that `config` names.

    Raises ValueError for an unknown name, a file without usable numbers, or ends that do not fit.
    """
    data, key = config.data, mx.random.key(config.run.seed)
    if data.time_column is not None:
        return _series_problem(config)
    told = None
    if _is_file(data.target):
        names = _condition_names(config)
        table = read(data.target, text=names)
        train, test = split(table, data.holdout, key=fold_in(key, "split"))
        # On all rows, as two rows leave one to train on, whose columns would all be constant.
        conditions, points = zip(
            *(take_columns(t, names) for t in (table, train, test)), strict=True
        )
        units = Standardizer.fit(points[0])
        reference, heldout = (as_numpy(units.transform(part.values)) for part in points[1:])
        target = _end_of_rows(reference, table)
        if names:
            columns = ConditionColumns.fit(conditions[0])
            known, unseen = (columns.encode(part.values) for part in conditions[1:])
            told = Told(columns, streams.shuffled(reference, known), unseen, known)
    elif data.condition is not None:
        raise ValueError(f"--condition names columns of a file; --target {data.target} has none")
    else:
        generator = look_up(TOY, data.target, "target")
        target = End(2, streams.generated(generator), generator, None, data.target)
        heldout, reference = (
            as_numpy(generator(config.sampling.samples, key=fold_in(key, name)))
            for name in ("heldout", "reference")
        )
        units = Standardizer(("x0", "x1"), np.zeros(2), np.ones(2))
    ends = source(config, target.dim, units), target
    return Problem(*ends, heldout, reference, units, told=told)


def _condition_names(config: Train) -> list[str]:
    given = config.data.condition
    return [] if given is None else [name.strip() for name in given.split(",")]


def _series_problem(config: Train) -> Problem:
    """The problem of a file with a time column.

    Raises ValueError as `problem` does, and for snapshots that do not go together.
    """
    data = config.data
    assert data.time_column is not None
    if not _is_file(data.target) or data.source != "auto":
        raise ValueError(
            "--time-column needs a file as --target and no --source: the flow starts from the "
            "file's first snapshot"
        )
    names = _condition_names(config)
    table = read(data.target, text=[*names, data.time_column])
    if data.time_column in table.labels:
        raise ValueError(f"'{data.time_column}' holds text; expected a number, such as the day")
    parts = {time: take_columns(part, names) for time, part in _by_time(table, config).items()}
    seen = [points for time, (_, points) in parts.items() if time != data.leave_out]
    units = Standardizer.fit(_stacked(seen))
    columns = _classes([conditions for conditions, _ in parts.values()]) if names else None
    found = _series(config, parts, units, columns)
    start, end = min(parts), max(parts)
    source, target = (_end_of_rows(found.training[t], table) for t in (start, end))
    _check_source(config, data.target)
    told, rows = None, (found.heldout[end], found.training[end])
    if columns is not None and found.labels is not None:
        training, heldout = found.labels
        source = source._replace(
            alike=streams.Labelled(found.training[start], training[start]).alike
        )
        batch = streams.shuffled(found.training[end], training[end])
        told = Told(columns, batch, heldout[end], training[end])
    return Problem(source, target, *rows, units, found, told)


def _classes(conditions: Sequence[Table]) -> ConditionColumns:
    columns = ConditionColumns.fit(_stacked(conditions))
    if columns.labels is None:
        raise ValueError(
            f"--condition {','.join(columns.columns)} holds numbers; with --time-column it has to "
            "be one column of classes, within which the rows of one time meet those of the next"
        )
    return columns


def _by_time(table: Table, config: Train) -> dict[float, Table]:
    """The snapshots of a table by their time. Raises ValueError for times that cannot be."""
    data = config.data
    parts = by_value(table, data.time_column or "")
    inner = list(parts)[1:-1]
    if len(parts) < 2:
        raise ValueError(f"'{data.time_column}' holds one time only; expected two or more")
    if data.leave_out is not None and data.leave_out not in inner:
        raise ValueError(
            f"--leave-out is {data.leave_out:g}; expected a time between the first and the last: "
            f"{', '.join(f'{t:g}' for t in inner) or 'there is none'}"
        )
    return parts


def _series(
    config: Train,
    parts: dict[float, tuple[Table, Table]],
    units: Standardizer,
    columns: ConditionColumns | None,
) -> Series:
    """Hold out rows of each snapshot, and all of the one that is left out."""
    data, key = config.data, mx.random.key(config.run.seed)
    training, heldout, labels = {}, {}, ({}, {})
    for k, (time, tables) in enumerate(parts.items()):
        # One key splits both alike.
        halves = [split(part, data.holdout, key=fold_in(key, "split", k)) for part in tables]
        (known, seen), (told, unseen) = zip(*halves, strict=True)
        if time == data.leave_out:
            told, unseen = tables
        else:
            training[time] = as_numpy(units.transform(seen.values))
        heldout[time] = as_numpy(units.transform(unseen.values))
        if columns is not None:
            labels[1][time] = columns.encode(told.values)
            if time in training:
                labels[0][time] = columns.encode(known.values)
    if columns is None:
        return Series(tuple(parts), training, heldout)
    _check_classes(columns, {**labels[1], **labels[0]})
    return Series(tuple(parts), training, heldout, labels)


def _check_classes(columns: ConditionColumns, labels: dict[float, np.ndarray]) -> None:
    """Refuse a class that some snapshot has no row of to start from."""
    for time, known in labels.items():
        for label, name in enumerate(columns.labels or ()):
            if label not in known:
                raise ValueError(
                    f"{columns.columns[0]} {name if columns.text else format(name, 'g')} has no "
                    f"row at time {time:g} that is not held out; expected some of every class at "
                    "every time, as those of one time lead to those of the next: leave the class "
                    "out, or hold out fewer rows with --holdout"
                )


def _stacked(parts: Sequence[Table]) -> Table:
    return parts[0]._replace(values=np.concatenate([part.values for part in parts]))


def source(config: Train, dim: int, units: Standardizer) -> End:
    """Read the source of the flow that `config` names, in the target's units.

    Raises ValueError as `problem` does.
    """
    if config.data.time_column is not None:
        return _series_problem(config).source
    name = source_name(config)
    if _is_file(name):
        table = read(name)
        if table.columns != units.columns:
            raise ValueError(
                f"{name} has the columns {_list(table.columns)} and the target "
                f"{_list(units.columns)}; a source file needs the target's columns, in its order"
            )
        end = _end_of_rows(as_numpy(units.transform(table.values)), table)
    else:
        generator = look_up(TOY, name, "source")
        if name == "normal":
            generator = partial(generator, dim=dim)
        elif dim != 2:
            raise ValueError(
                f"--source {name} has 2 dimensions and the target {dim}; use --source normal"
            )
        density = SOURCE_DENSITIES.get(name)
        end = End(dim, streams.generated(generator), generator, density, name)
    _check_source(config, name)
    return end


def _check_source(config: Train, name: str) -> None:
    if path(config).gaussian_source and name != "normal":
        raise ValueError(
            f"{path(config)} starts from its own Gaussian noise, so --source {name} has no effect "
            "on it; use --source normal, or --method cfm"
        )


def _end_of_rows(rows: np.ndarray, table: Table) -> End:
    names = table.columns + tuple(table.labels.items())
    digest = hashlib.blake2b(repr(names).encode(), digest_size=16)
    digest.update(table.values.tobytes())
    stream, draw = streams.shuffled(rows), streams.resampled(rows)
    return End(rows.shape[1], stream, draw, None, digest.hexdigest())


def source_name(config: Train) -> str:
    """Name or file of the source, with `auto` decided."""
    if config.data.source != "auto":
        return config.data.source
    gaussian = _is_file(config.data.target) or path(config).gaussian_source
    return "normal" if gaussian else "8gaussians"


def absolute(config: Train) -> Train:
    """Name the data files of `config` by absolute paths, which hold wherever a run is opened."""
    data = config.data
    ends = {
        name: _absolute(value) if value != "auto" and _is_file(value) else value
        for name, value in (("source", data.source), ("target", data.target))
    }
    run = data.reflow and _absolute(data.reflow)
    return replace(config, data=replace(data, **ends, reflow=run))


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().resolve())


def _is_file(name: str) -> bool:
    """Whether `name` means a file; a name that means nothing gets an error here."""
    if name in TOY:
        return False
    if Path(name).suffix or "/" in name or Path(name).exists():
        return True
    raise ValueError(
        f"{name!r} is neither a toy data set{suggest(name, TOY)} nor a file; toy data sets: "
        f"{', '.join(TOY)}; files end in {', '.join(READERS)}"
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def method(config: Train) -> Method:
    """The method of `config`, with a path and a coupling that are chosen apart."""
    flow, named = config.flow, METHODS[config.flow.method]
    return Method(flow.path or named.path, flow.coupling or named.coupling, named.score)


def model(config: Train, dim: int, told: ConditionColumns | None = None) -> nn.Module:
    """Build the network of `config` for vectors of length `dim`, with its initial weights.

    `told`: the columns of its condition, if it has one.
    """
    scored = method(config).score
    net = MLP(
        dim,
        out_dim=2 * dim if scored else dim,
        cond_dim=None if told is None else told.size,
        key=fold_in(mx.random.key(config.run.seed), "weights"),
        width=config.net.width,
        depth=config.net.depth,
        activation=config.net.activation,
        time_embedding=config.net.time_embedding,
    )
    return TwoHeads(net) if scored else net


def path(config: Train) -> AffinePath:
    """The path that `config` trains on."""
    chosen, sigma = method(config), config.flow.sigma
    brownian = [name for name, path in PATHS.items() if issubclass(path, BrownianPath)]
    if chosen.path in brownian and sigma == 0:
        what = f"--method {config.flow.method}" if config.flow.path is None else "--path"
        raise ValueError(
            f"{what} takes the path {chosen.path}, which has no noise at --sigma 0; give it some, "
            "such as --sigma 1"
        )
    if chosen.score and chosen.path not in brownian:
        raise ValueError(
            f"--method {config.flow.method} trains a score, which --path {chosen.path} has none "
            f"of; leave it out, or take one of: {', '.join(brownian)}"
        )
    return PATHS[chosen.path](sigma=sigma)


def check_coupling(config: Train) -> None:
    """Refuse a coupling that does not go with the rest of `config`. Raises ValueError."""
    name = method(config).coupling
    if name in SIGMA_COUPLINGS and config.flow.sigma == 0:
        what = f"--method {config.flow.method}" if config.flow.coupling is None else "--coupling"
        raise ValueError(
            f"{what} takes the coupling {name}, which needs --sigma above 0, such as --sigma 1"
        )
    if name != "independent" and path(config).gaussian_source:
        raise ValueError(
            f"{path(config)} starts from its own noise, so the coupling {name} has no effect on "
            "it; take --coupling independent, or --method otcfm"
        )
    if name == "independent" and config.flow.block is not None:
        raise ValueError(
            f"--block {config.flow.block} shares a plan between steps, and the coupling "
            "independent has none; leave it out, or take --coupling exact_ot"
        )
    if config.data.reflow and name != "independent":
        raise ValueError(
            f"--reflow brings pairs of its own, which the coupling {name} would part; take "
            "--coupling independent"
        )
    if name in FITTED_COUPLINGS:
        _check_fitted_coupling(config, name)


def _check_fitted_coupling(config: Train, name: str) -> None:
    data, instead = config.data, "take --coupling exact_ot"
    if not _is_file(data.target):
        raise ValueError(
            f"the coupling {name} is fitted to the rows of a file, and --target {data.target} has "
            f"none; {instead}"
        )
    if data.time_column is not None:
        raise ValueError(
            f"the coupling {name} goes from one source to one set of rows, and --time-column has "
            f"several; {instead}"
        )
    if config.flow.block is not None:
        raise ValueError(
            f"the coupling {name} plans for all rows at once, so --block {config.flow.block} has "
            "no effect on it; leave it out"
        )


def coupling(config: Train, problem: Problem, potential: Semidiscrete | None = None) -> Coupling:
    """The coupling that `config` trains with, which respects the conditions of the data.

    `potential`: that of `fit_potential`, for a coupling that `needs_potential`.
    """
    name, told = method(config).coupling, problem.told
    if potential is not None:
        return FITTED_COUPLINGS[name](potential, problem.reference, told and told.reference)
    sigma = config.flow.sigma
    chosen = SIGMA_COUPLINGS[name](sigma) if name in SIGMA_COUPLINGS else COUPLINGS[name]
    if told is None or not isinstance(chosen, HostCoupling):
        return chosen
    return couplings.conditional(chosen, weight=_condition_weight(config, problem, told))


def _condition_weight(config: Train, problem: Problem, told: Told) -> float:
    """Of the squared difference of conditions, beside the squared distance of points."""
    weight, numbers = config.flow.condition_weight, told.columns.units is not None
    if weight is None:
        weight = 10.0 if numbers else math.inf
    # Standardised, squared differences are about twice the number of columns; of classes, 1.
    return weight * problem.target.dim / (told.columns.size if numbers else 1)


def needs_potential(config: Train) -> bool:
    """Whether the coupling of `config` is one that is fitted to the rows before training."""
    return method(config).coupling in FITTED_COUPLINGS


def fit_potential(
    config: Train, problem: Problem, progress: Callable[[int], object] = lambda draws: None
) -> Semidiscrete:
    """Fit the coupling of `config` to the rows that it trains on.

    `progress` is called with the number of points drawn. Raises ValueError where the source cannot
    reach the rows equally often.
    """

    def draw(n: int, *, key: mx.array) -> mx.array:
        progress(n)
        return problem.source.draw(n, key=key)

    key, told, known = fold_in(mx.random.key(config.run.seed), "potential"), problem.told, {}
    if told is not None:
        known = {
            "conditions": told.reference,
            "weight": _condition_weight(config, problem, told),
        }
    try:
        return fit_semidiscrete(problem.reference, draw, key=key, **known)
    except NotConverged as error:
        raise ValueError(
            f"the coupling {method(config).coupling} has not learned to choose all rows equally "
            f"often from --source {source_name(config)}, as a file of few rows does not allow; "
            "take --coupling exact_ot"
        ) from error


def loss(config: Train) -> Callable:
    """The loss of `config`. Raises ValueError for choices that do not go together."""
    flow = config.flow
    check_solver(config, config.integration.solver)
    if config.data.reflow and path(config).gaussian_source:
        raise ValueError(
            f"{path(config)} starts from its own noise, so pairs have no effect on it; take "
            "--method cfm"
        )
    check_coupling(config)
    regress = flow.regress
    if method(config).score:
        if (flow.prediction, regress, flow.weight) != ("velocity", "velocity", "unweighted"):
            raise ValueError(
                f"--method {flow.method} regresses a velocity and a score, as they are; leave out "
                "--prediction, --regress and --weight"
            )
        regress = score_flow_loss(cast(BrownianPath, path(config)))
    plain = flow_matching_loss(
        path(config),
        prediction=flow.prediction,
        regress=regress,
        time_sampler=TIME_SAMPLERS[flow.time_sampler],
        weight=WEIGHTS[flow.weight],
    )
    if config.data.time_column is not None:
        _check_snapshots(config)
        plain = snapshots_loss(plain)
    if config.data.condition is not None:
        return conditional(plain, dropout=flow.condition_dropout)
    return plain


def _check_snapshots(config: Train) -> None:
    """Refuse what has no meaning on a way through snapshots. Raises ValueError."""
    flow, solver = config.flow, config.integration.solver
    if flow.condition_weight is not None:
        raise ValueError(
            "with --time-column the rows of one time meet those of the next within their class; "
            "leave out --condition-weight"
        )
    if flow.prediction != "velocity" or solver in PATH_METHODS:
        given = (
            (f"--prediction {flow.prediction}", flow.prediction != "velocity"),
            (f"--solver {solver}, which knows a path", solver in PATH_METHODS),
        )
        raise ValueError(
            "with --time-column a path joins each two snapshots, so only a velocity has a meaning "
            f"for all: leave out {' and '.join(what for what, is_given in given if is_given)}"
        )


def field(config: Train, net: Callable) -> Callable:
    """The velocity field (t, x, cond=None) of a network that `config` has trained."""
    if method(config).score:
        return VelocityOf(net)
    return to_velocity(net, config.flow.prediction, path(config))


def under(field: Callable, cond, method: Callable = conditioned, *weight: float) -> Callable:
    """The `field` of a trained network under a condition, guided by a `method` with a weight."""
    if isinstance(field, VelocityOf):
        return VelocityOf(method(field.model, cond, *weight))
    return method(field, cond, *weight)


def train_state(config: Train, dim: int, told: ConditionColumns | None = None) -> TrainState:
    """Build the training state of `config` before its first step, of the network of `model`."""
    options = config.training
    rate = learning_rate(
        options.lr,
        steps=options.steps,
        warmup_steps=options.warmup_steps,
        schedule=options.schedule,
    )
    optimizer = optim.AdamW(rate, weight_decay=options.weight_decay, bias_correction=True)
    return TrainState(model(config, dim, told), optimizer)


def pairs(config: Train, problem: Problem, field: Callable, first: Train) -> tuple[np.ndarray, ...]:
    """Source points, where `field`, trained as `first` says, carries them, and their conditions."""
    count, key = config.data.pairs or PAIRS, fold_in(mx.random.key(config.run.seed), "pairs")
    x0 = problem.source.draw(count, key=key)
    options = first.integration
    if options.solver in SDE_METHODS:  # a pair is where the flow leads, without chance
        options = replace(options, solver=SolverOptions.solver)

    def along(field: Callable, x0: mx.array) -> Solution:
        return solve(field, x0, first, options, key=key)

    if problem.told is None:
        return reflow_pairs(field, x0, solve=along)
    known = problem.told.reference  # each row's as often as the others'
    cond = known[as_numpy(mx.random.permutation(count, key=fold_in(key, "rows"))) % len(known)]
    return *reflow_pairs(field, x0, mx.array(cond), solve=along), cond


def batches(
    config: Train,
    problem: Problem,
    pairs: tuple[np.ndarray, ...] | None = None,
    potential: Semidiscrete | None = None,
) -> Callable[[int], tuple]:
    """The batches that `config` trains on: of the arrays `pairs`, where they are given.

    `potential`: see `coupling`.
    """
    key, size = fold_in(mx.random.key(config.run.seed), "data"), config.training.batch_size
    if pairs is not None:
        stream = streams.shuffled(*pairs)
        return lambda step: stream(size, step, key=key)
    options = {
        "key": key,
        "coupling": coupling(config, problem, potential),
        "block": config.flow.block,
    }
    if problem.series is None:
        target = problem.target.batch if problem.told is None else problem.told.batch
        if potential is not None:  # it chooses among all rows
            told = () if problem.told is None else (problem.told.reference,)
            target = streams.whole(problem.reference, *told)
        return paired_batches(problem.source.batch, target, size, **options)
    seen = problem.series.streams()
    return snapshot_batches(seen, trained_times(config, problem.series.times), size, **options)


def train(
    config: Train,
    state: TrainState,
    batches: Callable[[int], tuple],
    loss: Callable,
    callbacks: Iterable[Callable[[Report], None]],
    stop: Callable[[int], bool],
    group: mx.distributed.Group | None = None,
) -> TrainState:
    """Train `state` on the `loss` of `batches` as `config` says; see `training.fit`."""
    options, key = config.training, mx.random.key(config.run.seed)
    return fit(
        state,
        batches,
        loss=loss,
        steps=options.steps,
        key=key,
        ema_decay=options.ema_decay,
        clip_norm=options.clip_norm,
        log_every=options.log_every,
        callbacks=callbacks,
        stop=stop,
        group=group,
    )


def check_solver(config: Train, solver: str) -> None:
    """Refuse a solver that cannot sample what `config` trains. Raises ValueError."""
    if solver in PATH_METHODS:
        try:
            known = PATH_METHODS[solver](path(config))
        except ValueError as error:
            raise ValueError(
                f"--solver {solver} needs a path with a single noise, and {path(config)} has noise "
                "of its own beside x0; take --solver dopri5"
            ) from error
        try:
            check_direction(known, [0.0, 1.0])
        except ValueError as error:
            raise ValueError(
                f"--solver {solver} cannot start on {path(config)}, which stands still at t = 0; "
                "take --solver dopri5"
            ) from error
    if solver not in SDE_METHODS or method(config).score:
        return
    chosen, name = method(config), source_name(config)
    plain = (chosen.path, chosen.coupling, name) == ("linear", "independent", "normal")
    plain = plain and not (config.flow.sigma or config.data.time_column or config.data.reflow)
    if not plain:
        raise ValueError(
            f"--solver {solver} adds noise, which needs a score: train with --method sf2m, or "
            "from --source normal with --method cfm at --sigma 0 and no --reflow, whose velocity "
            "says the score"
        )


def solve(
    field,
    x0: mx.array,
    config: Train,
    options: SolverOptions,
    *,
    key: mx.array,
    ts=(0.0, 1.0),
    times: Sequence[float] | None = None,
) -> Solution:
    """Sample `field`, trained as `config` says, from `x0` with solver `options`.

    `key`: for the noise of a solver that adds some. `times`: of the snapshots in the file, where it
    has a time column. Raises ValueError as `check_solver` does.
    """
    check_solver(config, options.solver)
    if options.solver in SDE_METHODS:
        noisy = {"ts": ts, "key": key, "method": options.solver, "step_size": fixed_step(options)}
        if method(config).score:
            if times is not None:
                units = trained_times(config, times)
                step = options.step_size or FIXED_STEP * float(np.diff(units).min())
                noisy |= {"times": units, "step_size": step}
            carry = sample_bridge if times is None else sample_bridges
            return carry(field.model, x0, sigma=config.flow.sigma, **noisy)
        return sample_sde(field, x0, **noisy)
    step_size, grid = fixed_step(options), None
    if step_size is not None and options.grid != "uniform":
        step_size, grid = None, GRIDS[options.grid](math.ceil(1 / step_size * (1 - 1e-12)))
    return sample(
        field,
        x0,
        ts=ts,
        method=options.solver,
        path=path(config),
        rtol=options.rtol,
        atol=options.atol,
        step_size=step_size,
        grid=grid,
    )


def trained_times(config: Train, times: Sequence[float]) -> list[float]:
    """Times of a file's snapshots but that left out, as the flow counts them, from 0 to 1."""
    return [unit_time(t, times) for t in times if t != config.data.leave_out]


def unit_time(time: float, times: Sequence[float]) -> float:
    """A time of a file, with snapshots at `times`, as the flow counts it, from 0 to 1."""
    return (time - times[0]) / (times[-1] - times[0])


def fixed_step(options: SolverOptions) -> float | None:
    """The step that is given, or that of a solver which does not choose its own."""
    return options.step_size or (None if options.solver in ADAPTIVE else FIXED_STEP)

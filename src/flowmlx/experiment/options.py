"""Settings: frozen dataclasses of scalars and names, their YAML form and their command line.

Each field is an option of the command line and a key of a YAML file, under one name. What a name
means is looked up in the tables of the library, which also give the help its choices.
"""

import contextlib
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
import yaml
from tyro.conf import OmitArgPrefixes, Positional, arg

from flowmlx.command.helptexts import join_lines
from flowmlx.couplings import COUPLINGS, SIGMA_COUPLINGS
from flowmlx.couplings.semidiscrete import FITTED_COUPLINGS
from flowmlx.files import reading
from flowmlx.guidance import GUIDANCE
from flowmlx.likelihood import DIVERGENCES
from flowmlx.losses import TARGETS, WEIGHTS
from flowmlx.names import look_up, suggest
from flowmlx.nets.activations import ACTIVATIONS
from flowmlx.nets.mlp import TIME_EMBEDDINGS
from flowmlx.paths import PATHS
from flowmlx.sampling import SAMPLERS
from flowmlx.solvers import ADAPTIVE, GRIDS, SDE_METHODS
from flowmlx.times import TIME_SAMPLERS
from flowmlx.training import SCHEDULES

# Format of config.yaml; a number above it is of a version that means something else by the same.
FORMAT = 1
# The option that `to_yaml` writes last: a file that was cut short does not have it.
LAST_OPTION = "cpu"
# Bytes of a file of settings, at most.
MOST_TEXT = 2**20


class Method(NamedTuple):
    """Names of a path and a coupling, and whether a score is trained beside the velocity."""

    path: str
    coupling: str
    score: bool = False


METHODS = {
    "cfm": Method("linear", "independent"),
    "vp": Method("trigonometric", "independent"),
    "fm": Method("target", "independent"),
    "otcfm": Method("linear", "exact_ot"),
    "sbcfm": Method("bridge", "schroedinger"),
    "sf2m": Method("bridge", "schroedinger", score=True),
}

# Paths from the source to the data; mirror's starts at the data.
JOINING_PATHS = {name: path for name, path in PATHS.items() if name != "mirror"}

# Solvers of the flow, and those that add noise on the way.
SOLVERS = {**SAMPLERS, **SDE_METHODS}

# Options that are a name: what the name stands for.
TABLES: dict[str, Mapping[str, Any]] = {
    "method": METHODS,
    "path": JOINING_PATHS,
    "coupling": {**COUPLINGS, **SIGMA_COUPLINGS, **FITTED_COUPLINGS},
    "prediction": TARGETS,
    "regress": TARGETS,
    "time_sampler": TIME_SAMPLERS,
    "weight": WEIGHTS,
    "activation": ACTIVATIONS,
    "time_embedding": TIME_EMBEDDINGS,
    "schedule": SCHEDULES,
    "solver": SOLVERS,
    "grid": GRIDS,
    "divergence": DIVERGENCES,
    "table": {"2d": None},
    "guidance_method": {name: GUIDANCE[name] for name in ("cfg", "cfg_zero_star")},
}


def _choices(option: str) -> str:
    return "{" + ",".join(TABLES[option]) + "}"


@dataclass(frozen=True)
class DataOptions:
    """What flows into what: a toy name, or a file (.csv .tsv .txt .parquet .npy .npz)."""

    source: Annotated[str, arg(metavar="NAME|FILE")] = "auto"
    """Where flows start. auto: 8gaussians for a toy target; normal for a file, and for a path that
    starts from noise of its own, as fm."""
    target: Annotated[str, arg(metavar="NAME|FILE")] = "moons"
    """Where flows end: what the model learns to sample."""
    holdout: float = 0.1
    """Share of a file's rows kept from training, for the metrics."""
    condition: Annotated[str | None, arg(metavar="COLUMN,...")] = None
    """Columns of the target file that the flow is told and does not sample: one of whole numbers or
    of text holds classes, else they are numbers."""
    time_column: Annotated[str | None, arg(metavar="COLUMN")] = None
    """Column of the target file with the time at which a row was seen: one flow then goes through
    the snapshots of all times, from the rows of the first to those of the last."""
    leave_out: Annotated[float | None, arg(metavar="TIME")] = None
    """Time whose rows are kept from training, to see how well the flow predicts them."""
    reflow: Annotated[str | None, arg(metavar="RUN")] = None
    """Train on the source points of this run and where it carries them, which makes flow lines
    straighter. The data is that of the run, and --method cfm, unless told otherwise."""
    pairs: int | None = None
    """How many of them. None: 50,000."""


@dataclass(frozen=True)
class FlowOptions:
    """How a source point travels to a data point."""

    method: Annotated[str, arg(aliases=["-m"], metavar=_choices("method"))] = "vp"
    """Path and coupling. cfm: linear; vp: trigonometric, keeps the variance; fm: from noise to
    each point; otcfm: linear, with pairs from minibatch optimal transport; sbcfm: the Schroedinger
    bridge with --sigma; sf2m: its score as well, which solvers with noise need. otcfm unless told
    otherwise with --time-column."""
    sigma: float = 0.0
    """Standard deviation of the path's noise, in (standardised) data units; sbcfm and sf2m need
    some."""
    path: Annotated[str | None, arg(metavar=_choices("path"))] = None
    """Path. None: the method's."""
    coupling: Annotated[str | None, arg(metavar=_choices("coupling"))] = None
    """Coupling. None: the method's. semidiscrete: transport to all rows of a file, which is fitted
    before training."""
    prediction: Annotated[str, arg(metavar=_choices("prediction"))] = "velocity"
    """What the network predicts."""
    regress: Annotated[str, arg(metavar=_choices("regress"))] = "velocity"
    """In which of these its error is squared."""
    time_sampler: Annotated[str, arg(metavar=_choices("time_sampler"))] = "uniform"
    """How training times are drawn."""
    weight: Annotated[str, arg(metavar=_choices("weight"))] = "unweighted"
    """How much each time counts."""
    block: int | None = None
    """Steps that share one plan of the coupling: a plan of more points. None: one step."""
    condition_weight: float | None = None
    """How much a difference of conditions counts against one of points in a coupling by transport.
    None: pairs are within a class, and 10 for numbers."""
    condition_dropout: float = 0.1
    """Share of conditions left out in training, which guidance needs."""


@dataclass(frozen=True)
class NetOptions:
    """The network: a multilayer perceptron on (t, x)."""

    width: int = 64
    """Units in a hidden layer."""
    depth: int = 2
    """Hidden layers."""
    activation: Annotated[str, arg(metavar=_choices("activation"))] = "silu"
    """Activation function."""
    time_embedding: Annotated[str, arg(metavar=_choices("time_embedding"))] = "raw"
    """How the network sees time."""


@dataclass(frozen=True)
class TrainingOptions:
    """Optimisation (AdamW)."""

    steps: Annotated[int, arg(aliases=["-e"])] = 20_000
    """Training steps in all, those before a resume included."""
    batch_size: Annotated[int, arg(aliases=["-b"])] = 512
    """Pairs in a step."""
    lr: float = 1e-3
    """Learning rate; with warm-up or a schedule, its peak."""
    schedule: Annotated[str, arg(metavar=_choices("schedule"))] = "constant"
    """Learning rate after warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip_norm: float | None = None
    """Bound on the gradient's global norm. None: no bound."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, which is what samples."""
    log_every: int = 100
    """Steps between lines of metrics."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints, which are made at log steps."""


@dataclass(frozen=True)
class SolverOptions:
    """How the trained field is integrated."""

    solver: Annotated[str, arg(metavar=_choices("solver"))] = "dopri5"
    """Solver. bosh3, dopri5 and tsit5 choose their steps, the others take --step-size.
    euler_maruyama, milstein, stochastic_heun and sra1 add noise on the way."""
    rtol: float = 1e-4
    """Relative tolerance of the solvers that choose their steps."""
    atol: float = 1e-4
    """Absolute tolerance of the same."""
    step_size: float | None = None
    """Steps of this size. None: 1/100, or what a solver chooses that chooses its steps."""
    grid: Annotated[str, arg(metavar=_choices("grid"))] = "uniform"
    """Lengths of steps given by --step-size. uniform: equal; sine: as many, shorter towards the
    data; shifted: as many, shorter towards the source."""


@dataclass(frozen=True)
class SamplingOptions:
    """What is drawn after training, for the figures and metrics."""

    samples: int = 1024
    """Points to sample."""
    times: int = 128
    """Times at which flow lines are kept (two-dimensional data)."""


@dataclass(frozen=True)
class RunOptions:
    """The run."""

    seed: int = 0
    """Fixes the initial weights, the data and the samples."""
    cpu: bool = False
    """Use the CPU even where there is a GPU."""


@dataclass(frozen=True)
class Train:
    """Train a flow, sample it, measure it and draw it.

    Without options: 8 Gaussians into two moons.
    """

    data: DataOptions = field(default_factory=DataOptions)
    flow: FlowOptions = field(default_factory=FlowOptions)
    net: NetOptions = field(default_factory=NetOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    integration: SolverOptions = field(default_factory=SolverOptions)
    run: RunOptions = field(default_factory=RunOptions)
    out: Annotated[str | None, arg(metavar="RUN")] = None
    """Folder for the run, new or empty. None: a new one under runs/."""
    config: Annotated[str | None, arg(metavar="FILE.yaml")] = None
    """Options from a file, as a run's config.yaml; the command line wins."""
    resume: Annotated[str | None, arg(metavar="RUN")] = None
    """Go on with a run from its newest checkpoint, to its --steps or to new ones."""


@dataclass(frozen=True)
class Sample:
    """Draw new rows from a trained run, in the original units, into a file."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder that train wrote."""
    n: Annotated[int, arg(aliases=["-n"])] = 1024
    """Rows to draw."""
    output: Annotated[str | None, arg(aliases=["-o"], metavar="FILE")] = None
    """File to write: .csv, .parquet or .npy. None: RUN/new.csv."""
    batch_size: Annotated[int, arg(aliases=["-b"])] = 10_000
    """Rows to write at a time, which bounds memory. The rows are the same for any."""
    solver: Annotated[str | None, arg(metavar=_choices("solver"))] = None
    """Solver. None: the run's."""
    rtol: float | None = None
    """Relative tolerance. None: the run's."""
    atol: float | None = None
    """Absolute tolerance. None: the run's."""
    step_size: float | None = None
    """Step of the fixed solvers. None: the run's."""
    grid: Annotated[str | None, arg(metavar=_choices("grid"))] = None
    """Lengths of these steps. None: the run's."""
    time: float | None = None
    """Of a run with --time-column: the time to sample at. None: the last."""
    condition: Annotated[str | None, arg(metavar="VALUE,...")] = None
    """Of a run with --condition: the condition of the rows, in the columns' units or as their text.
    None: rows as if there were no condition."""
    guidance: float = 1.0
    """Weight of the condition. 1: as in the data; more: more typical of it, less varied."""
    guidance_method: Annotated[str, arg(metavar=_choices("guidance_method"))] = "cfg"
    """How a weight other than 1 is applied."""
    seed: int = 0
    """Fixes the rows drawn."""
    step: int | None = None
    """Checkpoint to use. None: the newest."""
    cpu: bool = False
    """Use the CPU even where there is a GPU."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run on held-out data: distances, and the log-likelihood.

    A file's held-out rows are read from it again.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder that train wrote."""
    rows: int = 1_000
    """Held-out rows to score, at most."""
    divergence: Annotated[str, arg(metavar=_choices("divergence"))] = "exact"
    """Divergence of the field: exact costs a pullback per column, hutchinson one in all."""
    cpu: bool = False
    """Use the CPU even where there is a GPU."""


@dataclass(frozen=True)
class Plot:
    """Redraw a run's figures.

    Flow lines and an animation in two dimensions, pairwise marginals in more.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder that train wrote."""
    lines: int = 512
    """Flow lines to draw."""
    columns: int = 6
    """Columns to show where there are more than two."""


@dataclass(frozen=True)
class Reproduce:
    """Rerun a published comparison of methods, and print the figures side by side.

    In 2d: I-CFM, OT-CFM, FM, VP, SB-CFM and [SF]2M on five problems in the plane.

    What was computed is kept: the same command goes on where it was stopped.
    """

    table: Annotated[Positional[str], arg(metavar="{2d}")]
    """What to rerun."""
    out: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Folder for the results. None: reproduce-2d, or reproduce-2d-quick."""
    seeds: Annotated[str, arg(metavar="SEED,...")] = "42,43,44,45,46"
    """Seeds. Processes with other seeds may share a folder."""
    quick: bool = False
    """A small form: 1,000 steps and points, to see that all works."""
    cpu: bool = False
    """Use the CPU even where there is a GPU."""


@dataclass(frozen=True)
class Info:
    """Show versions, device, BLAS and compiler, and what is missing with its remedy."""


join_lines(
    DataOptions, FlowOptions, NetOptions, TrainingOptions, SolverOptions, SamplingOptions,
    RunOptions, Train, Sample, Evaluate, Plot, Reproduce,
)  # fmt: skip


def flatten(config) -> dict:
    """All options of a config by name, without the nesting that only groups them in the help."""
    flat = {}
    for name, value in asdict(config).items():
        flat.update(_leaves(name, value))
    return flat


def run_options(config: Train) -> dict:
    """The options that define a run, by name: all but where it comes from and goes to."""
    return {k: v for k, v in flatten(config).items() if k not in ("out", "config", "resume")}


def _leaves(name, value) -> dict:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _leaves(key, inner).items()}


def parse(words: Sequence[str], command: Any = Train, **options) -> Any:
    """Command-line words to a config of type `command`.

    Help is printed, and ends the process. Raises ValueError, in one line, for words that do not
    parse.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(command, args=words, config=(OmitArgPrefixes,), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box: the mistake, then after a rule hints that the help has as well.
        lines = [line.strip("│ ") for line in box.getvalue().splitlines()]
        mistake = " ".join(itertools.takewhile(lambda line: "──" not in line, lines[1:]))
        raise ValueError(f"{mistake.rstrip('.')}; see --help") from None


def to_yaml(config: Train) -> str:
    """The options that define a run, as YAML that `read_config` and a person can read."""
    return yaml.safe_dump({"format": FORMAT, **run_options(config)}, sort_keys=False)


def read_config(path: str | Path) -> Train:
    """Read the settings of a run.

    Options that this version does not know are left out, with a warning. Raises ValueError, with
    the file's name, for what `to_yaml` does not write, such as half of a file.
    """
    try:
        options, known = _read_yaml(path), run_options(Train())
        if LAST_OPTION not in options:
            raise ValueError(f"{path} was cut short: it has no {LAST_OPTION}, the last option")
        words = as_arguments({k: v for k, v in options.items() if k in known})
        with _naming(path):
            config = parse(words)
            check(config)
    except reading.NewerFormat:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; mend it, or restore a copy: the run needs it") from error
    reading.warn_of_unknown(path, options, {"format", *known})
    return config


def run_arguments(path: str | Path) -> list[str]:
    """Command-line words for the settings of a run. Raises ValueError as `read_config` does."""
    return as_arguments(run_options(read_config(path)))


def file_arguments(path: str | Path) -> list[str]:
    """Command-line words that set the options of a YAML file that a person wrote.

    Raises ValueError, with the file's name, where it is not a flat map of options.
    """
    options, known = _read_yaml(path), run_options(Train())
    for name in options:
        if name not in known and name != "format":
            raise ValueError(
                f"{path}: unknown option {name!r}{suggest(str(name), known)}; "
                "flowmlx train --help lists the options (with _ for - in a file)"
            )
    words = as_arguments({k: v for k, v in options.items() if k in known})
    with _naming(path):
        parse(words)
    return words


def _read_yaml(path: str | Path) -> dict:
    """The values in a YAML file by their key; raises ValueError for keys that are there twice."""
    try:
        text = reading.text(path, most=MOST_TEXT)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the settings {path}: {reading.why(error)}") from error
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        options = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line} is not YAML: {error.problem}") from error
    except Exception as error:  # such as a date that there is not
        raise ValueError(f"{path} is not YAML: {' '.join(reading.why(error).split())}") from error
    if node is None:  # comments
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path} holds a {type(options).__name__}; expected lines 'option: value'")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise ValueError(f"{path}, line {line}: {name} is there twice, first in {lines[name]}")
        lines[name] = line
    for name, value in options.items():
        if isinstance(value, (dict, list, set)):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}; expected one value")
    reading.check_format(path, options, FORMAT)
    return options


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Name the file in which a mistake is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def as_arguments(options: dict) -> list[str]:
    """Command-line words that set `options`, so that one parser reads files and command lines."""
    words = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(f"--{option}={value}")  # one word: a value may begin with --
    return words


def check(config) -> None:
    """Refuse names and numbers that no run can use, before anything is read or written.

    Raises ValueError.
    """
    values = flatten(config)
    for name, table in TABLES.items():
        if values.get(name) is not None:
            look_up(table, values[name], name.replace("_", " "))
    for (low, low_allowed, high), names in _RANGES.items():
        for name in names:
            value = values.get(name)
            if value is None:
                continue
            if not (low < value < high or (low_allowed and value == low)):  # False for NaN too
                expected = f"{'at least' if low_allowed else 'above'} {low}"
                expected += f" and below {high}" if high < float("inf") else ""
                raise ValueError(
                    f"--{name.replace('_', '-')} is {value}; expected a number {expected}"
                )
    if values.get("rtol") == values.get("atol") == 0:
        raise ValueError("--rtol and --atol are both 0; expected one of them above 0")
    solver = values.get("solver")
    if solver in SDE_METHODS and values["grid"] not in (None, "uniform"):
        raise ValueError(f"--solver {solver} takes equal steps; leave out --grid")
    if (
        solver in ADAPTIVE
        and values.get("grid") not in (None, "uniform")
        and not values["step_size"]
    ):
        raise ValueError(
            f"--solver {solver} chooses its steps, so --grid {values['grid']} has no effect; give "
            "their number as well, such as --step-size 0.05"
        )
    if values.get("reflow") and values.get("time_column"):
        raise ValueError("--reflow goes from one source to one target; leave out --time-column")
    if values.get("leave_out") is not None and not values["time_column"]:
        raise ValueError("--leave-out names a time; give the column of times with --time-column")
    if values.get("pairs") and not values["reflow"]:
        raise ValueError("--pairs is how many --reflow makes; give it a run with --reflow RUN")
    if not math.isfinite(values.get("guidance", 1.0)):
        raise ValueError(f"--guidance is {values['guidance']}; expected a finite number, such as 2")
    if values.get("guidance", 1.0) != 1.0 and values["condition"] is None:
        raise ValueError("--guidance strengthens a condition; give one with --condition VALUE")
    if values.get("resume") and values.get("out"):
        raise ValueError("--resume goes on in the run's own folder; leave out --out")


_INFINITY = float("inf")
_LENGTH = 2**31  # MLX counts what is along an axis in 32 bits
_FLOAT32 = 3e38
# (lowest, whether it is allowed, bound above) -> options
_RANGES: dict[tuple[float, bool, float], tuple[str, ...]] = {
    (1, True, _INFINITY): ("steps", "log_every", "checkpoint_every", "n", "rows"),
    (1, True, _LENGTH): ("batch_size", "width", "depth", "lines", "columns", "block", "pairs"),
    (2, True, _LENGTH): ("samples", "times"),
    (0, True, _INFINITY): ("warmup_steps", "rtol", "atol", "step"),
    (0, True, _FLOAT32): ("sigma", "weight_decay"),
    (0, True, 2**63): ("seed",),
    (0, False, _FLOAT32): ("lr", "clip_norm", "condition_weight"),
    (1e-4, True, _INFINITY): ("step_size",),
    (0, True, 1): ("ema_decay", "condition_dropout"),
    (0, False, 1): ("holdout",),
}  # fmt: skip

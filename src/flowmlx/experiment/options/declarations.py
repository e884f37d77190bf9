"""The options of each command: a field of a dataclass is an option of the command line, a keyword
in Python and, for a run, a key of a YAML file, all under one name.

The docstring of a field is its help, and its first sentence the help on the first screen. A last
sentence "None: ..." says what None, the default, stands for.
"""

from dataclasses import dataclass, field
from typing import Annotated

from flowmlx.experiment.options.fields import Shown

FIRST = Shown(first=True)


@dataclass(frozen=True)
class DataOptions:
    """The data: where the flow starts, and what it learns to sample."""

    target: Annotated[str, Shown("NAME|FILE", first=True)] = "moons"
    """What the model learns to sample: a file (.csv, .tsv, .txt, .parquet, .npy, .npz), or a toy
    data set such as moons. Toy data sets are normal, 8gaussians, moons, checkerboard, 2spirals,
    scurve, pinwheel, circles and swissroll; they have two columns."""
    source: Annotated[str, Shown("NAME|FILE", first=True)] = "auto"
    """Where the flow starts: auto, normal, another toy data set, or a file with the columns of the
    target. auto is normal, or 8gaussians for a toy target if the method can start there."""
    condition: Annotated[str | None, Shown("COLUMN,...", first=True)] = None
    """Columns of the target file that are given, not sampled, such as a class label. The model
    learns how the other columns depend on these. A single column of text, or of at most 100
    different whole numbers, is read as class labels; all else as numbers. None: no condition."""
    holdout: float = 0.1
    """Share of a file's rows that is held out: used for the metrics, not for training."""
    time_column: Annotated[str | None, Shown("COLUMN")] = None
    """Column of the target file with the time of each row. One flow then goes from the rows of the
    first time through the rows of each later time. None: rows have no time."""
    leave_out: Annotated[float | None, Shown("TIME")] = None
    """Time whose rows are not used for training, to see how well the flow predicts them. None: no
    time."""
    reflow: Annotated[str | None, Shown("RUN")] = None
    """Train on pairs from the flow of an earlier run: source points, and the points where that flow
    ends. This makes the lines of the flow straighter. The data are those of the earlier run and the
    method is cfm, unless you choose others. None: no reflow."""
    reflow_pairs: int | None = None
    """Pairs to make for --reflow. None: 50,000."""


@dataclass(frozen=True)
class FlowOptions:
    """The flow: the path from source to data, how points are paired, and the loss."""

    method: Annotated[str, Shown(short="-m", first=True)] = "vp"
    """Path from source to data, and how source and data points are paired. cfm: linear path, random
    pairs. vp: trigonometric path, which keeps the variance; random pairs. fm: straight path from
    normal noise to each data point. otcfm: linear path, pairs by optimal transport within the
    batch. sbcfm: Schroedinger bridge, which needs --sigma. sf2m: the same bridge with its score, so
    that samples can also be drawn with noise. With --time-column the default is otcfm."""
    sigma: float = 0.0
    """Standard deviation of the noise on the path. Its unit is that of the data; for a file, the
    standard deviation of a column. The methods sbcfm and sf2m need a value above 0."""
    path: str | None = None
    """Path from source to data. None: the path of the method."""
    coupling: str | None = None
    """How source points and data points are paired. semidiscrete: optimal transport to all rows
    of a file, fitted before training. None: the coupling of the method."""
    prediction: str = "velocity"
    """What the network predicts: the velocity, the data point x1 or the source point x0."""
    regress: str = "velocity"
    """Quantity whose squared error is the loss: the velocity, x1 or x0."""
    training_times: str = "uniform"
    """How the times t are drawn at which the network is trained."""
    loss_weight: str = "unweighted"
    """Weight of the loss as a function of the time t."""
    plan_steps: int | None = None
    """Training steps that share one transport plan. With more steps, the plan has more points and
    its pairs are closer together. None: 1."""
    condition_cost: float | None = None
    """Weight of the difference between conditions, relative to the distance between points, when
    optimal transport pairs points. None: pairs within a class only; 10 for conditions that are
    numbers."""
    condition_dropout: float = 0.1
    """Share of training points whose condition is hidden from the network, so that it also learns
    to sample without a condition. Guidance needs this."""


@dataclass(frozen=True)
class NetOptions:
    """The network: a multilayer perceptron of the time t and the point x."""

    width: Annotated[int, FIRST] = 64
    """Units in each hidden layer."""
    depth: Annotated[int, FIRST] = 2
    """Hidden layers."""
    activation: str = "silu"
    """Activation function."""
    time_embedding: str = "raw"
    """How the network receives the time. raw: as one number. sinusoidal: as sines and cosines."""


@dataclass(frozen=True)
class TrainingOptions:
    """The training, by AdamW."""

    steps: Annotated[int, Shown(short="-e", first=True)] = 20_000
    """Total number of training steps, including those before a resume."""
    batch_size: Annotated[int, Shown(short="-b", first=True)] = 512
    """Pairs of points in a training step."""
    lr: Annotated[float, FIRST] = 1e-3
    """Learning rate. With --warmup-steps or --lr-schedule, this is its highest value."""
    lr_schedule: str = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 along a cosine."""
    warmup_steps: int = 0
    """Steps at the start in which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float | None = None
    """Largest norm of the gradient. A gradient above it is scaled down. None: no limit."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights. Samples are drawn with the averaged weights."""
    log_every: int = 100
    """Steps between reports of the loss."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints. They are saved only at a step with a report (--log-every)."""
    patience: int | None = None
    """Stop when the loss on held-out rows has not improved for N reports, and keep the best
    weights. None: off."""


@dataclass(frozen=True)
class SolverOptions:
    """The solver, which moves points along the trained flow from the source to the data."""

    solver: str = "dopri5"
    """Solver of the flow's differential equation. bosh3, dopri5 and tsit5 adapt their step size to
    the tolerances; the others use --step-size. euler_maruyama, milstein, stochastic_heun and sra1
    add noise at each step."""
    rtol: float = 1e-4
    """Relative tolerance of the solvers that adapt their step size."""
    atol: float = 1e-4
    """Absolute tolerance of the solvers that adapt their step size."""
    step_size: float | None = None
    """Step size in time; the flow goes from time 0 (source) to 1 (data). None: 0.01, or as the
    solver adapts it."""
    grid: str = "uniform"
    """How long the steps are along the way, for solvers that use --step-size. uniform: all equal.
    sine: as many steps, but shorter near the data. shifted: as many, but shorter near the
    source."""


@dataclass(frozen=True)
class SamplingOptions:
    """The samples that are drawn after training, for figures and metrics."""

    samples: int = 1024
    """Number of samples to draw."""
    frames: int = 128
    """Number of times at which flow lines are stored, for the figures of two-dimensional data."""


@dataclass(frozen=True)
class RunOptions:
    """The run as a whole."""

    seed: Annotated[int, FIRST] = 0
    """Random seed, which determines the initial weights, the data and the samples."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


@dataclass(frozen=True)
class Train:
    """Train a flow, draw samples from it, measure them and plot them.

    Without options, the flow goes from 8 Gaussians to two moons.
    """

    data: DataOptions = field(default_factory=DataOptions)
    flow: FlowOptions = field(default_factory=FlowOptions)
    net: NetOptions = field(default_factory=NetOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    integration: SolverOptions = field(default_factory=SolverOptions)
    run: RunOptions = field(default_factory=RunOptions)
    out: Annotated[str | None, Shown("RUN", first=True)] = None
    """Folder for the run, new or empty. None: a new folder in runs/."""
    config: Annotated[str | None, Shown("FILE.yaml", first=True)] = None
    """File with options, such as the config.yaml of a run. Options on the command line override
    those in the file. None: no file."""
    resume: Annotated[str | None, Shown("RUN", first=True)] = None
    """Continue a run from its newest checkpoint. It trains up to the --steps that the run was
    started with, or up to new --steps. None: a new run."""


@dataclass(frozen=True)
class OtherSolverOptions:
    """The solver, to use another one than in the run."""

    solver: str | None = None
    """Solver. None: that of the run."""
    rtol: float | None = None
    """Relative tolerance of the solvers that adapt their step size. None: that of the run."""
    atol: float | None = None
    """Absolute tolerance of the solvers that adapt their step size. None: that of the run."""
    step_size: float | None = None
    """Step size in time of the other solvers; the flow goes from time 0 to 1. None: that of the
    run."""
    grid: str | None = None
    """How long the steps are along the way. None: that of the run."""


@dataclass(frozen=True)
class Sample:
    """Draw new rows from a trained run and write them to a file, in the units of its data."""

    run: Annotated[str, Shown("RUN", first=True, positional=True)]
    """Folder of the run."""
    n: Annotated[int, Shown(short="-n", first=True)] = 1024
    """Rows to draw."""
    output: Annotated[str | None, Shown("FILE", short="-o", first=True)] = None
    """File to write: .csv, .parquet or .npy. None: RUN/new.csv."""
    condition: Annotated[str | None, Shown("VALUE,...", first=True)] = None
    """Value of each --condition column of the run: a number in the units of the column, or the text
    of a class. None: rows of all conditions."""
    guidance: Annotated[float, FIRST] = 1.0
    """How strongly rows follow the condition. With 1 they are as in the data. Above 1 they are more
    typical of the condition and less varied."""
    guidance_method: str = "cfg"
    """How a guidance other than 1 works. cfg: classifier-free guidance. cfg_zero_star: CFG-Zero*,
    which also rescales the velocity without condition."""
    at_time: Annotated[float | None, Shown("TIME", first=True)] = None
    """Time of the rows to draw, if the run was trained with --time-column. None: the last."""
    seed: Annotated[int, FIRST] = 0
    """Random seed, which determines the rows."""
    step: int | None = None
    """Training step of the checkpoint to use. None: the newest."""
    batch_size: Annotated[int, Shown(short="-b")] = 10_000
    """Rows to draw and write at a time; fewer need less memory. The rows do not depend on it."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""
    integration: OtherSolverOptions = field(default_factory=OtherSolverOptions)


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run on held-out data: distances, and the log-likelihood.

    If the data is a file, the held-out rows are read from it again.
    """

    run: Annotated[str, Shown("RUN", positional=True)]
    """Folder of the run."""
    rows: int = 1_000
    """Largest number of held-out rows whose likelihood is computed."""
    divergence: str = "exact"
    """How the divergence of the velocity is computed. exact: with one backward pass per column.
    hutchinson: a random estimate, with one backward pass in total."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


@dataclass(frozen=True)
class Plot:
    """Plot the figures of a run again.

    Data with two columns: flow lines and an animation. With more: each pair of columns.
    """

    run: Annotated[str, Shown("RUN", positional=True)]
    """Folder of the run."""
    lines: int = 512
    """Flow lines to plot."""
    columns: int = 6
    """Columns to show, if there are more than two."""


@dataclass(frozen=True)
class Reproduce:
    """Repeat a published comparison of methods, and print both results side by side.

    2d: the methods I-CFM, OT-CFM, FM, VP, SB-CFM and [SF]2M on five problems in the plane.

    Each result is saved at once: after a stop, the same command continues from there.
    """

    table: Annotated[str, Shown("2d", positional=True)]
    """Comparison to run; 2d is the only one."""
    out: Annotated[str | None, Shown("FOLDER")] = None
    """Folder for the results. None: reproduce-2d, or reproduce-2d-quick."""
    seeds: Annotated[str, Shown("SEED,...")] = "42,43,44,45,46"
    """Random seeds; the comparison is run once with each. Processes with different seeds may share
    a folder."""
    quick: bool = False
    """Run a small version with 1,000 steps and points, to see that everything works."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


@dataclass(frozen=True)
class Info:
    """Show versions, device, BLAS and compiler, and how to fix what is missing."""

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
    learns the other columns for each value of these. One column of text or of whole numbers holds
    classes; all else are numbers. None: no condition."""
    holdout: float = 0.1
    """Share of the rows of a file that is not trained on, but held out for the metrics."""
    time_column: Annotated[str | None, Shown("COLUMN")] = None
    """Column of the target file with the time of each row. One flow then leads from the rows of the
    first time through those of every later time. None: rows have no time."""
    leave_out: Annotated[float | None, Shown("TIME")] = None
    """Time whose rows are not trained on, to see how well the flow predicts them. None: no time."""
    reflow: Annotated[str | None, Shown("RUN")] = None
    """Train on pairs that the flow of an earlier run makes: its source points, and where it carries
    them. This makes the lines of the flow straighter. The data is that of the earlier run and the
    method is cfm, unless given. None: no reflow."""
    reflow_pairs: int | None = None
    """Pairs to make for --reflow. None: 50,000."""


@dataclass(frozen=True)
class FlowOptions:
    """The flow: the path from source to data, how points are paired, and the loss."""

    method: Annotated[str, Shown(short="-m", first=True)] = "vp"
    """Path from source to data, and how their points are paired. cfm: linear path, random pairs.
    vp: trigonometric path, which keeps the variance. fm: from normal noise straight to each data
    point. otcfm: linear path, pairs by optimal transport within the batch. sbcfm: Schroedinger
    bridge, which needs --sigma. sf2m: the same bridge, with its score, so that samples can be drawn
    with noise. With --time-column the default is otcfm."""
    sigma: float = 0.0
    """Standard deviation of the noise on the path, in the units of the data; the columns of a file
    are standardised. The methods sbcfm and sf2m need one above 0."""
    path: str | None = None
    """Path from source to data. None: the path of the method."""
    coupling: str | None = None
    """How source points and data points are paired. semidiscrete is fitted to all rows of a file
    before training. None: the coupling of the method."""
    prediction: str = "velocity"
    """What the network predicts: the velocity, the data point x1 or the source point x0."""
    regress: str = "velocity"
    """Quantity whose squared error is the loss: the velocity, x1 or x0."""
    training_times: str = "uniform"
    """How the times t of training points are drawn."""
    loss_weight: str = "unweighted"
    """How much the loss at each time t counts."""
    plan_steps: int | None = None
    """Training steps that share one transport plan. A plan for more steps pairs more points at
    once, which brings pairs nearer together. None: 1."""
    condition_cost: float | None = None
    """Cost of a difference between conditions, relative to that of a distance between points, when
    pairs are made by transport. None: pairs within a class only; 10 for conditions that are
    numbers."""
    condition_dropout: float = 0.1
    """Share of training points whose condition is hidden, so that the model learns to do without.
    Guidance needs it."""


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
    """How the network is given the time: raw, as one number; sinusoidal, as sines and cosines."""


@dataclass(frozen=True)
class TrainingOptions:
    """The training, by AdamW."""

    steps: Annotated[int, Shown(short="-e", first=True)] = 20_000
    """Training steps in total, including those before a resume."""
    batch_size: Annotated[int, Shown(short="-b", first=True)] = 512
    """Pairs of points in a training step."""
    lr: Annotated[float, FIRST] = 1e-3
    """Learning rate. With --warmup-steps or --lr-schedule, its highest value."""
    lr_schedule: str = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 along a cosine."""
    warmup_steps: int = 0
    """Steps at the start in which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float | None = None
    """Largest norm of the gradient; a longer gradient is shortened to it. None: no limit."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights. Samples are drawn with the averaged weights."""
    log_every: int = 100
    """Steps between reports of the loss."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints. A checkpoint is saved with the next report."""
    patience: int | None = None
    """Stop after N reports without improvement of the loss on held-out rows, and keep the best
    weights. None: off."""


@dataclass(frozen=True)
class SolverOptions:
    """The solver, which follows the trained flow from the source to the data."""

    solver: str = "dopri5"
    """Solver of the flow's differential equation. bosh3, dopri5 and tsit5 choose their step sizes;
    the others take --step-size. euler_maruyama, milstein, stochastic_heun and sra1 add noise at
    each step."""
    rtol: float = 1e-4
    """Relative tolerance of the solvers that choose their step sizes."""
    atol: float = 1e-4
    """Absolute tolerance of the solvers that choose their step sizes."""
    step_size: float | None = None
    """Step size; the whole way from source to data is 1. None: 0.01, or the solver's choice."""
    grid: str = "uniform"
    """Where the steps of --step-size end. uniform: equal steps. sine: as many, shorter near the
    data. shifted: as many, shorter near the source."""


@dataclass(frozen=True)
class SamplingOptions:
    """The samples that are drawn after training, for figures and metrics."""

    samples: int = 1024
    """Points to sample."""
    frames: int = 128
    """Times at which flow lines are kept for the figures of two-dimensional data."""


@dataclass(frozen=True)
class RunOptions:
    """The run as a whole."""

    seed: Annotated[int, FIRST] = 0
    """Random seed, which fixes the initial weights, the data and the samples."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


@dataclass(frozen=True)
class Train:
    """Train a flow, sample it, measure it and draw it.

    Without options it takes 8 Gaussians to two moons.
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
    """File with options, such as the config.yaml of a run. Options that are given directly override
    those of the file. None: no file."""
    resume: Annotated[str | None, Shown("RUN", first=True)] = None
    """Continue a run from its newest checkpoint. It is trained up to the --steps it was begun with,
    or to those that are given now. None: a new run."""


@dataclass(frozen=True)
class OtherSolverOptions:
    """The solver, if it is to be another than the run's."""

    solver: str | None = None
    """Solver. None: the run's."""
    rtol: float | None = None
    """Relative tolerance of the solvers that choose their step sizes. None: the run's."""
    atol: float | None = None
    """Absolute tolerance of the solvers that choose their step sizes. None: the run's."""
    step_size: float | None = None
    """Step size of the other solvers; the whole way is 1. None: the run's."""
    grid: str | None = None
    """Where the steps of --step-size end. None: the run's."""


@dataclass(frozen=True)
class Sample:
    """Draw new rows from a trained run into a file, in the units of its data."""

    run: Annotated[str, Shown("RUN", first=True, positional=True)]
    """Folder of the run."""
    n: Annotated[int, Shown(short="-n", first=True)] = 1024
    """Rows to draw."""
    output: Annotated[str | None, Shown("FILE", short="-o", first=True)] = None
    """File to write: .csv, .parquet or .npy. None: RUN/new.csv."""
    condition: Annotated[str | None, Shown("VALUE,...", first=True)] = None
    """Value of each column that the run was trained with as --condition: a number in the units of
    the column, or the text of a class. None: rows of all conditions."""
    guidance: Annotated[float, FIRST] = 1.0
    """How strongly the condition is followed. 1 is as in the data; with more, rows are more typical
    of the condition and less varied."""
    guidance_method: str = "cfg"
    """How a guidance other than 1 is applied: classifier-free guidance (cfg), or CFG-Zero*, which
    scales the part without condition (cfg_zero_star)."""
    at_time: Annotated[float | None, Shown("TIME", first=True)] = None
    """Time to sample at, if the run was trained with --time-column. None: the last."""
    seed: Annotated[int, FIRST] = 0
    """Random seed, which fixes the rows."""
    step: int | None = None
    """Training step of the checkpoint to use. None: the newest."""
    batch_size: Annotated[int, Shown(short="-b")] = 10_000
    """Rows that are drawn and written at a time, which limits the memory. The rows are the same for
    any number."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""
    integration: OtherSolverOptions = field(default_factory=OtherSolverOptions)


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run on held-out data: distances, and the log-likelihood.

    The rows of a file that were held out are read from it again.
    """

    run: Annotated[str, Shown("RUN", positional=True)]
    """Folder of the run."""
    rows: int = 1_000
    """Held-out rows to compute the likelihood of, at most."""
    divergence: str = "exact"
    """How the divergence of the field is computed. exact: by one backward pass for each column.
    hutchinson: estimated by one backward pass in all."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


@dataclass(frozen=True)
class Plot:
    """Draw the figures of a run again.

    In two dimensions: flow lines and an animation. In more: each pair of columns.
    """

    run: Annotated[str, Shown("RUN", positional=True)]
    """Folder of the run."""
    lines: int = 512
    """Flow lines to draw."""
    columns: int = 6
    """Columns to show, if there are more than two."""


@dataclass(frozen=True)
class Reproduce:
    """Run a published comparison of methods again, and print both results side by side.

    2d: the methods I-CFM, OT-CFM, FM, VP, SB-CFM and [SF]2M on five problems in the plane.

    Results are kept as they come: the same command goes on where it was stopped.
    """

    table: Annotated[str, Shown("2d", positional=True)]
    """Comparison to run; 2d is the only one."""
    out: Annotated[str | None, Shown("FOLDER")] = None
    """Folder for the results. None: reproduce-2d, or reproduce-2d-quick."""
    seeds: Annotated[str, Shown("SEED,...")] = "42,43,44,45,46"
    """Random seeds to repeat it with. Processes with other seeds may share a folder."""
    quick: bool = False
    """Run a small form of 1,000 steps and points, to see that everything works."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


@dataclass(frozen=True)
class Info:
    """Show versions, device, BLAS and compiler, and how to mend what is missing."""

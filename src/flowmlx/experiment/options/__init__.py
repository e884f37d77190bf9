"""The options of the commands: declared once, read from words, YAML files and keywords."""

from flowmlx.experiment.options.choices import JOINING_PATHS, METHODS, SOLVERS, TABLES, Method
from flowmlx.experiment.options.declarations import (
    DataOptions,
    Evaluate,
    FlowOptions,
    Info,
    NetOptions,
    Plot,
    Reproduce,
    RunOptions,
    Sample,
    SamplingOptions,
    SolverOptions,
    Train,
    TrainingOptions,
)
from flowmlx.experiment.options.fields import flatten, options_of
from flowmlx.experiment.options.files import (
    FORMAT,
    LAST_OPTION,
    file_options,
    read_config,
    run_options,
    to_yaml,
)
from flowmlx.experiment.options.ranges import check_values
from flowmlx.experiment.options.values import from_keywords, make
from flowmlx.experiment.options.words import given, parse

__all__ = [
    "FORMAT",
    "JOINING_PATHS",
    "LAST_OPTION",
    "METHODS",
    "SOLVERS",
    "TABLES",
    "DataOptions",
    "Evaluate",
    "FlowOptions",
    "Info",
    "Method",
    "NetOptions",
    "Plot",
    "Reproduce",
    "RunOptions",
    "Sample",
    "SamplingOptions",
    "SolverOptions",
    "Train",
    "TrainingOptions",
    "check_values",
    "file_options",
    "flatten",
    "from_keywords",
    "given",
    "make",
    "options_of",
    "parse",
    "read_config",
    "run_options",
    "to_yaml",
]

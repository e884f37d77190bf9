"""The published 2D comparison of flow-matching methods, run again.

Protocol: that of the TorchCFM authors (Tong et al. 2024, arXiv 2302.00482 and 2307.03672): an MLP
of three hidden layers of 64 SELU units, AdamW, batches of 512 of 10,000 training points, 20,000
steps, 100 Euler steps; W2 of 10,000 samples to as many new points, normalised path energy, five
seeds.

A cell is one method on one problem with one seed. It is a file under `cells/`, so that a run that
was stopped goes on where it was, and several processes may share the seeds of one folder.
"""

from flowmlx.command.reproduce.cells import compute, distances, found, run
from flowmlx.command.reproduce.protocol import (
    FULL,
    METHODS,
    PROBLEMS,
    PUBLISHED,
    QUICK,
    Cell,
    Protocol,
    cells,
)
from flowmlx.command.reproduce.summary import NOISY, summarise, tables, write_summary

__all__ = [
    "FULL",
    "METHODS",
    "NOISY",
    "PROBLEMS",
    "PUBLISHED",
    "QUICK",
    "Cell",
    "Protocol",
    "cells",
    "compute",
    "distances",
    "found",
    "run",
    "summarise",
    "tables",
    "write_summary",
]

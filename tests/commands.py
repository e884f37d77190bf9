"""What tests of the command share: short runs, data, refusals, processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flowmlx.command.cli import main
from flowmlx.training import checkpoint

QUICK = ["--steps", "4", "--batch-size", "16", "--width", "8", "--samples", "32", "--frames", "8"]

SNAPSHOTS = ["--target", "cells.csv", "--time-column", "day"]

TREATED = ["--target", "treated.csv", "--time-column", "day", "--condition", "kind"]

SEMIDISCRETE = ["--target", "data.csv", "--coupling", "semidiscrete"]

NAMES = {1: "setosa", 2: "virginica", 4: "Zea mays"}

LONGER = ["--steps", "600", "--batch-size", "128", "--lr", "3e-3", "-m", "cfm", "--out", "run"]

LONG = ["--steps", "1000000", *QUICK[2:]]

OFTEN = ["--checkpoint-every", "10", "--log-every", "10", "--out", "run"]


def refuse(capsys, *words):
    """Run words that must be refused; return the one line that says why."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    assert sorted(Path().rglob("*")) == before, "a refused command wrote something"
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("flowmlx: error: ")
    assert error.count("\n") == 1
    return error


def logged_steps(run):
    return [
        json.loads(line)["step"] for line in Path(run, "metrics.jsonl").read_text().splitlines()
    ]


def table(rows=60, columns=("height", "width", "depth"), name="data.csv", constant=None):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rows, len(columns))) * [100, 1, 0.01] + [1000, 0, 5]
    if constant is not None:
        values[:, constant] = 7.25
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in values.tolist())]
    Path(name).write_text("\n".join(lines) + "\n")
    return values


def cells(name="cells.csv", days=(0, 2, 3, 8), rows=60):
    """Rows around (10 + day, 5 - 2 day), in random order, with the day in the middle."""
    rng = np.random.default_rng(0)
    day = rng.permutation(np.repeat(days, rows))
    noise = rng.normal(size=(2, len(day)))
    table = np.stack([10 + day + noise[0], day, 5 - 2 * day + noise[1]], 1)
    np.savetxt(name, table, delimiter=",", header="a,day,b", comments="")


def treated(names=("control", "drug"), rows=80, days=(0, 1, 2)):
    """Rows at (10, 5) on day 0, of which those of the second kind rise by 4 a day; the first of
    each day has a third of the rows. A column is constant from the start: 1 for the first kind."""
    rng, lines = np.random.default_rng(0), ["a,kind,day,b"]
    for day in days:
        for kind, name in enumerate(names):
            for a, b in rng.normal(size=(rows // (2 - kind), 2)) * 0.5:
                lines.append(f"{10 + a + 3 * (1 - kind)},{name},{day},{5 + b + 4 * kind * day}")
    Path("treated.csv").write_text("\n".join(lines) + "\n")


def kinds(name="kinds.csv", rows=300, names=None):
    """Rows around (10 k, -k) for a kind k of 1, 2 or 4, and a weight that moves the second up.

    `names`: of the kinds, to write in their place.
    """
    rng = np.random.default_rng(0)
    kind = rng.choice([1, 2, 4], rows)
    weight = rng.normal(50, 5, rows)
    a = 10 * kind + rng.normal(size=rows)
    b = -kind + 0.2 * (weight - 50) + 0.1 * rng.normal(size=rows)
    table = np.stack([a, kind, b, weight], 1)
    np.savetxt(name, table, delimiter=",", header="a,kind,b,weight", comments="")
    if names:
        head, *lines = Path(name).read_text().splitlines()
        cells = [line.split(",") for line in lines]
        named = [f"{a},{names[int(float(k))]},{b},{weight}" for a, k, b, weight in cells]
        Path(name).write_text("\n".join([head, *named]) + "\n")


def start(*words, **environment):
    """Start the command in a process of its own, uncompiled unless `environment` says otherwise."""
    environment = {**os.environ, **(environment or {"MLX_DISABLE_COMPILE": "1"})}
    command = [sys.executable, "-m", "flowmlx.command.cli", *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(folder, seconds=60):
    end = time.monotonic() + seconds
    while not checkpoint.steps_saved(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert checkpoint.steps_saved(folder), "no checkpoint appeared"

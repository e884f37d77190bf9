"""Imports go the ways that the contracts in pyproject.toml allow."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = Path(sysconfig.get_path("scripts")) / "lint-imports"
IN_ORDER = "Imports point down"
SOLVERS = "Only what samples or scores runs a solver"
MATPLOTLIB = "Only plots imports matplotlib"
SIBLINGS = "Kinds of data know nothing of each other"
TABLE = "Only the table of kinds knows the single kinds"


def broken(tree):
    """Names of the contracts that the package in `tree` breaks, and all that was said."""
    command = [str(LINTER), "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=environment)
    kept_and_broken = [line.partition(" BROKEN") for line in run.stdout.splitlines()]
    names = [name for name, mark, _ in kept_and_broken if mark]
    assert run.returncode == bool(names), run.stdout + run.stderr
    return names, run.stdout


def test_contracts_are_kept():
    names, said = broken(ROOT / "src")
    assert not names, said


# What each file would import -> the contract that forbids it.
FORBIDDEN = {
    ("paths/new.py", "flowmlx.experiment.runs"): IN_ORDER,
    ("paths/new.py", "flowmlx.couplings"): IN_ORDER,  # a sibling
    ("solvers/new.py", "flowmlx.names"): IN_ORDER,
    ("files/new.py", "flowmlx.solvers.arrays"): IN_ORDER,
    ("native/new.py", "flowmlx.cpu.blas"): IN_ORDER,
    ("nets/new.py", "flowmlx.solvers"): SOLVERS,
    ("solvers/arrays.py", "flowmlx.solvers.integrate"): SOLVERS,  # all others import arrays
    ("metrics.py", "matplotlib.pyplot"): MATPLOTLIB,
    ("kinds/one.py", "flowmlx.kinds.two"): SIBLINGS,
    ("command/new.py", "flowmlx.kinds.one"): TABLE,
}


@pytest.mark.parametrize(("file", "imports"), FORBIDDEN)
def test_each_contract_finds_what_it_forbids(file, imports, tmp_path):
    package = shutil.copytree(ROOT / "src" / "flowmlx", tmp_path / "flowmlx")
    (package / "kinds").mkdir(exist_ok=True)
    for name in ("__init__", "one", "two"):
        (package / "kinds" / f"{name}.py").touch()
    with (package / file).open("a") as code:
        code.write(f"\nimport {imports}\n")
    assert FORBIDDEN[file, imports] in broken(tmp_path)[0]


def test_a_new_part_needs_a_place(tmp_path):
    package = shutil.copytree(ROOT / "src" / "flowmlx", tmp_path / "flowmlx")
    (package / "utils.py").touch()
    assert IN_ORDER in broken(tmp_path)[0]

"""The import directions that docs/design.md promises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "flowmlx"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# Top-level part of the package -> parts it may import.
LEAVES = {
    "arrays",
    "names",
    "keys",
    "memory",
    "blas",
    "blocks",
    "cache",
    "entropic",
    "native",
    "assignment",
    "plans",
    "laguerre",
    "products",
    "conditions",
    "background",
    "ranks",
    "fields",
    "locks",
    "reading",
    "writing",
}
ALLOWED = {
    "names": {"arrays"},
    "keys": {"arrays"},
    "locks": set(),
    "writing": {"locks"},
    "reading": set(),
    "stopping": {"ranks"},
    "helptexts": set(),
    "progress": set(),
    "interrupt": set(),
    "memory": set(),
    "elf": set(),
    "blas": {"blocks", "elf"},
    "blocks": {"native"},
    "cache": {"elf"},
    "instructions": set(),
    "native": {"cache", "instructions", "writing"},
    "jit": {"cache", "elf", "instructions", "native"},
    "entropic": {"arrays"},
    "assignment": {"entropic", "native"},
    "plans": {"arrays", "assignment", "entropic", "products"},
    "products": set(),
    "laguerre": {"products"},
    "background": set(),
    "ranks": {"arrays"},
    "conditions": {"arrays"},
    "fields": {"arrays"},
    "solvers": {"arrays"},
    "paths": LEAVES,
    "couplings": LEAVES,
    "semidiscrete": {*LEAVES, "couplings"},
    "times": {*LEAVES, "solvers"},
    "nets": LEAVES,
    "data": LEAVES,
    "metrics": LEAVES,
    "conversions": {*LEAVES, "paths", "solvers"},
    "losses": {*LEAVES, "paths", "times", "conversions"},
    "guidance": {*LEAVES, "paths"},
    "sampling": {*LEAVES, "solvers", "paths", "conversions"},
    "diagnosis": {*LEAVES, "nets"},
    "train_step": {*LEAVES, "diagnosis"},
    "training": {*LEAVES, "couplings", "losses", "diagnosis", "train_step"},
    "bridges": {*LEAVES, "solvers", "paths"},
    "likelihood": {*LEAVES, "solvers"},
    "snapshots": {
        *LEAVES,
        *("bridges", "couplings", "data", "metrics", "sampling", "solvers", "training"),
    },
    "torchcfm": {*LEAVES, "paths", "couplings", "nets", "metrics"},
    "checkpoint": {*LEAVES, "diagnosis", "train_step"},
    "plots": LEAVES,
    "info": {*LEAVES, "instructions", "jit"},
}
# The command's own modules, which may import everything but each other's users.
APPLICATION = ["settings", "limits", "build", "reproduce", "runfiles", "runs", "cli"]


# Rooms of the solvers that all others may use.
ROOMS_OF_ALL = ["solvers.arrays", "solvers.closures", "solvers.tracing"]


def imported(path):
    """Parts of flowmlx that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "flowmlx":
                parts = rest.split(".")
                yield "arrays" if ".".join(parts[:2]) in ROOMS_OF_ALL else parts[0]


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.split(".")[0] in ALLOWED))
def test_imports_point_one_way(module):
    part = module.split(".")[0]
    assert set(imported(MODULES[module])) <= ALLOWED[part] | {part}


@pytest.mark.parametrize("module", ROOMS_OF_ALL)
def test_the_rooms_of_all_import_only_each_other(module):
    assert set(imported(MODULES[module])) <= {"arrays"}


def test_only_plots_imports_matplotlib():
    users = [
        m
        for m, path in MODULES.items()
        if re.search("import matplotlib|from matplotlib", path.read_text())
    ]
    assert users == ["plots"]


@pytest.mark.parametrize("part", APPLICATION)
def test_the_command_is_built_in_order(part):
    later = APPLICATION[APPLICATION.index(part) + 1 :]
    assert not set(imported(MODULES[part])) & set(later)


def test_every_module_has_a_rule():
    parts = {module.split(".")[0] for module in MODULES}
    assert parts == {*ALLOWED, *APPLICATION, "__init__"}

"""The package as it is imported and installed."""

import subprocess
import sys

import pytest


def python(code, argv0="python"):
    code = f"import sys; sys.argv[0] = {argv0!r}\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_is_silent_and_leaves_heavy_packages_alone():
    heavy = ("matplotlib", "pyarrow", "scipy", "tyro", "yaml")
    result = python(f"import flowmlx; print([m for m in {heavy} if m in sys.modules])")
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_missing_backend_names_the_command_that_installs_one():
    result = python("sys.modules['mlx.core'] = None; import flowmlx")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: MLX has no backend here")
    assert "pip install 'mlx" in last


def test_command_without_backend_prints_one_line():
    code = "sys.modules['mlx.core'] = None; from flowmlx.command.cli import main"
    result = python(code, argv0="/somewhere/bin/flowmlx")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("flowmlx: error: MLX has no backend here")


# Loaded by the package, beside its backend, by the command, and while it works.
@pytest.mark.parametrize("module", ["numpy", "mlx.core", "tyro", "scipy"])
def test_ctrl_c_while_modules_load_is_one_line(module):
    code = f"""
import importlib.abc, os, signal

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from flowmlx.command import cli
cli.COMMANDS[cli.Info] = lambda config: __import__("scipy.optimize")
cli.main(["info"])
"""
    result = python(code, argv0="/somewhere/bin/flowmlx")
    assert (result.returncode, result.stderr) == (130, "\nflowmlx: interrupted\n")

"""The package as it is imported and installed."""

import subprocess
import sys


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
    code = "sys.modules['mlx.core'] = None; from flowmlx.cli import main"
    result = python(code, argv0="/somewhere/bin/flowmlx")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("flowmlx: error: MLX has no backend here")

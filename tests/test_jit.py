"""Wide instructions for compiled loops: used where they should be, harmless everywhere else."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowmlx import jit

FLAGS = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
wide = pytest.mark.skipif(
    platform.machine() != "x86_64" or " avx2" not in FLAGS or not shutil.which("g++"),
    reason="needs a processor with AVX2 and g++",
)

# A fused operation on 1,003 numbers, its error, and what a command run by this process sees.
FUSED = """
import subprocess, sys
{first}
import mlx.core as mx
f = mx.compile(lambda x, y: (x + y) * x / (1 + x * x) - 0.3 * y)
x, y = mx.random.normal((2, 1003), key=mx.random.key(0))
exact = (x + y) * x / (1 + x * x) - 0.3 * y
assert mx.abs(f(x, y) - exact).max() < 1e-6
assert mx.abs(mx.compile(lambda x: x * mx.sigmoid(x))(x) - x * mx.sigmoid(x)).max() < 1e-6
"""


def run(first, folder, **environment):
    """Compile in a fresh process with an empty cache; return the instructions of its loops."""
    done = subprocess.run(
        [sys.executable, "-c", FUSED.format(first=first)],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    libraries = list(folder.rglob("*.so"))
    assert libraries
    return b"".join(library.read_bytes() for library in libraries)


def uses_wide_registers(code):
    """Whether there is a VEX-encoded 256-bit multiplication, addition or fused pair of floats."""
    return b"\xc5\xfc\x58" in code or b"\xc5\xf4\x58" in code or b"\xc4\xe2\x7d" in code


def test_only_the_command_of_mlx_is_changed():
    command = b'g++ -std=c++17 -O3 -Wall -fPIC -shared "a.cpp" -o "liba.so" 2>&1'
    changed = jit.with_options(command, b"-mavx2 -mfma ")
    assert changed == command.replace(b"-O3", b"-O3 -mavx2 -mfma")
    for other in (b"g++ --version > /dev/null 2>&1", b"g++ -O2 a.cpp", b"ls", b""):
        assert jit.with_options(other, b"-mavx2 ") == other


@pytest.mark.parametrize("instructions", jit.INSTRUCTIONS, ids=lambda each: each.folder)
def test_the_widest_instructions_that_the_processor_has_are_chosen(instructions, monkeypatch):
    monkeypatch.setattr(jit, "_processor_flags", lambda: {"sse2", *instructions.needed})
    assert jit.widest() is instructions
    for missing in instructions.needed:
        monkeypatch.setattr(jit, "_processor_flags", lambda: instructions.needed - {missing})  # noqa: B023
        assert jit.widest() is not instructions
    monkeypatch.setattr(jit, "_processor_flags", lambda: instructions.needed)
    monkeypatch.setenv("FLOWMLX_JIT", "0")
    assert jit.widest() is jit.NARROW
    assert len({each.folder for each in (*jit.INSTRUCTIONS, jit.NARROW)}) > len(jit.INSTRUCTIONS)


@wide
@pytest.mark.parametrize("instructions", jit.INSTRUCTIONS, ids=lambda each: each.folder)
def test_g_plus_plus_uses_what_it_is_given_and_no_more(instructions):
    done = subprocess.run(
        ["g++", *instructions.options.decode().split(), "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True,
        text=True,
        check=True,
    )
    sets = {"__AVX2__", "__FMA__", "__AVX512F__", "__AVX512DQ__", "__AVX512BW__", "__AVX512VL__"}
    used = {name.strip("_").lower() for name in sets if f" {name} " in done.stdout}
    assert used == instructions.needed


@wide
@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    ["import flowmlx", "import mlx.core\nimport flowmlx", "import flowmlx; flowmlx._jit.load()"],
    ids=["before", "after mlx", "twice"],
)
def test_loops_use_wide_registers_and_are_right(first, tmp_path):
    assert uses_wide_registers(run(first, tmp_path))


@wide
@pytest.mark.slow
def test_it_can_be_turned_off_and_is_off_without_the_package(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert not uses_wide_registers(run("import flowmlx", tmp_path / "a", FLOWMLX_JIT="0"))
    assert not uses_wide_registers(run("", tmp_path / "b"))


def test_load_says_what_it_did(monkeypatch):
    expected = platform.machine() == "x86_64" and " avx2" in FLAGS and " fma" in FLAGS
    assert jit.load() == expected
    monkeypatch.setenv("FLOWMLX_JIT", "0")
    assert not jit.load()
    monkeypatch.delenv("FLOWMLX_JIT")
    monkeypatch.setattr(jit, "_processor_flags", lambda: {"sse2"})
    assert not jit.load()
    monkeypatch.setattr(jit, "_processor_flags", lambda: 1 / 0)
    assert not jit.load()


@wide
def test_commands_of_others_run_as_they_are():
    assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
    with os.popen("echo unchanged") as pipe:
        assert pipe.read() == "unchanged\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the temporary folder is one's own")
@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_the_cache_is_the_users_own(given, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", given or "")
    if not given:
        monkeypatch.delenv("TMPDIR")
    jit.private_cache()
    if given:
        assert os.environ["TMPDIR"] == given
        return
    folder = Path(os.environ["TMPDIR"])
    assert folder.parent == tmp_path / "cache" / "flowmlx"
    assert folder.stat().st_mode & 0o777 == 0o700
    # One that others can write to is not used.
    monkeypatch.delenv("TMPDIR")
    folder.chmod(0o777)
    jit.private_cache()
    assert "TMPDIR" not in os.environ


@pytest.mark.slow
@wide
def test_the_command_compiles_into_it(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("TMPDIR", "XDG_CACHE_HOME")}
    words = ["--steps", "2", "--batch-size", "8", "--width", "4", "--depth", "1", "--samples", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "flowmlx.cli", "train", *words, "--times", "2", "--cpu"],
        env={**environment, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    libraries = list((tmp_path / ".cache" / "flowmlx" / jit.widest().folder).rglob("*.so"))
    assert libraries
    assert uses_wide_registers(b"".join(library.read_bytes() for library in libraries))


@pytest.mark.skipif(sys.platform != "linux", reason="the cache is moved on Linux alone")
def test_each_rank_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """Two processes that compile one loop into one folder may load half of it."""
    folders = []
    for given in (False, True):
        for rank in (0, 1, 2):
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            if given:
                monkeypatch.setenv("TMPDIR", str(tmp_path))
            else:
                monkeypatch.delenv("TMPDIR", raising=False)
            jit.private_cache(rank)
            folders.append(Path(os.environ["TMPDIR"]))
    assert len(set(folders)) == 6
    assert folders[3] == tmp_path
    assert all(folder.is_dir() for folder in folders)

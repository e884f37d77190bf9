"""Compiled loops of MLX: the user's own, with wide instructions where they should be, and whole."""

import ctypes
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowmlx.cpu import jit
from flowmlx.native import cache, elf, instructions, launchers, loops
from flowmlx.native import libraries as native

FLAGS = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
compiles = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++"
)
wide = pytest.mark.skipif(
    platform.machine() != "x86_64" or " avx2" not in FLAGS or not shutil.which("g++"),
    reason="needs a processor with AVX2 and g++",
)

USED = "from flowmlx import cpu; cpu.accelerate()"
COMMAND = f"{USED}; from flowmlx.command import process; process.keep_loops_private()"

# A fused operation on 1,003 numbers, and its error.
FUSED = """
{first}
import mlx.core as mx
f = mx.compile(lambda x, y: (x + y) * x / (1 + x * x) - 0.3 * y)
x, y = mx.random.normal((2, 1003), key=mx.random.key(0))
exact = (x + y) * x / (1 + x * x) - 0.3 * y
assert mx.abs(f(x, y) - exact).max() < 1e-6
"""


def begin(first, folder, **environment):
    """Start a process that compiles, with its cache and its temporary folder in `folder`."""
    for name in ("cache", "tmp"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(
        [sys.executable, "-c", FUSED.format(first=first)],
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process):
    output, error = process.communicate(timeout=120)
    assert (process.returncode, output, error) == (0, "", "")


def made(folder):
    """The loops in `folder`, a cache or a temporary folder, beside what they were made from."""
    return list(folder.glob("**/mlx/*/cpu/lib*.so"))


def code(folder):
    libraries = made(folder)
    assert libraries
    return b"".join(library.read_bytes() for library in libraries)


def stand_in(folder, script):
    """A PATH on which g++ is a shell script; $REAL is the compiler."""
    folder.mkdir()
    compiler = folder / "g++"
    compiler.write_text(f"#!/bin/sh\nREAL={shlex.quote(shutil.which('g++'))}\n{script}")
    compiler.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def uses_wide_registers(code):
    """Whether there is a VEX-encoded 256-bit multiplication, addition or fused pair of floats."""
    return b"\xc5\xfc\x58" in code or b"\xc5\xf4\x58" in code or b"\xc4\xe2\x7d" in code


@pytest.fixture(scope="module")
def functions():
    library = native.library(jit.SOURCE)
    if library is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library.changed_command.restype = ctypes.c_char_p
    yield library
    jit.load()  # undo what a test has told it


def test_only_the_command_of_mlx_is_changed(functions):
    functions.compile_with(b"-mavx2 -mfma ", b"/own/", b"/own/new-")
    start = b"g++ -std=c++17 -O3 "
    before = start + b'-Wall -I "/b c" "/own/a.cpp" -o "/own/liba.so" 2>&1'
    changed = [functions.changed_command(before) for _ in range(2)]
    unfinished = [shlex.split(command)[-2].encode() for command in map(os.fsdecode, changed)]
    assert changed == [
        b"umask 077; " + start + b'-mavx2 -mfma -Wall -I "/b c" "/own/a.cpp" -o "%b" 2>&1'
        b' && mv -f "%b" "/own/liba.so"' % (name, name)
        for name in unfinished
    ]
    assert len(set(unfinished)) == 2
    assert all(name.startswith(b"/own/new-") and name.endswith(b".so") for name in unfinished)
    for other in (
        b"g++ --version > /dev/null 2>&1",
        b'g++ -O2 "/own/a.cpp" -o "/own/liba.so" 2>&1',
        start + b'"/tmp/a.cpp" -o "/tmp/liba.so" 2>&1',  # plain MLX would find it
        start + b'"/own/a.cpp" -o "/own/liba.so"',
        start + b'"/own/a.cpp" 2>&1',
        start,
        b"",
    ):
        assert functions.changed_command(other) == other


@pytest.mark.parametrize("wanted", instructions.INSTRUCTIONS, ids=lambda each: each.folder)
def test_the_widest_instructions_that_the_processor_has_are_chosen(wanted, monkeypatch):
    monkeypatch.setattr(instructions, "_processor_flags", lambda: {"sse2", *wanted.needed})
    assert instructions.widest() is wanted
    for missing in wanted.needed:
        monkeypatch.setattr(instructions, "_processor_flags", lambda: wanted.needed - {missing})  # noqa: B023
        assert instructions.widest() is not wanted
    monkeypatch.setattr(instructions, "_processor_flags", lambda: wanted.needed)
    monkeypatch.setenv("FLOWMLX_JIT", "0")
    assert instructions.widest() is instructions.NARROW
    sets = instructions.INSTRUCTIONS
    assert len({each.folder for each in (*sets, instructions.NARROW)}) == len(sets) + 1


def test_without_proc_no_instructions_are_known(monkeypatch):
    monkeypatch.setattr(instructions, "Path", lambda path: Path("/nowhere"))
    assert instructions.widest() is instructions.NARROW


@wide
@pytest.mark.parametrize("wanted", instructions.INSTRUCTIONS, ids=lambda each: each.folder)
def test_g_plus_plus_uses_what_it_is_given_and_no_more(wanted):
    done = subprocess.run(
        ["g++", *wanted.options.split(), "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True,
        text=True,
        check=True,
    )
    sets = {"__AVX2__", "__FMA__", "__AVX512F__", "__AVX512DQ__", "__AVX512BW__", "__AVX512VL__"}
    used = {name.strip("_").lower() for name in sets if f" {name} " in done.stdout}
    assert used == wanted.needed


# Where loops go, and which are taken


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "from flowmlx.nets import MLP; import mlx.core as mx; MLP(2, key=mx.random.key(0))",
        f"{USED}; cpu.jit.load()",
    ],
    ids=["by a first use", "twice"],
)
def test_the_loops_of_a_program_are_kept_where_only_they_are_found(first, tmp_path):
    """Plain MLX finds none that another processor could not run; no variable changes."""
    unchanged = f"import os; before = dict(os.environ)\n{first}\nassert os.environ == before"
    end(begin(unchanged, tmp_path))
    assert list((tmp_path / "tmp").iterdir()) == []
    (library,) = made(tmp_path / "cache" / "flowmlx" / instructions.widest().folder)
    assert cache.usable(library)
    if instructions.widest() is not instructions.NARROW:
        assert uses_wide_registers(library.read_bytes())


@wide
@pytest.mark.slow
def test_it_can_be_turned_off_and_is_off_until_the_first_use(tmp_path):
    for name, first, value in (("a", USED, "0"), ("b", "import flowmlx", "1")):
        (tmp_path / name).mkdir()
        end(begin(first, tmp_path / name, FLOWMLX_JIT=value))
        assert not uses_wide_registers(code(tmp_path / name / "tmp"))
        assert made(tmp_path / name / "cache") == []


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("variable", ["FLOWMLX_JIT", "FLOWMLX_CPU"])
def test_turned_off_the_command_still_has_loops_of_its_own(variable, tmp_path):
    end(begin(COMMAND, tmp_path, **{variable: "0"}))
    (folder,) = (tmp_path / "cache" / "flowmlx").iterdir()
    assert folder.name == instructions.NARROW.folder
    assert not uses_wide_registers(code(folder))


@compiles
@pytest.mark.slow
def test_a_second_process_compiles_only_what_was_cut(tmp_path):
    """MLX takes what is there: a part of a library ends the process, at every start."""
    path = stand_in(tmp_path / "bin", f'echo "$*" >> {tmp_path}/calls\nexec "$REAL" "$@"\n')

    def compiled():
        end(begin(USED, tmp_path, PATH=path))
        calls = (tmp_path / "calls").read_text().splitlines()
        return len([call for call in calls if "--version" not in call])

    before = os.umask(0)
    try:
        assert compiled() == compiled() == 1
    finally:
        os.umask(before)
    paths = [*made(tmp_path), *(tmp_path / "cache" / "flowmlx" / "native").iterdir()]
    whole = [path.stat().st_size for path in paths]
    assert len(paths) >= 3
    for path_of_library, size in zip(paths, whole, strict=True):
        assert not path_of_library.stat().st_mode & 0o022
        os.truncate(path_of_library, int(size * 0.9))
    assert compiled() == 2
    assert [path_of_library.stat().st_size for path_of_library in paths] == whole


@compiles
@pytest.mark.slow
def test_a_compiler_that_is_killed_leaves_nothing_that_is_loaded(tmp_path):
    """The stand-in writes the first half of a library, and would take an hour for the second."""
    half = f"""
case "$*" in *--version*) exit;; esac
while [ "$1" != -o ]; do shift; done
head -c 9000 "$REAL" > "$2"
echo "$2" > {tmp_path}/reached.new && mv {tmp_path}/reached.new {tmp_path}/reached
sleep 3600
"""
    path = stand_in(tmp_path / "bin", half)
    process = begin(USED, tmp_path, PATH=path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "reached").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    written = Path((tmp_path / "reached").read_text().strip())
    os.killpg(process.pid, signal.SIGKILL)  # the process and its compiler
    process.communicate()
    assert written.stat().st_size == 9000
    assert made(tmp_path) == []
    end(begin(USED, tmp_path))


@compiles
@pytest.mark.slow
def test_processes_that_start_together_with_an_empty_cache_all_finish(tmp_path):
    processes = [begin(USED, tmp_path) for _ in range(3)]
    for process in processes:
        end(process)
    (library,) = made(tmp_path)
    assert cache.usable(library)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_no_shell_acts_on_the_name_of_a_folder(variable, tmp_path):
    marker = tmp_path / "marker"
    touch = f"touch {str(marker).replace('/', '$S')}"
    folder = tmp_path / f"a $({touch}) `{touch}` \" '"
    folder.mkdir()
    others = {"XDG_CACHE_HOME": ""} if variable == "HOME" else {}
    process = begin(
        COMMAND, tmp_path, **{"S": "/", **others, variable: str(folder), "TMPDIR": str(folder)}
    )
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert error.count("\n") == 1
    assert not marker.exists()
    assert list(folder.iterdir()) == []


def test_load_says_what_it_did(monkeypatch):
    able = sys.platform == "linux" and native.c_compiler() is not None
    assert jit.load() == able
    monkeypatch.setenv("FLOWMLX_JIT", "0")
    assert not jit.load()
    monkeypatch.delenv("FLOWMLX_JIT")
    monkeypatch.setattr(jit.slots, "of", lambda path: {})  # an MLX that is built another way
    assert not jit.load()


@pytest.mark.skipif(sys.platform != "linux", reason="loops are for Linux alone")
@pytest.mark.parametrize("name", ["$(touch x)", "a`b`", 'a"b', "a\\b"])
def test_nothing_is_compiled_where_a_shell_acts_on_the_folder_of_mlx(name, monkeypatch, caplog):
    monkeypatch.setattr(elf, "mlx_library", lambda: Path("/") / name / "lib" / "libmlx.so")
    loops.a_shell_acts_on_mlx.cache_clear()
    try:
        assert loops.unsafe()
        assert loops.unsafe()
    finally:
        loops.a_shell_acts_on_mlx.cache_clear()
    (record,) = caplog.records
    assert "install MLX elsewhere" in record.getMessage()


@wide
def test_commands_of_others_run_as_they_are():
    assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
    with os.popen("echo unchanged") as pipe:
        assert pipe.read() == "unchanged\n"


@pytest.fixture
def chosen_anew(tmp_path, monkeypatch):
    """The cache of this process, chosen again for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    cache.root.cache_clear()
    yield tmp_path / "flowmlx"
    monkeypatch.undo()
    cache.root.cache_clear()
    jit.load()


@pytest.mark.skipif(sys.platform != "linux", reason="the cache is moved on Linux alone")
@pytest.mark.parametrize("variable", ["MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_each_rank_has_a_folder_of_its_own(variable, chosen_anew, monkeypatch):
    """Two processes that compile one loop into one folder may load half of it."""
    loops.redirect(None)
    told = []
    monkeypatch.setattr(jit, "_redirect", lambda functions, path: told.append(path))
    for rank in ("0", "1", "2"):
        monkeypatch.setenv(variable, rank)
        loops.keep_by_variable()
        told.append(Path(os.environ["TMPDIR"]))
        if jit.load():
            assert told[-1].name.startswith(instructions.widest().folder)
            loops.redirect(None)
    assert len(set(told)) == len(told) >= 3
    assert all(folder.is_dir() and folder.parent == chosen_anew for folder in told)


@pytest.mark.parametrize("told", ["", "-1", "../2", "1 ", "x"])
def test_a_rank_that_is_no_number_is_the_first(told, monkeypatch):
    for name in launchers.LAUNCHED:
        monkeypatch.setenv(name, told)
    assert launchers.rank() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the cache is moved on Linux alone")
def test_where_what_must_not_be_loaded_cannot_be_removed_nothing_is(
    chosen_anew, monkeypatch, caplog
):
    library = loops.folder() / "mlx" / "0" / "cpu" / "libx.so"
    library.parent.mkdir(parents=True)
    library.write_text("not whole")
    loops._without_unusable.cache_clear()  # as in another process
    monkeypatch.setattr(Path, "unlink", _denied)
    assert loops.folder() is None
    assert loops.unsafe()
    assert not jit.load()
    assert "nothing is compiled" in caplog.text


def _denied(path, **options):
    raise PermissionError(13, "Permission denied", str(path))

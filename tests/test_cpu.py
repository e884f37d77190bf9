"""One door to what is done to MLX's CPU backend: when it opens, what it leaves alone."""

import os
import subprocess
import sys
import threading
import time
import timeit
from pathlib import Path

import mlx.core as mx
import pytest

from boundary_cases import CASES
from flowmlx import cpu
from flowmlx.command import process
from flowmlx.cpu import blas, jit, memory
from flowmlx.native import loops
from flowmlx.nets.activations import ACTIVATIONS
from flowmlx.solvers import backend
from flowmlx.training import ranks

linux = pytest.mark.skipif(sys.platform != "linux", reason="done on Linux alone")

# What a program sees of MLX: the functions that libmlx.so calls, writable memory, and more. `slots`
# is read from its file, as importing it would import the package.
SEEN = f"""
import importlib.util, os, sys
import mlx.core as mx
from pathlib import Path

def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made

slots = module("slots", {str(Path(blas.__file__).with_name("slots.py"))!r})
library = next(Path(mx.__file__).parent.glob("lib*/libmlx.so"))
addresses = {{
    name: slot for name, slot in slots.of(library).items()
    if name == "popen" or "temp_directory_path" in name or name.startswith("cblas_")
}}

def seen():
    return {{name: slots.owner(slot) for name, slot in addresses.items()}}, dict(os.environ)

def pages_of_libraries():
    pages = {{}}
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, allowed, *_, path = line.split()
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if ".so" in path:
            pages |= dict.fromkeys(range(start, end, 4096), allowed)
    return pages

assert {{"popen", "cblas_sgemm"}} < addresses.keys()
before = seen()
"""
FIRST_USES = {
    "a solve": "from flowmlx.solvers import odeint\n"
    "odeint(lambda t, x: -x, [[1.0]], [0.0, 1.0], method='euler', step_size=0.5)",
    "a step of one's own": "flowmlx.paths.Linear().sample([[0.0]], [[1.0]], 0.5, "
    "key=mx.random.key(0))",
    "a training step": "import mlx.nn as nn, mlx.optimizers as optim\n"
    "state = flowmlx.training.TrainState(nn.Linear(2, 2), optim.SGD(0.1))\n"
    "flowmlx.training.make_step(state, lambda model, *, key: 0.0)",
}


def python(code, folder, **environment):
    """What a fresh Python prints, with an empty cache in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@linux
@pytest.mark.slow
@pytest.mark.parametrize("use", FIRST_USES)
def test_mlx_is_as_it_was_until_the_first_use(use, tmp_path):
    code = f"""{SEEN}
from flowmlx import *
import flowmlx.command.cli, flowmlx.experiment.experiment
assert seen() == before
assert "flowmlx.cpu" not in sys.modules
assert not list(Path({str(tmp_path)!r}).iterdir())  # nothing is compiled
{FIRST_USES[use]}
owners, environment = seen()
assert environment == before[1]
print(owners["cblas_sgemm"] != before[0]["cblas_sgemm"])
print(owners["popen"] != before[0]["popen"])
"""
    assert python(code, tmp_path) == f"True\n{bool(loops.are_redirected())}\n"


@linux
@pytest.mark.slow
def test_numbers_are_those_of_plain_mlx(tmp_path):
    """Of a solve, before anything else of the package is used, and but for rounding."""
    code = f"""{SEEN}
import numpy as np
a, x = mx.random.normal((2, 300, 300), key=mx.random.key(0))
plain = x
for _ in range(4):
    plain = plain + 0.25 * (plain @ a) / 300
mx.eval(plain)
from flowmlx.solvers import odeint
xs = odeint(lambda t, x: x @ a / 300, x, [0.0, 1.0], method="euler", step_size=0.25).xs
print(seen() != before, np.abs(np.array(xs[-1] - plain)).max() < 1e-5)
"""
    assert python(code, tmp_path) == "True True\n"


@linux
@pytest.mark.slow
def test_one_variable_turns_all_of_it_off(tmp_path):
    code = f"""{SEEN}
import flowmlx
{FIRST_USES["a solve"]}
assert seen() == before
from flowmlx.command import info
resolved, _ = info.gather()
print(resolved["cpu backend"], "/", resolved["compiled loops"])
"""
    said = python(code, tmp_path, FLOWMLX_CPU="0", TMPDIR=str(tmp_path))
    assert said == f"as MLX has it: FLOWMLX_CPU=0 / in {tmp_path}/mlx\n"


@linux
@pytest.mark.slow
def test_memory_stays_as_protected_as_it_was(tmp_path):
    """Of libraries, also where a loader has made the slots read-only."""
    code = f"""{SEEN}
import mmap
from flowmlx import cpu
for slot in addresses.values():
    slots._protect(slot & -mmap.PAGESIZE, mmap.PROT_READ)
pages = pages_of_libraries()
cpu.accelerate()
assert "OpenBLAS" in cpu.status()[0]["blas"]
now = pages_of_libraries()
print({{(pages[page], now[page]) for page in pages if now[page] != pages[page]}})
print({{now[slot & -4096] for slot in addresses.values()}})
for slot in addresses.values():  # as the loader has them, which writes there
    slots._protect(slot & -mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
"""
    assert python(code, tmp_path) == "set()\n{'r--p'}\n"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["macOS", "GPU"])
def test_nothing_of_it_is_imported_elsewhere(where, tmp_path):
    """Of the library and of the command, on what says that it is another machine."""
    code = f"""
import sys
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, numpy, scipy, tyro
if {where == "macOS"}:
    sys.platform = "darwin"
else:
    mx.default_device = lambda: mx.Device(mx.gpu, 0)
import flowmlx
from flowmlx.command import cli
mx.disable_compile()
{FIRST_USES["a solve"]}
{FIRST_USES["a training step"]}
flowmlx.couplings.exact_ot([[0.0], [1.0]], [[1.0], [0.0]])
flowmlx.nets.MLP(1, key=mx.random.key(0))(0.5, mx.ones((2, 1)))
sys.argv = ["flowmlx", "info"]
cli.main()
print([name for name in sys.modules if name.startswith("flowmlx.cpu")])
"""
    *resolved, imported = python(code, tmp_path, TMPDIR=str(tmp_path)).splitlines()
    assert imported == "[]"
    (fact,) = (line for line in resolved if line.startswith("cpu backend"))
    assert "as MLX has it" in fact


@linux
@pytest.mark.slow
def test_what_fails_does_no_harm(tmp_path):
    code = f"""{SEEN}
import flowmlx
from flowmlx import cpu
def fail(*arguments):
    raise OSError("a reason")
def full(*arguments):
    raise MemoryError
cpu.blas.slots.of = cpu.blas.slots.write = fail
cpu.memory.np = type("no memory", (), dict(empty=full, uint8=None))
{FIRST_USES["a solve"]}
cpu.accelerate(2)
assert seen() == before
print(cpu.status()[1])
"""
    assert "a reason" in python(code, tmp_path)


# In this process


@pytest.fixture
def recorded(monkeypatch):
    """First uses, noted in place of what they do."""
    noted = []
    monkeypatch.setattr(backend, "is_linux_cpu", lambda: True)
    monkeypatch.setattr(backend, "_preparation", lambda: noted.append(True))
    return noted


# Numbers alone go in.
NO_USE = {"metrics.normalised_path_energy", "training.learning_rate"}


def test_whatever_takes_arrays_or_keys_is_a_use(recorded, without_compile, monkeypatch):
    """And those who call it again wait for nothing."""
    unused = []
    for name, case in CASES.items():
        recorded.clear()
        monkeypatch.setattr(backend, "_preparation", lambda: recorded.append(True))
        case.call(**case.given)
        assert len(recorded) <= 1
        if not recorded:
            unused.append(name)
    assert {name for name in unused if not name.startswith(("paths.PATHS", "solvers.grids"))} == (
        NO_USE
    )


@pytest.mark.usefixtures("without_compile")
def test_nothing_is_compiled_before(recorded):
    """A network made elsewhere, as by `mlx.nn`, with an activation of this package."""
    ACTIVATIONS["silu"](mx.ones(3))
    assert recorded == [True]


def test_a_device_may_be_changed_later(recorded, monkeypatch):
    monkeypatch.setattr(backend, "is_linux_cpu", lambda: False)
    backend.ready()
    assert recorded == []
    monkeypatch.setattr(backend, "is_linux_cpu", lambda: True)
    backend.ready()
    backend.ready()
    assert recorded == [True]


@linux
def test_where_no_folder_is_safe_compiling_is_off_before_all_else(monkeypatch):
    calls = []
    monkeypatch.setattr(mx, "disable_compile", lambda: calls.append("off"))
    monkeypatch.setattr(loops, "unsafe", lambda: True)
    for part in (jit, blas, memory):
        monkeypatch.setattr(part, "load", lambda: calls.append("more"))
    cpu._load()
    assert calls == ["off", *["more"] * 3]
    monkeypatch.setattr(loops, "_redirected", None)
    monkeypatch.setattr(loops, "folder", lambda kind: None)
    process.keep_loops_private()  # the command, whatever is turned off
    assert calls[-1] == "off"


@pytest.fixture
def unused(monkeypatch):
    """The door as in a process that has not gone through it; calls of what is behind."""
    calls = []
    monkeypatch.setattr(cpu, "_processes", 0)
    monkeypatch.setattr(cpu, "why_not", lambda: "")
    monkeypatch.setattr(cpu, "_load", lambda: (time.sleep(0.05), calls.append("load")))
    monkeypatch.setattr(blas, "share_processors", calls.append)
    return calls


def test_threads_that_come_at_once_all_wait_until_it_is_done(unused):
    seen = []
    threads = [
        threading.Thread(target=lambda: (cpu.accelerate(), seen.append(list(unused))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["load"]] * 4


def test_an_interrupt_leaves_it_to_be_done(unused, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(cpu, "_load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cpu.accelerate()
    cpu.accelerate()
    assert unused == ["load"]


def test_cores_are_shared_as_was_said_last(unused):
    for processes in (2, None, 2, 3, 1, None):
        cpu.accelerate(processes)
    assert unused == ["load", 2, 3, 1]


@linux
def test_the_command_shares_cores_with_the_ranks_on_its_machine(unused, monkeypatch):
    monkeypatch.setattr(ranks, "on_this_machine", lambda group: 2)
    process.share_processors(None)
    assert unused == []
    process.share_processors(mx.distributed.init())
    assert unused == ["load", 2]


@linux
def test_later_calls_take_no_time():
    cpu.accelerate()
    backend.ready()
    for call in (cpu.accelerate, backend.ready):
        assert min(timeit.repeat(call, number=1000, repeat=20)) < 1000 * 0.5e-6

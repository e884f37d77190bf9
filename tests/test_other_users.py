"""Nothing that another user of the machine has put somewhere is run; these tests change users."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux"
        or os.getuid() != 0
        or not (shutil.which("g++") and shutil.which("setpriv")),
        reason="needs Linux, root, setpriv and g++",
    ),
]

VICTIM, OTHER = 12345, 65534
FUSED = """
{first}
import mlx.core as mx
x = mx.arange(1003.0)
assert mx.abs(mx.compile(lambda x: x * x / (1 + x * x))(x) - x * x / (1 + x * x)).max() < 1e-6
"""
PLANTED = '__attribute__((constructor)) static void run(void) { __builtin_puts("planted"); }'
PLAIN = FUSED.format(first="")
OURS = FUSED.format(first="from flowmlx.solvers import backend; backend.ready()")


# They may read everything, as Python is often installed where only root can.
READS = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def run(user, *program, **environment):
    """Run Python as a user without a home, nor any variables but those that are said."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *READS]
    own = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*become, sys.executable, *program],
        env={**own, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def machine():
    """A folder that all users can read, with one that all can write to, as /tmp."""
    if run(VICTIM, "-c", "import mlx.core").returncode:
        pytest.skip("other users cannot run this Python")
    folder = Path(tempfile.mkdtemp(prefix="users-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def plant(folder, source):
    """Put a library in place of each in `folder`, as their owner."""
    libraries = list(folder.rglob("*.so"))
    assert libraries
    for library in libraries:
        about = library.stat()
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=source, check=True
        )
        os.chown(library, about.st_uid, about.st_gid)


def test_without_a_home_loops_of_others_are_not_taken(machine):
    environment = {"TMPDIR": str(machine / "tmp")}
    done = run(OTHER, "-c", PLAIN, **environment)
    assert done.returncode == 0, done.stderr
    plant(machine / "tmp", PLANTED.encode())
    assert "planted" in run(VICTIM, "-c", PLAIN, **environment).stdout
    before = set((machine / "tmp").iterdir())
    for home in ({}, {"HOME": "/root"}):
        done = run(VICTIM, "-c", OURS, **environment, **home)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.count("\n") == 1
        assert "XDG_CACHE_HOME" in done.stderr
        assert set((machine / "tmp").iterdir()) == before


def test_a_cache_in_a_folder_that_others_can_change_is_not_used(machine):
    """Whoever can write to a parent moves the folder away and puts another in its place."""
    parent = machine / "caches"
    parent.mkdir(mode=0o755)
    os.chown(parent, VICTIM, VICTIM)
    environment = {"TMPDIR": str(machine / "tmp"), "XDG_CACHE_HOME": str(parent / "mine")}
    done = run(VICTIM, "-c", OURS, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((machine / "tmp").iterdir()) == []
    plant(parent, PLANTED.encode())
    for owner, mode in ((0, 0o777), (OTHER, 0o755)):
        os.chown(parent, owner, owner)
        parent.chmod(mode)
        done = run(VICTIM, "-c", OURS, **environment)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.count("\n") == 1
        assert str(parent) in done.stderr
        assert list((machine / "tmp").iterdir()) == []


def test_files_of_others_in_the_users_own_folder_are_made_anew(machine):
    """As they may be where it once was open."""
    environment = {"TMPDIR": str(machine / "tmp"), "XDG_CACHE_HOME": str(machine / "mine")}
    (machine / "mine").mkdir(mode=0o755)
    os.chown(machine / "mine", VICTIM, VICTIM)
    run(VICTIM, "-c", OURS, **environment)
    plant(machine / "mine", PLANTED.encode())
    for library in (machine / "mine").rglob("*.so"):
        os.chown(library, OTHER, OTHER)
    done = run(VICTIM, "-c", OURS, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_says_so_and_works(machine):
    done = run(VICTIM, "-m", "flowmlx.command.cli", "info", TMPDIR=str(machine / "tmp"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"{machine}/tmp/flowmlx-" in done.stdout
    assert "XDG_CACHE_HOME" in done.stdout
    assert list((machine / "tmp").iterdir()) == []

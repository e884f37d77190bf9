"""The folder of what this package compiles, which nobody else can write to.

Whoever can write to a folder on the way to a library chooses what the next process runs. So each of
them must belong to the user or to root and be closed to all others, as ssh asks for its keys. Where
one does not, where there is no home, or a shell would act on the name, what is compiled goes to a
temporary folder that ends with the process, and the log of `flowmlx` says why, once.
"""

import atexit
import contextlib
import grp
import logging
import os
import pwd
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from flowmlx.native import elf

REMEDY = "set XDG_CACHE_HOME to a folder that only you can write to"
# Compilers, MLX's among them, are given paths in commands of a shell.
SPECIAL = re.compile(r"[^\w@%+=:,./-]")
UNFINISHED = "new-"  # begins the names of what may never be finished
SECONDS_KEPT = 24 * 3600


class Root(NamedTuple):
    """The folder, None where there is none, and why it is not in the user's cache, "" if it is."""

    folder: Path | None
    note: str


@lru_cache
def root() -> Root:
    """Where everything compiled is kept, chosen once for the process. Never raises."""
    try:
        return Root(_checked(_wanted()), "")
    except OSError as error:
        reason = _said(error)
    folder = _temporary()
    if folder is None:
        note = f"{reason}, nor is a temporary folder safe, so nothing is compiled: {REMEDY}"
    else:
        note = f"{reason}, so each process compiles anew, in {folder}: {REMEDY}"
    warn(note)
    return Root(folder, note)


def folder(name: str) -> Path | None:
    """The folder `name` in the root, made if need be; None where it cannot be used."""
    parent = root().folder
    return _part(parent / name) if parent else None


@lru_cache
def _part(path: Path) -> Path | None:
    try:
        path = _checked(path)
        path.chmod(0o700)  # whatever a umask lets into it
    except OSError as error:
        warn(f"{_said(error)}, so nothing is compiled there: remove {path}, or {REMEDY}")
        return None
    clear(path.glob(f"{UNFINISHED}*"))
    return path


def clear(paths: Iterable[Path]) -> None:
    """Remove what processes that were killed have left half made, a day later."""
    for path in paths:
        with contextlib.suppress(OSError):  # another process does the same
            if time.time() - path.stat().st_mtime > SECONDS_KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def usable(path: Path) -> bool:
    """Whether a library can be loaded: whole, the user's, closed to others. Never raises."""
    try:
        about = path.lstat()
        ours = about.st_uid == os.getuid() and not about.st_mode & 0o022
        return stat.S_ISREG(about.st_mode) and ours and elf.whole(path)
    except OSError:
        return False


def weakness(
    chain: Sequence[tuple[str, os.stat_result]], user: int, own_group: int | None = None
) -> str:
    """Who else could replace what lies in the last folder of `chain`; "" where nobody could.

    `chain`: names and states of folders, from the root of the file system on, without links.
    `user`: the uid that will use it; `own_group`: the gid of a group of that user alone. In a
    folder with the sticky bit, as /tmp, others can make files but not replace those of the user,
    which will do on the way but not at its end.
    """
    last = chain[-1][0]
    trusted = {user, 0, chain[0][1].st_uid}  # the owner of / could replace anything, this code too
    for name, about in chain:
        if about.st_uid not in ({user} if name == last else trusted):
            return f"{name} belongs to another user, uid {about.st_uid}"
        sticky = about.st_mode & stat.S_ISVTX and name != last
        shared = 0o002 if about.st_gid == own_group else 0o022
        if about.st_mode & shared and not sticky:
            return f"others can write to {name}"
    return ""


def warn(message: str) -> None:
    """Log one line for people. A warning of Python's could be an error, and fail an import."""
    logging.getLogger("flowmlx").warning("flowmlx: %s", message)


def _own_group() -> int | None:
    """The user's group, where nobody else is in it: Linux makes one a user, which may write.

    Its name is the user's, as in the ssh of Debian. That of root is not one: containers put users
    of any number into it.
    """
    try:
        user = pwd.getpwuid(os.getuid())
        group = grp.getgrgid(user.pw_gid)
    except KeyError:
        return None
    alone = group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    return group.gr_gid if alone and user.pw_uid else None


def _wanted() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # others are to be ignored, says the specification
        return given / "flowmlx"
    try:
        return Path.home() / ".cache" / "flowmlx"
    except RuntimeError:
        raise FileNotFoundError("there is no home folder") from None


def _checked(path: Path) -> Path:
    """Make the folder if need be, and return it without links. Raises OSError if it will not do."""
    _check_name(path)
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    path = path.resolve(strict=True)
    _check_name(path)
    chain = [(str(each), each.stat()) for each in (*reversed(path.parents), path)]
    if reason := weakness(chain, os.getuid(), _own_group()):
        raise PermissionError(reason)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} is read-only")
    if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise PermissionError(f"nothing in {path} can be executed (it is mounted noexec)")
    return path


def _check_name(path: Path) -> None:
    if found := SPECIAL.search(str(path)):
        raise PermissionError(f"a shell could act on the {found[0]!r} in {str(path)!r}")


def _temporary() -> Path | None:
    """A new folder that is removed when the process ends; None where none is safe."""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        try:
            _check_name(Path(parent))
            made = Path(tempfile.mkdtemp(prefix="flowmlx-", dir=parent))
        except OSError:
            continue
        atexit.register(_remove, made, os.getpid())
        try:
            return _checked(made)
        except OSError:
            _remove(made, os.getpid())
    return None


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not a copy of the process that has made it
        shutil.rmtree(path, ignore_errors=True)


def _said(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.strerror else str(error)

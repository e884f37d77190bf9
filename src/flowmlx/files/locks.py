"""Locks on files. The system ends them with their process, so that a crash leaves none behind."""

import contextlib
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

NAME = ".lock"


def take(handle: int) -> bool:
    """Lock the open file `handle` for this process; False where another one has it.

    Raises OSError where the file system has no locks, as that of some networks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def names(handle: int, path: Path) -> bool:
    """Whether `path` still is the open file `handle`: another process may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the one process that writes to `folder`. Raises ValueError where another one is.

    On a file system without locks there is a warning, and no protection.
    """
    path = folder / NAME
    handle = _open(path)
    try:
        with contextlib.suppress(OSError):  # on a full disk: it is for people to read
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock ends, or it might be another's
        os.close(handle)


def _open(path: Path) -> int:
    """Open the file of a lock, and lock it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            taken = take(handle)
        except OSError as error:
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): see to it that no other process "
                f"writes to {path.parent}",
                stacklevel=4,
            )
            return handle
        if not taken:
            holder = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise ValueError(
                f"{holder} is writing to {path.parent}; wait for its end, or stop it first"
            )
        if names(handle, path):
            return handle
        os.close(handle)  # the process before removed it just now

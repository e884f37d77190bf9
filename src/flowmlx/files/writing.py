"""Writing files whole or not at all: a temporary name beside them, flushed to disk, then renamed.

Temporary names start with `PREFIX`. Their writers hold a lock on them, so that those of a process
that was killed are told from others, and removed.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flowmlx.files import locks

PREFIX = ".writing-"
# What file systems answer that cannot flush a folder, or do not let this user open it.
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    After an error, or Ctrl-C, `path` is as it was and nothing is left behind; what a killed process
    has left of `path` is removed. The temporary path keeps the suffix, from which libraries choose
    a format. Raises OSError with the name of `path`, as for a full disk.
    """
    path = Path(path)
    start = f"{PREFIX}{path.stem[:40]}-"  # no longer than file systems allow
    remove_stale(path.parent, start, path.suffix)
    with naming(path, path.parent / start):
        _check_place(path)  # before the work, not after it
        handle, temporary = _temporary(path.parent, start, path.suffix)
        try:
            yield temporary
            temporary.chmod(0o666 & ~umask())  # mkstemp makes private files
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)
        flush_folder(path.parent)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` whole or not at all."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors of writing to what begins with `temporary` name `path`, which the user knows."""
    try:
        yield
    except OSError as error:
        of_another = error.filename is not None and not str(error.filename).startswith(
            str(temporary)
        )
        if of_another or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def remove_stale(folder: Path, start: str = PREFIX, suffix: str = "") -> None:
    """Remove temporary files in `folder` whose process was killed, by start and end of their name.

    They stay where the file system has no locks, or does not let this user remove them.
    """
    try:
        with os.scandir(folder) as entries:
            found = [e.path for e in entries if e.name.startswith(start) and e.is_file()]
    except OSError:  # said by who writes there
        return
    for path in found:
        if path.endswith(suffix):
            with contextlib.suppress(OSError), _opened(path) as handle:
                if locks.take(handle):
                    os.unlink(path)


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with _opened(path) as handle:
        os.fsync(handle)


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can say so."""
    try:
        flush(path)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_place(path: Path) -> None:
    """Refuse a name that no file can take. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            raise OSError(errno.EISDIR, None)


def _temporary(folder: Path, start: str, suffix: str) -> tuple[int, Path]:
    """Make a temporary file and lock it."""
    while True:
        try:
            handle, name = tempfile.mkstemp(suffix, start, folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror) from None  # with no name but the path's
        taken = True
        with contextlib.suppress(OSError):  # no locks here
            taken = locks.take(handle)
        if taken and locks.names(handle, Path(name)):
            return handle, Path(name)
        os.close(handle)  # another process took it for stale before it was locked


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield handle
    finally:
        os.close(handle)

"""A process of the command that is asked to end: by signals, or by a terminal that goes."""

import contextlib
import errno
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from flowmlx.experiment.interrupting import catch

# What writing meets where a terminal, or the reader of a pipe, has gone.
_GONE = {errno.EIO, errno.EPIPE}


class Heedless:
    """A stream of text to which writing is no error when nobody reads it any more."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or nothing."""
        with _gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, or nothing."""
        with _gone():
            self._stream.flush()


def outlive_terminal() -> None:
    """Let this process go on, to save what it has, when its terminal or a pipe goes."""
    if sys.stdout is not None:  # None where the caller has closed it
        sys.stdout = Heedless(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = Heedless(sys.stderr)


def unwind() -> None:
    """Let SIGTERM and SIGHUP interrupt this process as Ctrl-C does, so that it leaves no half."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    catch((signal.SIGTERM, signal.SIGHUP), interrupt)


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise

"""A process that is asked to stop: by SIGINT (Ctrl-C), SIGTERM, or SIGHUP of a terminal that goes.

In a group of ranks only Ctrl-C is caught: launchers send SIGTERM when a rank has failed, for which
the others would wait for ever.
"""

import contextlib
import errno
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from flowmlx.training.ranks import Group

Handler = Callable[[int, FrameType | None], None]
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

    _catch((signal.SIGTERM, signal.SIGHUP), interrupt)


@contextlib.contextmanager
def interruptible(group: Group | None) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal has asked to stop.

    A second Ctrl-C interrupts at once. The other signals do not: a terminal may send its SIGHUP
    twice, and a service manager one after its SIGTERM.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked = True
            print("\nstopping after this step; Ctrl-C once more to quit at once", file=sys.stderr)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = _catch(numbers if group is None else numbers[:1], ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _catch(numbers: tuple[signal.Signals, ...], handler: Handler) -> dict:
    """Set the handler of signals; return those before. SIGHUP stays ignored, as nohup wants it."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    return {n: signal.signal(n, handler) for n in numbers if n not in ignored}


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise

"""Signals that ask a process to stop: SIGINT (Ctrl-C), SIGTERM, SIGHUP of a terminal that goes.

In a group of ranks only Ctrl-C is caught: launchers send SIGTERM when a rank has failed, for which
the others would wait for ever.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from flowmlx.ranks import Group

Handler = Callable[[int, FrameType | None], None]


def unwind() -> None:
    """Let SIGTERM and SIGHUP interrupt this process as Ctrl-C does, so that it leaves no half."""
    terminals = _terminals()

    def interrupt(number: int, frame: FrameType | None) -> None:
        _leave(terminals, number)
        raise KeyboardInterrupt

    _catch((signal.SIGTERM, signal.SIGHUP), interrupt)


@contextlib.contextmanager
def interruptible(group: Group | None) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal has asked to stop.

    A second Ctrl-C interrupts at once. The other signals do not: a terminal may send its SIGHUP
    twice, and a service manager one after its SIGTERM.
    """
    asked = False
    terminals = _terminals()

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        _leave(terminals, number)
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


def _terminals() -> list[int]:
    return [output for output in (1, 2) if os.isatty(output)]


def _leave(terminals: list[int], number: int) -> None:
    """After SIGHUP, write to nowhere in place of the terminal, which has become an error."""
    if number == signal.SIGHUP and terminals:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in terminals:
            os.dup2(nowhere, output)
        os.close(nowhere)

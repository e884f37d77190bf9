"""A training that is asked to stop by a signal: it ends after its step, and can be saved."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def interruptible(signals: Sequence[signal.Signals]) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether one of `signals` has asked to stop.

    A second Ctrl-C interrupts at once. The other signals do not: a terminal may send its SIGHUP
    twice, and a service manager one after its SIGTERM. Outside of the main thread, which alone gets
    signals, nothing asks.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked = True
            print("\nstopping after this step; Ctrl-C once more to quit at once", file=sys.stderr)

    main = threading.current_thread() is threading.main_thread()
    before = catch(signals, ask) if main else {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def catch(numbers: Sequence[signal.Signals], handler: Handler) -> dict:
    """Set the handler of signals; return those before. SIGHUP stays ignored, as nohup wants it."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    return {n: signal.signal(n, handler) for n in numbers if n not in ignored}

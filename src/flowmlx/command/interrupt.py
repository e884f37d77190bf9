"""Ctrl-C while the command loads its modules, which takes a second: a line, not a traceback."""

import signal
import sys

INTERRUPTED = 130  # the status that shells give a program ended by Ctrl-C


def while_loading() -> None:
    """Let Ctrl-C end the process until `loaded` is called. Where it is ignored it still is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def loaded() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(number, frame) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("\nflowmlx: interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)

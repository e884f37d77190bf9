"""Progress bars of the command: of now on a terminal, a line now and then in a file."""

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

# Seconds between two states of a bar, on a terminal and in a file.
TERMINAL, FILE = 0.2, 30


def bar(**options: Any) -> tqdm:
    """Make a bar on standard error; `options`: those of tqdm, such as total, desc and unit."""
    on_terminal = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    seconds = TERMINAL if on_terminal else FILE
    return tqdm(
        file=None if on_terminal else _Lines(sys.stderr),
        mininterval=seconds,
        maxinterval=max(seconds, 10),  # after which it would be shown all the same
        **options,
    )


def begin(bar: tqdm) -> None:
    """Count time from here on: what came before, such as compiling, says nothing of the rate."""
    bar.unpause()


class _Lines:
    """A stream for tqdm that makes a line of each state of a bar."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        state = text.strip()  # carriage returns, and blanks over what was there
        if state:
            self.stream.write(f"{state}\n")

    def flush(self) -> None:
        self.stream.flush()

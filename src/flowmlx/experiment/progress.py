"""Progress bars of the command: of now on a terminal, a line now and then in a file."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

from flowmlx.experiment.options import Train
from flowmlx.training import Report

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


@contextlib.contextmanager
def drawing(what: str) -> Iterator[Callable[[int], object]]:
    """Count points that are drawn for `what` on a bar of their own."""
    with bar(desc=what, unit=" draws", unit_scale=True) as drawn:
        yield drawn.update


class TrainingBar:
    """The bar of a training, and what it takes apart from compiling.

    MLX compiles a step when it is first taken; the rate and the time left are counted from there.
    """

    def __init__(self, options: Train, first: int):
        self._first, self._start, self._compiled = first, time.perf_counter(), None
        self._bar = bar(
            total=options.training.steps,
            initial=first,
            desc="training",
            unit="step",
            postfix="compiling",
        )

    def step(self, step: int) -> bool:
        """Count a step, and say to go on."""
        if self._compiled is None:
            self._compiled = time.perf_counter()
            self._bar.unpause()
            self._bar.set_postfix_str("", refresh=False)
        self._bar.update()
        return False

    def show(self, report: Report) -> None:
        """Show the loss of a report."""
        losses = {"loss": f"{report.loss:.4f}"}
        if report.test_loss is not None:
            losses["test"] = f"{report.test_loss:.4f}"
        self._bar.set_postfix(losses, refresh=False)

    def timings(self) -> dict[str, float]:
        """Steps that were taken, and seconds of training and of compiling; of no steps nothing."""
        if self._compiled is None:
            return {}
        return {
            "trained_steps": self._bar.n - self._first,
            "training_seconds": self._end - self._compiled,
            "compile_seconds": self._compiled - self._start,
        }

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._end = time.perf_counter()
        self._bar.close()


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

"""The folder of a new run."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shlex import quote

from flowmlx.experiment.folder import Run, is_empty
from flowmlx.experiment.options import Train, to_yaml
from flowmlx.experiment.rules import Resolved
from flowmlx.files.writing import write_text
from flowmlx.spaces.ends import is_file


def make_folder(options: Train) -> Run:
    """Make the folder of a new run. Raises ValueError as `check_free` does."""
    if options.out is None:
        return Run(_new_folder(Path("runs"), default_name(options)))
    return new_run(options.out)


def new_run(folder: str | Path) -> Run:
    """Make a folder for a run. Raises ValueError as `check_free` does."""
    check_free(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Run(Path(folder))


def check_free(folder: str | Path | None) -> None:
    """Refuse a folder for a new run that has something in it, or a file. Raises ValueError."""
    if folder is None or is_empty(Path(folder)):
        return
    run = Run(Path(folder))
    other = f", or go on with: {go_on(run)}" if os.path.lexists(run.config) else ""
    raise ValueError(f"--out {folder} is there already; choose another name{other}")


def default_name(options: Train) -> str:
    """Name a run after its source, target and method."""
    ends = [Path(name).stem for name in (Resolved(options).source_name, options.data.target)]
    return "-".join([*ends, options.flow.method])


def _new_folder(parent: Path, name: str) -> Path:
    """Make `parent`/`name`, or the first of `name`-2, `name`-3, ... that is free."""
    parent.mkdir(parents=True, exist_ok=True)
    k = 1
    while True:
        folder = parent / (name if k == 1 else f"{name}-{k}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            k += 1


@contextlib.contextmanager
def all_or_nothing(run: Run) -> Iterator[None]:
    """Write what makes a folder a run, and free it again where that fails, as on a full disk."""
    try:
        yield
    except BaseException:
        for path in (run.potential, run.source, run.data, run.config):
            path.unlink(missing_ok=True)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        raise


def write_options(run: Run, options: Train) -> None:
    """Write the options of a run, with data files as absolute paths."""
    write_text(run.config, to_yaml(absolute(options)))


def absolute(options: Train) -> Train:
    """Name the data files by absolute paths, which hold wherever a run is opened."""
    data = options.data
    ends = {
        name: _absolute(value) if value != "auto" and is_file(value) else value
        for name, value in (("source", data.source), ("target", data.target))
    }
    run = data.reflow and _absolute(data.reflow)
    return replace(options, data=replace(data, **ends, reflow=run))


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().resolve())


def go_on(run: Run) -> str:
    """The command that goes on with a run, as a shell takes it."""
    return f"flowmlx train --resume {quote(str(run.folder))}"

"""Options that come before those that are given: of a run to resume, of a file, of a reflow."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from flowmlx.experiment.folder import Run, open_run
from flowmlx.experiment.options import file_options, read_config, run_options
from flowmlx.experiment.rules import Resolved


def inherited_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that those `given` for training override, by name.

    They are of the run to resume, of a file of options, and of the run whose pairs are trained on.
    """
    named = {} if given.get("config") is None else file_options(given["config"])
    if given.get("resume") is not None:  # whose reflow, if any, is given for its place alone
        return run_options(read_config(open_run(given["resume"]).config)) | named
    if given.get("reflow") is not None:
        return named | _of_reflow(given["reflow"])
    if named.get("reflow") is not None:  # which may itself say what the data is
        return _of_reflow(named["reflow"]) | named
    return named


def _of_reflow(folder: str) -> dict[str, Any]:
    """Options of a run on the pairs of another, by name: its data, and the linear path."""
    options = read_config(reflow_run(folder).config)
    data = replace(options.data, source=Resolved(options).source_name, reflow=None)
    if data.time_column is not None:
        raise ValueError(f"{folder} goes through snapshots; --reflow takes one source and target")
    given = {name: value for name, value in asdict(data).items() if value is not None}
    return {**given, "seed": options.run.seed, "method": "cfm"}


def reflow_run(folder: str) -> Run:
    """The run to take pairs of. Raises ValueError where there is none."""
    try:
        return open_run(folder)
    except ValueError as error:
        raise ValueError(f"--reflow: {error}; if it was moved, give its place now") from None

"""The flow of a run, read from its folder."""

from pathlib import Path

from flowmlx.experiment import resolve
from flowmlx.experiment.flow import Flow
from flowmlx.experiment.folder import Run, open_run, read_about, read_source
from flowmlx.experiment.options import Train, read_config
from flowmlx.experiment.own import NO_OWN, Own, check_no_other, check_there, only_in_training
from flowmlx.experiment.rules import check
from flowmlx.kinds import KINDS
from flowmlx.spaces.ends import source_of_rows
from flowmlx.spaces.space import Space
from flowmlx.training import checkpoint


def load(folder: str | Path, *, step: int | None = None, own: Own = NO_OWN) -> Flow:
    """Read the flow of a run: the averaged weights of the checkpoint `step`, None for the newest.

    `own`: objects that the run was trained with, as far as they are needed to sample. Raises
    ValueError where one is missing, a file is damaged, or there is no such checkpoint.
    """
    run = open_run(folder)
    options, about = read_config(run.config), read_about(run)
    rows = read_source(run, about.space.dim)
    _check_together(run, options, about.space)
    needed = {"net", "path"} if rows is not None else {"net", "path", "source"}
    check_there(run.folder, about.own, needed, own, f"flowmlx.load({str(run.folder)!r}")
    check_no_other(run.folder, about.own, own)
    kept = {"coupling", "loss"} & set(about.own)
    own = own._replace(**dict.fromkeys(kept, only_in_training))
    resolved = check(options, own)
    net = resolve.network(resolved, about.space)
    step = checkpoint.load_ema(run.checkpoints, net, step=step)
    if rows is not None:
        source = source_of_rows(rows, about.fingerprint)
    else:
        source = KINDS[about.space.kind].source(resolve.request(resolved), about.space)
    dynamics = resolve.dynamics(resolved, about.space)
    return Flow(net, about.space, source, dynamics, options, own, step)


def _check_together(run: Run, options: Train, space: Space) -> None:
    """Refuse files of a run that are not of one training."""
    for name, found in (
        ("time_column", space.kind == "snapshots"),
        ("condition", space.conditioning.size is not None),
    ):
        if (getattr(options.data, name) is not None) != found:
            raise ValueError(f"{run.data} does not go with {name} of {run.config}; restore copies")

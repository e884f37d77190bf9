"""One training, resolved: everything that `fit` needs, as objects."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx

from flowmlx.experiment import new, resolve, runs
from flowmlx.experiment.dynamics import Dynamics
from flowmlx.experiment.flow import Flow
from flowmlx.experiment.folder import Run, only_writer, open_run
from flowmlx.experiment.limits import check_memory
from flowmlx.experiment.options import Train
from flowmlx.experiment.pairing import Pairing, Progress, pairing, quiet
from flowmlx.experiment.rules import Resolved
from flowmlx.spaces.kind import Data
from flowmlx.training import Report, TrainState, fit, ranks

Group = mx.distributed.Group


@dataclass(frozen=True, eq=False)
class Experiment:
    """A training whose names have been looked up and whose data has been read.

    `dynamics`: what the network is to say; `loss` takes the batches of `pairing`; `state` is that
    before the first step.
    """

    resolved: Resolved
    data: Data
    dynamics: Dynamics
    loss: Callable
    pairing: Pairing
    state: TrainState

    @property
    def options(self) -> Train:
        """The options, as they were given."""
        return self.resolved.command

    def fit(
        self,
        callbacks: Iterable[Callable[[Report], None]] = (),
        stop: Callable[[int], bool] = lambda step: False,
        group: Group | None = None,
    ) -> TrainState:
        """Train to the steps of the options; see `training.fit`."""
        training = self.options.training
        return fit(
            self.state,
            ranks.share(self.pairing.batches, group),
            loss=self.loss,
            steps=training.steps,
            key=mx.random.key(self.options.run.seed),
            ema_decay=training.ema_decay,
            clip_norm=training.clip_norm,
            log_every=training.log_every,
            callbacks=callbacks,
            stop=stop,
            test_batches=self.pairing.test,
            patience=training.patience,
            group=group,
        )

    @property
    def ended(self) -> bool:
        """Whether training has come to its end: all steps are done, or patience was lost."""
        stopping, patience = self.state.early_stopping, self.options.training.patience
        lost = stopping is not None and patience is not None and stopping.waited >= patience
        return lost or self.state.step >= self.options.training.steps

    def flow(self) -> Flow:
        """The flow of the averaged weights as they are now."""
        space, source, resolved = self.data.space, self.data.source, self.resolved
        net, own = self.state.averaged(), resolved.own.to_sample_with()
        return Flow(net, space, source, self.dynamics, resolved.command, own, self.state.step)


def prepare(
    resolved: Resolved, *, before: Run | None = None, processes: int = 1, progress: Progress = quiet
) -> Experiment:
    """Look up the names of options that `rules.check` has found to go together; read the data.

    `before`: the run that is to go on, if any. `processes`: among which a batch is divided.
    `progress`: see `pairing`. Raises ValueError for whatever cannot be trained.
    """
    if before is not None:
        runs.check_own(before, resolved)
    check_memory(resolved.command, 1, processes)  # before as many samples are drawn
    plain = resolve.pair_loss(resolved)
    data = resolve.kind(resolved).read(resolve.request(resolved))
    space = data.space
    check_memory(resolved.command, space.dim, processes)
    if before is not None:
        runs.check_same(before, resolved.command, data)
    loss = space.conditioning.loss(data.loss(plain), resolved.condition_dropout)
    state = resolve.training_state(resolved, space)
    pairs = pairing(resolved, data, before, progress)
    return Experiment(resolved, data, resolve.dynamics(resolved, space), loss, pairs, state)


def begin(
    resolved: Resolved,
    held: contextlib.ExitStack,
    *,
    folder: Callable[[Train], Run | None],
    processes: int = 1,
    progress: Progress = quiet,
) -> tuple[Experiment, Run | None]:
    """Prepare an experiment, and the folder that it is recorded in, which `held` keeps for it.

    The folder is that of the run to resume, or what `folder(options)` makes when all else is ready,
    None for none. Raises ValueError as `prepare`, for a folder that is taken, and where another
    process trains in it.
    """
    options, known = resolved.command, {"processes": processes, "progress": progress}
    if options.resume:
        run = open_run(options.resume)
        held.enter_context(only_writer(run))
        experiment = prepare(resolved, before=run, **known)
        runs.resume(run, options, experiment.state)
        return experiment, run
    new.check_free(options.out)
    experiment = prepare(resolved, **known)
    run = folder(options)
    if run is not None:
        held.enter_context(only_writer(run))
        runs.create(run, experiment.data, experiment.pairing, resolved)
    return experiment, run

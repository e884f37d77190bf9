"""One training, resolved: everything that `fit` needs, as objects."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx

from flowmlx.experiment import new, resolve, runs
from flowmlx.experiment.flow import Flow
from flowmlx.experiment.folder import Run, only_writer, open_run
from flowmlx.experiment.limits import check_memory
from flowmlx.experiment.options import Train
from flowmlx.experiment.own import NO_OWN, Own
from flowmlx.experiment.pairing import Pairing, Progress, pairing, quiet
from flowmlx.experiment.rules import check
from flowmlx.spaces.kind import Data
from flowmlx.training import Report, TrainState, fit, ranks

Group = mx.distributed.Group


@dataclass(frozen=True, eq=False)
class Experiment:
    """A training whose names have been looked up and whose data has been read.

    `loss` takes the batches of `pairing`; `state` is that before the first step.
    """

    options: Train
    own: Own
    data: Data
    loss: Callable
    pairing: Pairing
    state: TrainState

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
        space, options, own = self.data.space, self.options, self.own.to_sample_with()
        dynamics = resolve.dynamics(options, space, own)
        net = self.state.averaged()
        return Flow(net, space, self.data.source, dynamics, options, own, self.state.step)


def prepare(
    options: Train,
    own: Own = NO_OWN,
    *,
    before: Run | None = None,
    processes: int = 1,
    progress: Progress = quiet,
) -> Experiment:
    """Check options, look up their names, and read the data.

    `before`: the run that is to go on, if any. `processes`: among which a batch is divided.
    `progress`: see `pairing`. Raises ValueError for whatever cannot be trained.
    """
    check(options, own)
    if before is not None:
        runs.check_own(before, options, own)
    check_memory(options, 1, processes)  # before as many samples are drawn
    plain = resolve.pair_loss(options, own)
    data = resolve.kind(options, own).read(resolve.request(options, own))
    check_memory(options, data.space.dim, processes)
    if before is not None:
        runs.check_same(before, options, data)
    loss = data.space.conditioning.loss(data.loss(plain), options.flow.condition_dropout)
    state = resolve.training_state(options, data.space, own)
    pairs = pairing(options, data, own, before, progress)
    return Experiment(options, own, data, loss, pairs, state)


def begin(
    options: Train,
    held: contextlib.ExitStack,
    own: Own = NO_OWN,
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
    known = {"processes": processes, "progress": progress}
    if options.resume:
        run = open_run(options.resume)
        held.enter_context(only_writer(run))
        experiment = prepare(options, own, before=run, **known)
        runs.resume(run, options, experiment.state)
        return experiment, run
    new.check_free(options.out)
    experiment = prepare(options, own, **known)
    run = folder(options)
    if run is not None:
        held.enter_context(only_writer(run))
        runs.create(run, options, experiment.data, experiment.pairing, own)
    return experiment, run

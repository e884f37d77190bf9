"""Where training batches come from, and what a run keeps of that to go on with.

Pairs are drawn by a coupling, or by one that is fitted to all rows before training, or are those of
a trained run (reflow).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from flowmlx.couplings import Coupling
from flowmlx.couplings.semidiscrete import (
    FITTED_COUPLINGS,
    Semidiscrete,
    fit_semidiscrete,
)
from flowmlx.data import streams
from flowmlx.experiment import resolve
from flowmlx.experiment.dynamics import noiseless
from flowmlx.experiment.folder import Run, check_data, read_about, read_potential
from flowmlx.experiment.inherited import reflow_run
from flowmlx.experiment.loading import load
from flowmlx.experiment.rules import Resolved
from flowmlx.files.fingerprints import fingerprint
from flowmlx.keys import fold_in
from flowmlx.sampling import reflow_pairs
from flowmlx.solvers import Solution
from flowmlx.solvers.arrays import as_numpy
from flowmlx.spaces.kind import Data
from flowmlx.training import paired_batches
from flowmlx.training.batches import Batch
from flowmlx.transport.entropic import NotConverged

# Pairs for reflow, where their number is not given.
PAIRS = 50_000
# Held-out rows, at most, whose loss is reported.
TEST_ROWS = 2048
Progress = Callable[[str], contextlib.AbstractContextManager[Callable[[int], object]]]


def quiet(what: str) -> contextlib.AbstractContextManager[Callable[[int], object]]:
    """Show nothing."""
    return contextlib.nullcontext(lambda draws: None)


class Pairing(NamedTuple):
    """Training batches, and what a run keeps of them.

    `batches(step)` gives the batch of a step; `test`: batches of held-out rows, None for pairs that
    these have none of. `pairs`: a digest of the pairs of a reflow, which are
    to be the same when the run goes on; `potential`: of a coupling that was fitted.
    """

    batches: Callable[[int], Any]
    test: Sequence[Batch] | None = None
    pairs: str | None = None
    potential: Semidiscrete | None = None


def pairing(
    resolved: Resolved, data: Data, before: Run | None = None, progress: Progress = quiet
) -> Pairing:
    """The pairing that the options ask for; `before`: the run that is to go on, if any.

    `progress(what)` is entered while a coupling is fitted, and gives a function to call with the
    number of points that were drawn. Raises ValueError for a run to reflow that has other data, or
    has changed, a potential that cannot be read, and a source that cannot reach the rows equally
    often.
    """
    if resolved.reflow is not None:
        return _reflowed(resolved, data, before)
    if resolved.own.coupling is None and resolved.named.coupling in FITTED_COUPLINGS:
        return _fitted(resolved, data, before, progress)
    coupling, size = resolve.coupling(resolved, data.space), resolved.batch_size
    batches = data.batches(coupling, size, key=_key(resolved, "data"), block=resolved.plan_steps)
    return Pairing(batches, _test_batches(resolved, data, coupling))


def _test_batches(resolved: Resolved, data: Data, coupling: Coupling) -> list[Batch] | None:
    """Held-out rows, TEST_ROWS at most, paired as the training rows are."""
    rows = min(len(data.test.points), TEST_ROWS)
    size = min(rows, resolved.batch_size)
    test = data.test_batches(coupling, size, key=_key(resolved, "test"))
    return None if test is None else [test(k) for k in range(rows // size)]


def _key(resolved: Resolved, name: str) -> mx.array:
    return fold_in(mx.random.key(resolved.seed), name)


def _reflowed(resolved: Resolved, data: Data, before: Run | None) -> Pairing:
    """Source points, where a trained flow carries them, and their conditions."""
    folder, key = resolved.reflow, _key(resolved, "pairs")
    check_data(reflow_run(folder), data)
    first = load(folder)
    count = resolved.reflow_pairs or PAIRS
    x0 = data.source.start(count, key=key)
    rows = data.train  # whose conditions come each as often as the others
    order = as_numpy(mx.random.permutation(count, key=fold_in(key, "rows"))) % len(rows.points)
    cond = None if rows.cond is None else rows.cond[order]

    def solve(field: Callable, x0: mx.array) -> Solution:
        return first.dynamics.solve(field, x0, noiseless(first.options.integration), key=key)

    field = first.dynamics.field(first.net)
    x0, x1 = reflow_pairs(field, x0, None if cond is None else mx.array(cond), solve=solve)
    pairs = {"x0": x0, "x1": x1} if cond is None else {"x0": x0, "x1": x1, "cond": cond}
    digest = fingerprint(*pairs.values())
    if before is not None and digest != read_about(before).pairs:
        raise ValueError(
            f"{folder} has changed since {before.folder} was trained on its pairs; start a new run"
        )
    stream, data_key = streams.shuffled(**pairs), _key(resolved, "data")
    return Pairing(lambda step: stream(resolved.batch_size, step, key=data_key), pairs=digest)


def _fitted(resolved: Resolved, data: Data, before: Run | None, progress: Progress) -> Pairing:
    """A coupling that is fitted to all rows, or was when the run was begun."""
    name, rows = resolved.named.coupling, data.train
    potential = read_potential(before) if before else _fit(resolved, data, name, progress)
    batches = paired_batches(
        data.source.stream,
        rows.stream(streams.whole),  # it chooses among all
        resolved.batch_size,
        key=_key(resolved, "data"),
        coupling=FITTED_COUPLINGS[name](potential, rows.points, rows.cond),
    )
    return Pairing(batches, potential=potential)


def _fit(resolved: Resolved, data: Data, name: str, progress: Progress) -> Semidiscrete:
    rows, space = data.train, data.space
    conditions = space.conditioning.transport(rows.cond, resolved.condition_cost, space.dim)
    try:
        with progress(f"fitting the coupling to {len(rows.points):,} rows") as drawn:

            def draw(n: int, *, key: mx.array) -> mx.array:
                drawn(n)
                return data.source.start(n, key=key)

            return fit_semidiscrete(
                rows.points, draw, key=_key(resolved, "potential"), **conditions
            )
    except NotConverged as error:
        raise ValueError(
            f"the coupling {name} has not learned to choose all rows equally often from --source "
            f"{resolved.source_name}, as a file of few rows does not allow; take --coupling "
            "exact_ot"
        ) from error

"""Cells computed one by one, and kept in a folder."""

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from flowmlx import metrics
from flowmlx.bridges import TwoHeads, VelocityOf, sample_bridge, score_flow_loss
from flowmlx.command.reproduce.protocol import METHODS, PROBLEMS, Cell, Protocol, cells
from flowmlx.couplings import Coupling
from flowmlx.data import streams
from flowmlx.data.toy import normal
from flowmlx.files import reading
from flowmlx.files.writing import replacing, write_text
from flowmlx.keys import fold_in
from flowmlx.losses import flow_matching_loss
from flowmlx.nets import MLP
from flowmlx.paths import BrownianPath
from flowmlx.sampling import sample
from flowmlx.solvers.arrays import as_numpy
from flowmlx.training import TrainState, fit, paired_batches

# Flow lines and times that are kept of a cell, for the figure.
LINES, LINE_TIMES = 256, 26


def run(
    folder: Path,
    seeds: Sequence[int],
    protocol: Protocol,
    *,
    step: Callable[[Cell], object] = lambda cell: None,
) -> list[dict[str, Any]]:
    """Compute the cells that `folder` does not hold yet; return all, in order.

    `step` is called with the cell after each training step. Raises ValueError where the folder
    holds cells of another protocol or something else, or is a file.
    """
    before = found(folder, seeds, protocol)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    return [
        compute(folder, cell, protocol, step=step) if result is None else result
        for cell, result in before
    ]


def found(
    folder: Path, seeds: Sequence[int], protocol: Protocol
) -> list[tuple[Cell, dict[str, Any] | None]]:
    """All cells, each with the result that `folder` holds of it. Raises ValueError as `run`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder for the results")
    if folder.exists() and any(folder.iterdir()) and not (folder / "cells").is_dir():
        raise ValueError(f"{folder} holds something else; give a new folder with --out")
    results = [(cell, read(folder, cell)) for cell in cells(seeds)]
    for _, result in results:
        if result is not None and result["protocol"] != protocol._asdict():
            raise ValueError(
                f"{folder} holds results of another size ({result['protocol']}); give another "
                "folder with --out"
            )
    return results


def read(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell, None where it is not there. Raises ValueError where it is damaged."""
    path = folder / "cells" / f"{cell.name}.json"
    if not os.path.lexists(path):
        return None
    with reading.checked(path, "remove it to compute it again"):
        result = reading.json_object(path)
        for name in ("protocol", "seconds", "w2", "npe", "floor", *cell._fields):
            result[name]
        return result


def compute(
    folder: Path, cell: Cell, protocol: Protocol, *, step: Callable[[Cell], object]
) -> dict[str, Any]:
    """Train, sample and measure one cell, and write it."""
    start = time.perf_counter()
    net = train(cell, protocol, step=step)
    method = METHODS[cell.method]
    field = VelocityOf(net) if method.score else net
    x0, x1, _ = new_points(cell.problem, cell.seed, protocol)
    ts = np.linspace(0, 1, 101)
    xs = sample(field, mx.array(x0), ts=ts, method="euler").xs
    velocities = [as_numpy(field(mx.array(t), x)) for t, x in zip(ts.tolist(), xs, strict=True)]
    between, floor = distances(cell.problem, cell.seed, protocol)
    energy = metrics.path_energy(ts, np.stack(velocities))
    result = {
        **cell._asdict(),
        "protocol": protocol._asdict(),
        "w2": metrics.wasserstein(xs[-1], x1),
        "floor": floor,
        "npe": metrics.normalised_path_energy(energy, between),
    }
    if method.score:
        key = fold_in(mx.random.key(cell.seed), "noise")
        noisy = sample_bridge(
            net, mx.array(x0), sigma=method.path.sigma, key=key, step_size=1 / 100
        )
        result["w2_sde"] = metrics.wasserstein(noisy.xs[-1], x1)
    result["seconds"] = time.perf_counter() - start
    kept = np.linspace(0, len(ts) - 1, LINE_TIMES).round().astype(int)
    with replacing(folder / "cells" / f"{cell.name}.npz") as path:
        np.savez(path, xs=as_numpy(xs)[kept, :LINES])
    write_text(folder / "cells" / f"{cell.name}.json", json.dumps(result, indent=1) + "\n")
    return result


def train(cell: Cell, protocol: Protocol, *, step: Callable[[Cell], object]) -> Any:
    """Train the network of a cell: the weights of the last step, not their average."""
    method, key = METHODS[cell.method], mx.random.key(cell.seed)
    net = MLP(
        2,
        out_dim=4 if method.score else 2,
        width=64,
        depth=3,
        activation="selu",
        key=fold_in(key, "weights"),
    )
    model = TwoHeads(net) if method.score else net
    state = TrainState(model, optim.AdamW(1e-3, weight_decay=1e-5, bias_correction=True))
    regress = score_flow_loss(cast(BrownianPath, method.path)) if method.score else "velocity"
    fit(
        state,
        batches(cell.problem, method.coupling, cell.seed, protocol),
        loss=flow_matching_loss(method.path, regress=regress),
        steps=protocol.steps,
        key=key,
        log_every=1_000,
        stop=lambda _: bool(step(cell)),
    )
    return model


@lru_cache(maxsize=1)
def batches(problem: str, coupling: Coupling, seed: int, protocol: Protocol) -> Callable:
    """Training batches, remembered for the next method with the same coupling."""
    key = fold_in(mx.random.key(seed), "training")
    source, target = (
        streams.generated(draw)
        if draw is normal
        else streams.shuffled(as_numpy(draw(protocol.training, key=fold_in(key, "points", k))))
        for k, draw in enumerate(PROBLEMS[problem])
    )
    return lru_cache(maxsize=None)(paired_batches(source, target, 512, key=key, coupling=coupling))


@lru_cache(maxsize=1)
def new_points(
    problem: str, seed: int, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the source, of the target, and of the target once more."""
    key, (source, target) = fold_in(mx.random.key(seed), "test"), PROBLEMS[problem]
    x0, x1, more = (
        as_numpy(draw(protocol.test, key=fold_in(key, k)))
        for k, draw in enumerate((source, target, target))
    )
    return x0, x1, more


@lru_cache(maxsize=1)
def distances(problem: str, seed: int, protocol: Protocol) -> tuple[float, float]:
    """W2 from source to target, and from target to target: the least that a W2 can be."""
    x0, x1, more = new_points(problem, seed, protocol)
    return metrics.wasserstein(x0, x1), metrics.wasserstein(more, x1)

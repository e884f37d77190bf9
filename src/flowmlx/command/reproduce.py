"""The published 2D comparison of flow-matching methods, run again.

Protocol: that of the TorchCFM authors (Tong et al. 2024, arXiv 2302.00482 and 2307.03672): an MLP
of three hidden layers of 64 SELU units, AdamW, batches of 512 of 10,000 training points, 20,000
steps, 100 Euler steps; W2 of 10,000 samples to as many new points, normalised path energy, five
seeds.

A cell is one method on one problem with one seed. It is a file under `cells/`, so that a run that
was stopped goes on where it was, and several processes may share the seeds of one folder.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from flowmlx import metrics
from flowmlx.bridges import TwoHeads, VelocityOf, sample_bridge, score_flow_loss
from flowmlx.couplings import Coupling, exact_ot, independent, schroedinger
from flowmlx.data import streams
from flowmlx.data.toy import eight_gaussians, moons, normal, s_curve
from flowmlx.files import reading
from flowmlx.files.writing import replacing, write_text
from flowmlx.keys import fold_in
from flowmlx.losses import flow_matching_loss
from flowmlx.nets import MLP
from flowmlx.paths import AffinePath, Bridge, BrownianPath, Linear, Target, Trigonometric
from flowmlx.sampling import sample
from flowmlx.solvers.arrays import as_numpy
from flowmlx.training import TrainState, fit, paired_batches

SEEDS = (42, 43, 44, 45, 46)
# Flow lines and times that are kept of a cell, for the figure.
LINES, LINE_TIMES = 256, 26


class Protocol(NamedTuple):
    """How large a run is: training steps, training points, and test points of an end."""

    steps: int
    training: int
    test: int


FULL, QUICK = Protocol(20_000, 10_000, 10_000), Protocol(1_000, 2_000, 1_000)


class Method(NamedTuple):
    """A path, a coupling, and whether a score is trained as well."""

    path: AffinePath
    coupling: Coupling
    score: bool = False


# Neighbours with one coupling see the same pairs, which are then computed once. At sigma = 0.1 the
# entropic plan of a bridge is all but the exact one, so that SB-CFM would be as [SF]2M-exact is:
# its sigma is 1.
METHODS = {
    "I-CFM": Method(Linear(0.1), independent),
    "VP": Method(Trigonometric(0.1), independent),
    "FM": Method(Target(0.1), independent),
    "OT-CFM": Method(Linear(0.1), exact_ot),
    "[SF]2M": Method(Bridge(0.1), exact_ot, score=True),
    "SB-CFM": Method(Bridge(1.0), schroedinger(1.0)),
}


def wide_moons(n: int, *, key: mx.array) -> mx.array:
    """Moons of mean 0 and standard deviation 7 on both axes."""
    std = 0.05
    # Of a point (cos a, sin a) or (1 + cos a, 1/2 + sin a) on either half circle, and the noise.
    means = 0.5, 0.25
    half = 2 / np.pi
    variances = 0.75 + std**2, 0.5 - half**2 + (half - 0.25) ** 2 + std**2
    centred = moons(n, key=key, std=std, scale=1.0, shift=0.0) - mx.array(means)
    return 7 * centred / mx.sqrt(mx.array(variances))


broad_gaussians = partial(eight_gaussians, radius=5.0, std=1.0)


def far_gaussians(n: int, *, key: mx.array) -> mx.array:
    """Eight Gaussians of radius 12 and standard deviation 1.5."""
    return eight_gaussians(n, key=key, radius=12.0, std=1.5)


# name -> generators of source and target
PROBLEMS: dict[str, tuple[Callable[..., mx.array], Callable[..., mx.array]]] = {
    "N->8gaussians": (normal, broad_gaussians),
    "moons->8gaussians": (wide_moons, far_gaussians),
    "8gaussians->moons": (broad_gaussians, moons),
    "N->moons": (normal, moons),
    "N->scurve": (normal, s_curve),
}

# Mean and standard deviation, or the mean alone, from Tong et al. 2024 (arXiv 2307.03672, table 2).
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "w2": {
        "N->8gaussians": {
            "I-CFM": (0.373, 0.103), "FM": (0.343, 0.058), "OT-CFM": (0.303, 0.043),
            "[SF]2M": (0.275, 0.058),
        },
        "moons->8gaussians": {
            "I-CFM": (1.557, 0.407), "OT-CFM": (0.601, 0.027), "[SF]2M": (0.726, 0.137),
        },
        "N->moons": {
            "I-CFM": (0.178, 0.014), "FM": (0.209, 0.055), "OT-CFM": (0.130, 0.016),
            "[SF]2M": (0.124, 0.023),
        },
        "N->scurve": {
            "I-CFM": (0.242, 0.141), "FM": (0.198, 0.037), "OT-CFM": (0.144, 0.028),
            "[SF]2M": (0.128, 0.005),
        },
    },
    "npe": {
        "N->8gaussians": {"I-CFM": (0.202,), "OT-CFM": (0.031,)},
        "moons->8gaussians": {"I-CFM": (2.680,), "OT-CFM": (0.015,)},
        "N->moons": {"I-CFM": (0.891,), "OT-CFM": (0.083,)},
        "N->scurve": {"I-CFM": (0.856,), "OT-CFM": (0.027,)},
    },
}  # fmt: skip


class Cell(NamedTuple):
    """One method on one problem with one seed."""

    problem: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """A file name."""
        letters = (c if c.isalnum() else "-" for c in f"{self.problem}-{self.method}-{self.seed}")
        return "".join(letters).strip("-").replace("--", "-")


def cells(seeds: Iterable[int]) -> Iterator[Cell]:
    """All cells, seed by seed. Methods with a Gaussian source of their own take no other."""
    for seed in seeds:
        for problem, (source, _) in PROBLEMS.items():
            for name, method in METHODS.items():
                if source is normal or not method.path.gaussian_source:
                    yield Cell(problem, name, seed)


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


# The row of samples of the stochastic equation.
NOISY = "[SF]2M, with noise"
MEASURES = {"w2": "W2", "npe": "normalised path energy"}


class Entry(NamedTuple):
    """Mean and standard deviation over seeds of one measure (0 for one seed), and their number."""

    mean: float
    std: float
    seeds: int


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Entry]]]:
    """Measure -> problem -> method -> `Entry`; the floor of W2 is one of its methods."""
    summary: dict[str, dict[str, dict[str, Entry]]] = {measure: {} for measure in MEASURES}
    for problem in PROBLEMS:
        here = [r for r in results if r["problem"] == problem]
        by_method = {m: [r for r in here if r["method"] == m] for m in METHODS}
        for measure, entries in summary.items():
            columns = {m: [r[measure] for r in rs] for m, rs in by_method.items()}
            if measure == "w2":
                columns[NOISY] = [r["w2_sde"] for r in here if "w2_sde" in r]
                columns["floor"] = list({r["seed"]: r["floor"] for r in here}.values())
            entries[problem] = {m: _entry(values) for m, values in columns.items() if values}
    return summary


def _entry(values: Sequence[float]) -> Entry:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Entry(float(np.mean(values)), std, len(values))


def tables(summary: dict[str, dict[str, dict[str, Entry]]]) -> str:
    """Markdown tables of a summary, each number before the published one."""
    parts = []
    for measure, problems in summary.items():
        methods = list(dict.fromkeys(m for entries in problems.values() for m in entries))
        lines = [f"| {MEASURES[measure]} | " + " | ".join(problems) + " |"]
        lines.append("|---" * (1 + len(problems)) + "|")
        for method in methods:
            row = [_both(measure, p, method, entries) for p, entries in problems.items()]
            lines.append(f"| {method} | " + " | ".join(row) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _both(measure: str, problem: str, method: str, entries: dict[str, Entry]) -> str:
    if method not in entries:
        return ""
    mean, std, seeds = entries[method]
    published = PUBLISHED[measure].get(problem, {}).get(method)
    ours = f"{mean:.3f}" if seeds == 1 else f"{mean:.3f} ± {std:.3f}"
    return ours if published is None else f"{ours} ({' ± '.join(f'{x:.3f}' for x in published)})"


def write_summary(folder: Path, results: Sequence[dict[str, Any]]) -> list[Path]:
    """Write summary.json, table.md and figures of results into `folder`; return their paths."""
    from flowmlx import plots

    summary = summarise(results)
    paths = [folder / name for name in ("summary.json", "table.md", "w2.png", "flows.png")]
    about = {
        "protocol": results[0]["protocol"],
        "seeds": sorted({r["seed"] for r in results}),
        "seconds": sum(r["seconds"] for r in results),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    write_text(paths[0], json.dumps({**about, **_plain(summary)}, indent=1) + "\n")
    write_text(paths[1], tables(summary))
    plots.comparison(
        {
            problem: {m: (e.mean, e.std) for m, e in entries.items() if m != "floor"}
            for problem, entries in summary["w2"].items()
        },
        PUBLISHED["w2"],
        {p: entries["floor"].mean for p, entries in summary["w2"].items()},
        paths[2],
    )
    first = min(about["seeds"])
    lines = {(r["method"], r["problem"]): _lines(folder, r) for r in results if r["seed"] == first}
    plots.flow_grid(list(METHODS), list(PROBLEMS), lines, paths[3])
    return paths


def _plain(tree: Any) -> Any:
    """Entries as dicts, for JSON."""
    if isinstance(tree, Entry):
        return tree._asdict()
    return {name: _plain(inner) for name, inner in tree.items()}


def _lines(folder: Path, result: dict[str, Any]) -> np.ndarray:
    cell = Cell(*(result[name] for name in Cell._fields))
    path = folder / "cells" / f"{cell.name}.npz"
    with reading.checked(path, f"remove it and {path.with_suffix('.json')} to compute them again"):
        return reading.arrays_of_numpy(path)["xs"]

"""Results side by side with the published ones: tables, figures and their files."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowmlx.command.reproduce.protocol import METHODS, PROBLEMS, PUBLISHED, Cell
from flowmlx.files import reading
from flowmlx.files.writing import write_text

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

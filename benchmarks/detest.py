"""Accuracy and evaluations of the adaptive methods on DETEST, beside SciPy's; Markdown tables.

Every adaptive method of either library solves the 25 problems of detest_problems.py at rtol = atol
= powers of ten, in float64 on the CPU; those of order 3 stop at a looser tolerance. Errors are of
the state at t = 20, relative where it is above 1, in the largest component. Means over problems are
geometric.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass

import matplotlib as mpl
import mlx.core as mx
import numpy as np
from common import table
from detest_problems import PROBLEMS, SCIPY, error, geometric_mean, reference, solve

from flowmlx.files.writing import replacing, write_text
from flowmlx.solvers import ADAPTIVE, METHODS

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

TOLERANCES = [float(f"1e-{k}") for k in range(2, 12)]
SHOWN_TOLERANCES = [1e-3, 1e-5, 1e-7, 1e-9]
SHOWN_ERRORS = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9]
BASELINE = "DOP853"
# Method -> order, peers side by side.
ORDERS = {name: METHODS[name].order for name in ADAPTIVE} | SCIPY
ORDERS = dict(sorted(ORDERS.items(), key=lambda item: item[1]))


@dataclass(frozen=True)
class Result:
    method: str
    problem: str
    tolerance: float
    error: float
    nfe: int
    done: bool


def tolerances(method):
    return [t for t in TOLERANCES if t >= 1e-8 or ORDERS[method] > 3]


def measure(method, name, tolerance):
    run = solve(PROBLEMS[name], method, tolerance)
    # An error of zero has no logarithm.
    off = max(error(run.x, reference(name)), 1e-17)
    return Result(method, name, tolerance, off, run.nfe, run.done)


def select(results, method, tolerance, letter=""):
    """Results on the problems of a class; none if a solve failed or was not tried."""
    found = [r for r in results if r.method == method and r.tolerance == tolerance]
    found = [r for r in found if r.problem.startswith(letter)]
    return found if all(r.done for r in found) else []


def evaluations_at(results, method, name, off):
    """Evaluations from which on the error of a problem stays below `off`.

    Interpolated between tolerances, in logarithms. NaN if all of them or none are that accurate.
    """
    runs = [r for r in results if (r.method, r.problem, r.done) == (method, name, True)]
    runs.sort(key=lambda r: r.tolerance)
    # The error at a tolerance or at any tighter one: a lucky one does not count.
    errors = np.maximum.accumulate([math.log(r.error) for r in runs])
    nfe = [math.log(r.nfe) for r in runs]
    return math.exp(np.interp(math.log(off), errors, nfe, left=math.nan, right=math.nan))


def by_class(results):
    """Rows of log10(error / tolerance), evaluations, for each class and tolerance."""
    for letter in ("A", "B", "C", "D", "E", ""):
        for tolerance in SHOWN_TOLERANCES:
            row = [letter or "all", f"{tolerance:.0e}"]
            for method in ORDERS:
                runs = select(results, method, tolerance, letter)
                if runs:
                    off = geometric_mean(r.error for r in runs) / tolerance
                    nfe = geometric_mean(r.nfe for r in runs)
                    row.append(f"{math.log10(off):+.1f}, {nfe:,.0f}")
                else:
                    row.append("")
            yield row


def by_error(results):
    """Rows of evaluations over the baseline's, where both are known."""
    for method in ORDERS:
        row = [method]
        for off in SHOWN_ERRORS:
            counts = np.array(
                [
                    [evaluations_at(results, m, name, off) for m in (method, BASELINE)]
                    for name in PROBLEMS
                ]
            )
            known = counts[np.isfinite(counts).all(axis=1)]
            if len(known):
                ours, theirs = map(geometric_mean, known.T)
                row.append(f"{ours / theirs:.2f} ({ours:,.0f}; {len(known)})")
            else:
                row.append("")
        yield row


def describe(results):
    """Print what was run, and which solves did not reach t = 20."""
    for method, order in ORDERS.items():
        tried = tolerances(method)
        failed = [r for r in results if r.method == method and not r.done]
        names = ", ".join(f"{r.problem} at {r.tolerance:.0e}" for r in failed) or "none"
        print(f"- {method}, order {order}: {tried[0]:.0e} to {tried[-1]:.0e}; failed: {names}")


def plot(results, path):
    """Draw mean error against mean evaluations, a line for each method."""
    fig, ax = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for method in ORDERS:
        groups = [select(results, method, tolerance) for tolerance in tolerances(method)]
        means = [
            (geometric_mean(r.nfe for r in runs), geometric_mean(r.error for r in runs))
            for runs in groups
            if runs
        ]
        if method in SCIPY:
            style = {"label": f"SciPy {method}", "linestyle": "--", "marker": "s"}
        else:
            style = {"label": f"flowmlx {method}", "linestyle": "-", "marker": "o"}
        ax.loglog(*zip(*means, strict=True), markersize=4, linewidth=1.5, **style)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("evaluations of the field")
    ax.set_ylabel("error at t = 20")
    ax.set_title("25 DETEST problems, geometric means; a mark for each tolerance", fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    with replacing(path) as temporary:
        fig.savefig(temporary, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="detest.json", help="where to save the results")
    parser.add_argument("--plot", help="where to save a picture of error against evaluations")
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)
    results = [
        measure(method, name, tolerance)
        for method in ORDERS
        for tolerance in tolerances(method)
        for name in PROBLEMS
    ]
    write_text(options.json, json.dumps([asdict(r) for r in results], indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)
    describe(results)
    table(
        "log10(error / tolerance), evaluations", ["class", "tolerance", *ORDERS], by_class(results)
    )
    table(
        f"Evaluations for an error, over {BASELINE}'s (evaluations; problems where both are known)",
        ["method", *(f"{off:.0e}" for off in SHOWN_ERRORS)],
        by_error(results),
    )


if __name__ == "__main__":
    main()

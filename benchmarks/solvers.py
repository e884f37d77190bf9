"""The solvers on a trained field: error by evaluations, and speed beside torchdiffeq and diffrax.

Prints Markdown tables. A field from noise to two moons is trained first; errors are of its end
points, root mean square over 1,024 points, against dopri5 at a tolerance of 1e-7. Times are medians
of repetitions that the contenders take in turn.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import table
from run import PASSES, REPETITIONS, SOLVES, Contender, compare, milliseconds

EVALUATIONS = (4, 8, 16, 32, 64)
FEW = (
    "euler", "midpoint", "heun", "ralston", "rk4", "rk4_38", "ab2", "ab3", "abm2", "bosh3",
    "dopri5", "tsit5", "dpmpp_2m", "unipc_2",
)  # fmt: skip
GRIDS = ("uniform", "sine", "shifted")
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ADAPTIVE = ("bosh3", "dopri5", "tsit5", "dopri8")
POINTS = 1024


def error(side, reference, case, **arguments):
    """Root mean square distance of end points to the reference."""
    ends = np.array(side.ask("check", case, **arguments))
    return float(np.sqrt(np.mean(np.sum((ends - reference).reshape(-1, 2) ** 2, 1))))


def few_evaluations(ours, reference, field, grid):
    """Error of each method at each number of evaluations; empty where it cannot take so few."""
    for method in FEW:
        row = [f"`{method}`"]
        for evaluations in EVALUATIONS:
            arguments = {"method": method, "evaluations": evaluations, "grid": grid}
            ends = error(ours, reference, "few", path=field, n=POINTS, **arguments)
            row.append(f"{ends:.2g}" if np.isfinite(ends) else "")
        yield row


def adaptive(sides, reference, field):
    """Evaluations and error of the adaptive methods at each tolerance, side by side."""
    for method in ADAPTIVE:
        for rtol in TOLERANCES:
            arguments = {"path": field, "n": POINTS, "times": 2, "method": method, "rtol": rtol}
            row = [f"`{method}`", f"{rtol:g}"]
            for side in sides.values():
                if method not in side.methods:
                    row.append("")
                    continue
                nfe = side.ask("check", "evaluations_solve", **arguments)[0]
                row.append(f"{nfe} ({error(side, reference, 'ends', **arguments):.2g})")
            yield row


def speed(sides, field):
    """Milliseconds of a solve, and the ratio of each peer's to ours."""
    ours, *peers = sides.values()
    for rtol, times in ((1e-4, 2), (1e-4, 128), (1e-6, 2), (1e-6, 128)):
        arguments = {"path": field, "n": POINTS, "times": times, "method": "dopri5", "rtol": rtol}
        row = [f"dopri5, {rtol:g}, {times} times"]
        for side in peers:
            took = compare(
                ours, side, "solve", arguments, count=SOLVES, repetitions=PASSES * REPETITIONS
            )
            ratio = statistics.median(took["theirs"]) / statistics.median(took["ours"])
            row += [milliseconds(took["ours"]), milliseconds(took["theirs"]), f"{ratio:.2f}"]
        nfe = [side.ask("check", "evaluations_solve", **arguments)[0] for side in sides.values()]
        yield [*row, " / ".join(map(str, nfe))]


def per_step(sides):
    """Microseconds of a step of x' = -x on 1,024 x 2 numbers, beyond the field itself."""
    for method in ("euler", "rk4", "bosh3", "dopri5", "tsit5"):
        row = [f"`{method}`"]
        for side in sides.values():
            if method in side.methods and "overhead" in side.cases:
                values = [side.ask("check", "overhead", method=method)[0] for _ in range(7)]
                row.append(f"{statistics.median(values):.0f} ({min(values):.0f})")
            else:
                row.append("")
        yield row


def steps_of_each_sample(ours, field):
    """Milliseconds per evaluation with steps of each sample's own against shared steps."""
    for rtol in (1e-4, 1e-6):
        arguments = {"path": field, "n": POINTS, "times": 2, "method": "dopri5", "rtol": rtol}
        nfe, took = {}, {"solve": [], "per_sample": []}
        for case in took:
            nfe[case] = ours.ask("check", f"evaluations_{case}", **arguments)[0]
        for _ in range(7):
            for case, times in took.items():
                seconds = ours.ask("time", case, count=SOLVES, **arguments)["seconds"]
                times.append(seconds / (SOLVES * nfe[case]))
        shared, own = (1000 * statistics.median(times) for times in took.values())
        yield [f"{rtol:g}", f"{shared:.3f}", f"{own:.3f}", f"{own / shared:.2f}", *nfe.values()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--json", default="solvers.json", help="where to save the tables")
    options = parser.parse_args()
    sides = {"flowmlx": Contender(sys.executable, "side_flowmlx.py")}
    for name, script in (("torchdiffeq", "side_torch.py"), ("diffrax", "side_diffrax.py")):
        if Contender.has(options.peers, name):
            sides[name] = Contender(options.peers, script)
        else:
            print(f"- {name} is not installed in {options.peers}: left out")
    for side in sides.values():
        side.described = side.ask("describe")
        side.methods, side.cases = side.described["methods"], side.described["cases"]
        print(f"- {side.described['name']}; {side.described['device']}")
    ours, peers = sides["flowmlx"], list(sides)[1:]
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        field = str(Path(folder, "field.npz"))
        ours.ask("check", "prepare", dim=2, width=64, depth=2, steps=20_000, path=field)
        exact = {"path": field, "n": POINTS, "times": 2, "method": "dopri5", "rtol": 1e-7}
        reference = np.array(ours.ask("check", "ends", **exact))
        for grid in GRIDS:
            rows = few_evaluations(ours, reference, field, grid)
            title = f"Error by evaluations of the field, {grid} grid"
            tables.append(table(title, ["method", *EVALUATIONS], rows))
        header = ["method", "rtol = atol", *sides]
        title = "Evaluations (error) of the adaptive methods"
        tables.append(table(title, header, adaptive(sides, reference, field)))
        if peers:
            header = ["solve", *(f for p in peers for f in ("flowmlx, ms", f"{p}, ms", "ratio"))]
            title = "Time of a solve, 1,024 points; ratios above 1: flowmlx is faster"
            tables.append(table(title, [*header, "evaluations"], speed(sides, field)))
        title = "Microseconds a step of a cheap field beyond the field itself, median (least)"
        tables.append(table(title, ["method", *sides], per_step(sides)))
        header = [
            "rtol = atol",
            "shared, ms",
            "own, ms",
            "ratio",
            "evaluations, shared",
            "evaluations, own",
        ]
        title = "Time of an evaluation, shared steps and steps of each sample's own"
        tables.append(table(title, header, steps_of_each_sample(ours, field)))
    described = {name: side.described for name, side in sides.items()}
    Path(options.json).write_text(json.dumps({"sides": described, "tables": tables}, indent=1))
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main()

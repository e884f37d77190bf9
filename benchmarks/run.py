"""Run flowmlx against its peers, side by side, and print Markdown tables.

Each contender is one process. For every case both first answer a check (the same loss on the same
weights and batch, the same end points or log-densities on the same field); then they are timed in
turn, A B A B, in several passes through all cases, as a machine may be slower for minutes. The
table gives medians with the range, and the ratio of the medians. Results are saved as JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import step_flops, table

HERE = Path(__file__).parent
PASSES, REPETITIONS = 3, 3
PRODUCT = 2048  # rows and columns of the matrices whose product is the limit of the machine
START_UP = (["python", "-c", "pass"], ["python", "-c", "import flowmlx"], ["flowmlx", "--help"])


class Contender:
    def __init__(self, python, script):
        self.process = subprocess.Popen(
            [python, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            # Some GPUs round the numbers of float32 products to ten bits unless told not to, and
            # the sides would not compute the same.
            env={"MLX_ENABLE_TF32": "0", **os.environ},
        )

    def ask(self, do, case="", count=1, **arguments):
        request = {"do": do, "case": case, "count": count, "arguments": arguments}
        self.process.stdin.write(json.dumps(request) + "\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended at {request}")
        return json.loads(answer)

    @staticmethod
    def has(python, module):
        """Whether that Python can import a module."""
        done = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
        return done.returncode == 0

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Case:
    """`units` of work, such as steps, in what is timed `count` times in a row; `against`: arguments
    that are others for the peer; `itself`: the peer is flowmlx, in another process."""

    title: str
    case: str
    arguments: dict
    units: int = 1
    count: int = 1
    against: dict | None = None
    itself: bool = False


# width, depth, batch size -> steps in a repetition
STEPS = {(64, 2, 512): 300, (256, 3, 1024): 40, (512, 4, 4096): 4}
EXACT_OT = {256: 60, 512: 40, 1024: 10}
# Solves in a repetition. A single one lasts as long as it takes threads to wake up.
SOLVES, SCORES = 10, 4
# Seconds before each turn: PyTorch's threads spin for 10 ms after their work.
PAUSE = 0.05


def training(dim, width, depth, batch_size, steps, coupling="independent"):
    """Arguments of a training case."""
    sizes = {"dim": dim, "width": width, "depth": depth, "batch_size": batch_size}
    return {**sizes, "steps": steps, "coupling": coupling}


def cases(fields):
    """All cases; `fields`: files of trained fields by their dimension."""
    for sizes, steps in STEPS.items():
        width, depth, batch_size = sizes
        title = f"training step, MLP {depth}x{width}, batch {batch_size:,}"
        yield Case(title, "train", training(2, *sizes, steps), steps)
    yield Case(
        "training step, semidiscrete OT in 2D against independent, MLP 2x64, batch 512",
        "train",
        training(2, 64, 2, 512, 300, "semidiscrete"),
        300,
        against={"coupling": "independent"},
        itself=True,
    )
    for dim in (2, 64):
        for batch_size, steps in EXACT_OT.items():
            yield Case(
                f"training step, exact OT in {dim}D, MLP 2x64, batch {batch_size:,}",
                "train",
                training(dim, 64, 2, batch_size, steps, "exact_ot"),
                steps,
            )
    solve = {"path": fields[2], "n": 1024}
    for rtol in (1e-4, 1e-6):
        for times in (2, 128):
            title = f"sampling, dopri5 at {rtol:g}, {times} times, 1,024 points"
            adaptive = {"times": times, "method": "dopri5", "rtol": rtol}
            yield Case(title, "solve", solve | adaptive, count=SOLVES)
    for method in ("euler", "midpoint", "rk4"):
        title = f"sampling, {method}, 127 steps, 1,024 points"
        yield Case(title, "solve", solve | {"times": 128, "method": method}, count=SOLVES)
    for dim, field in fields.items():
        for divergence in ("hutchinson", "exact"):
            score = {"path": field, "n": 1024, "divergence": divergence, "rtol": 1e-5}
            title = f"log-likelihood in {dim}D, {divergence}, dopri5 at 1e-05, 1,024 points"
            yield Case(title, "score", score, count=SCORES)
            # torchdiffeq's norm is a mean over the batch, ours is that of the worst sample.
            title = f"log-likelihood in {dim}D, {divergence}, equal errors (1e-05 and 1e-06)"
            yield Case(title, "score", score, count=SCORES, against={"rtol": 1e-6})


def agree(ours, theirs, case, arguments, against=None):
    """Stop where the two sides do not compute the same numbers."""
    a = np.array(ours.ask("check", case, **arguments))
    b = np.array(theirs.ask("check", case, **arguments | (against or {})))
    if case == "solve" and arguments["method"] == "rk4":
        tolerance = 1e-2  # torchdiffeq's rk4 is the 3/8 rule: another method of the same order
    elif case == "score":
        tolerance = 1e-3  # the steps are others, and local errors of all of them add up
    else:
        tolerance = max(10 * arguments.get("rtol", 0), 1e-4)
    if a.shape != b.shape or not np.allclose(a, b, rtol=tolerance, atol=tolerance):
        raise SystemExit(f"{case} {arguments}: the two sides disagree\n{a}\n{b}")


def compare(
    ours, theirs, case, arguments, units=1, *, count=1, against=None, repetitions=REPETITIONS
):
    """Seconds of a unit of work on either side, in turn."""
    times = {"ours": [], "theirs": []}
    for _ in range(repetitions):
        for name, side, given in (
            ("ours", ours, arguments),
            ("theirs", theirs, arguments | (against or {})),
        ):
            time.sleep(PAUSE)
            took = side.ask("time", case, count=count, **given)["seconds"]
            times[name].append(took / (count * units))
    return times


def ratio_of(times):
    """How many times as long the peer takes."""
    return statistics.median(times["theirs"]) / statistics.median(times["ours"])


def milliseconds(times):
    a, b, c = (1000 * f(times) for f in (statistics.median, min, max))
    return f"{a:.3g} ({b:.3g} to {c:.3g})"


def start_up(words):
    """Median seconds of a command, run from this Python's folder, after one warm-up."""
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def fractions(done, peaks):
    """Rows of the speed of each training step, and its part of the fastest product here."""
    for (width, depth, batch_size), case in zip(STEPS, done, strict=True):
        flops = step_flops(2, width, depth, batch_size)
        row = [case["title"].removeprefix("training step, "), f"{flops / 1e9:.3g}"]
        for name, peak in peaks.items():
            speed = flops / statistics.median(case[name])
            row += [f"{speed / 1e9:.3g}", f"{speed / peak:.0%}"]
        yield row


def peak_flops(ours, theirs):
    """Operations a second in the fastest of several large products, on either side."""
    times = compare(ours, theirs, "product", {"n": PRODUCT}, repetitions=PASSES * REPETITIONS)
    return {name: 2 * PRODUCT**3 / min(seconds) for name, seconds in times.items()}


def evaluations(case, ours, theirs):
    """Evaluations of the field on either side, where the case has a field."""
    if case.case not in ("solve", "score"):
        return ""
    given = (case.arguments, case.arguments | (case.against or {}))
    counts = (
        side.ask("check", f"evaluations_{case.case}", **arguments)
        for side, arguments in zip((ours, theirs), given, strict=True)
    )
    return " / ".join(str(count[0]) for count in counts)


def measure(cases, ours, itself, theirs):
    """A row of results for each case: all are checked, and timed in `PASSES`."""
    sides = [(ours, itself if case.itself else theirs) for case in cases]
    rows = [{"title": case.title, "units": case.units, "ours": [], "theirs": []} for case in cases]
    for number in range(PASSES):
        for case, pair, row in zip(cases, sides, rows, strict=True):
            print(f"pass {number + 1} of {PASSES}: {case.title}", file=sys.stderr)
            if number == 0:
                agree(*pair, case.case, case.arguments, case.against)
                row["nfe"] = evaluations(case, *pair)
            size = {"count": case.count, "against": case.against}
            times = compare(*pair, case.case, case.arguments, case.units, **size)
            for name, seconds in times.items():
                row[name] += seconds
    for row in rows:
        row["ratio"] = ratio_of(row)
    return rows


def describe(sides):
    """Print what the contenders run on; return it for the JSON file."""
    about = [side.ask("describe") for side in sides]
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    print(f"- Python {platform.python_version()}, {system}")
    for side in about:
        print(f"- {side['name']}; {side['device']}; BLAS {side['blas']}")
    return about


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--only", default="", help="run the cases whose title has this in it")
    parser.add_argument("--json", default="bench.json", help="where to save the results")
    options = parser.parse_args()
    ours, itself, theirs = (
        Contender(sys.executable, "side_flowmlx.py"),
        Contender(sys.executable, "side_flowmlx.py"),
        Contender(options.peers, "side_torch.py"),
    )
    described, tables = describe((ours, theirs)), []
    with tempfile.TemporaryDirectory() as folder:
        fields = {dim: str(Path(folder, f"field{dim}.npz")) for dim in (2, 16)}
        for dim, path in fields.items():
            ours.ask("check", "prepare", dim=dim, width=64, depth=2, steps=3000, path=path)
        chosen = [case for case in cases(fields) if options.only in case.title]
        rows = measure(chosen, ours, itself, theirs)
    header = ["case", "flowmlx, ms", "peer, ms", "peer / flowmlx", "evaluations"]
    lines = [
        [
            row["title"],
            *(milliseconds(row[side]) for side in ("ours", "theirs")),
            f"{row['ratio']:.2f}",
            row["nfe"],
        ]
        for row in rows
    ]
    tables.append(table("Side by side", header, lines))
    steps = [row for row in rows if row["title"].startswith("training step, MLP")]
    if len(steps) == len(STEPS):
        peaks = peak_flops(ours, theirs)
        limits = (f"of {peaks[side] / 1e9:.0f}" for side in ("ours", "theirs"))
        names = ("flowmlx, GFLOP/s", next(limits), "peer, GFLOP/s", next(limits))
        title = f"Matrix products of a step beside one of {PRODUCT:,} x {PRODUCT:,} numbers"
        tables.append(table(title, ["step", "GFLOP", *names], fractions(steps, peaks)))
    if "memory" in options.only or not options.only:
        early, late = ours.ask("check", "memory", steps=2000)
        print(f"\nResident memory: {early:.0f} MB after 2,000 steps, {late:.0f} MB after 10,000")
    if "start-up" in options.only or not options.only:
        for words in START_UP:
            print(f"Start-up, `{' '.join(words)}`: {start_up(words):.2f} s")
    found = {"sides": described, "rows": rows, "tables": tables}
    Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    for side in (ours, itself, theirs):
        side.close()


if __name__ == "__main__":
    main()

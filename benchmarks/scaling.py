"""How the work grows, and the whole demo: Markdown tables, and JSON.

Training steps against batch size and width, with PyTorch's beside; sampling against the number of
samples, each in a process of its own so that its peak of memory is its own; a step in one process
and in two that share its batch; `flowmlx train` with its default options on an empty and on a
filled cache of compiled loops.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import matplotlib
from common import step_flops, table
from run import Contender, agree, compare, describe, milliseconds, ratio_of, training

REPETITIONS = 3
WORK = 3e9  # operations in a repetition of training steps, some 30 ms and up
MOST_STEPS = 100
BATCH_SIZES = [2**k for k in range(6, 17)]
WIDTHS = (64, 128, 256, 512, 1024)
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
SAMPLE_BATCH = 10_000  # of `flowmlx sample`
# width, depth, batch size, steps between two readings of the clock
TOGETHER = ((64, 2, 512, 500), (512, 4, 4096, 10))
# Seconds that the program before flowmlx was stated to take: 20,000 steps at 80 a second, sampling,
# compiling. Nobody measures them here.
STATED = {"training": 250, "sampling": 8, "compiling": 15}


def steps(ours, theirs, sizes):
    """A row for each (width, depth, batch size)."""
    for width, depth, batch_size in sizes:
        count = round(WORK / step_flops(2, width, depth, batch_size))
        count = max(1, min(MOST_STEPS, count))
        arguments = training(2, width, depth, batch_size, count)
        agree(ours, theirs, "train", arguments)
        times = compare(ours, theirs, "train", arguments, count, repetitions=REPETITIONS)
        name = f"MLP {depth}x{width}, batch {batch_size:,}"
        yield [name, *map(milliseconds, times.values()), f"{ratio_of(times):.2f}"]


def samples(python_of, field, counts):
    """Seconds and peak megabytes of a solve of each number of points, in three ways."""
    for n in counts:
        whole = {"path": field, "n": n, "times": 2, "method": "dopri5", "rtol": 1e-4}
        row = [f"{n:,}"]
        for script, case, arguments in (
            ("side_flowmlx.py", "solve", whole),
            ("side_flowmlx.py", "in_batches", {"path": field, "n": n, "size": SAMPLE_BATCH}),
            ("side_torch.py", "solve", whole),
        ):
            with closing(Contender(python_of[script], script)) as side:
                took = side.ask("time", case, **arguments)
            row += [f"{took['seconds']:.3g}", f"{took['peak_mb']:,.0f}"]
        yield row


def check_samples(ours, theirs, field):
    """The three ways of `samples` give the same points."""
    whole = {"path": field, "n": 1024, "times": 2, "method": "dopri5", "rtol": 1e-4}
    agree(ours, theirs, "solve", whole)
    a = ours.ask("check", "solve", **whole)
    b = ours.ask("check", "in_batches", path=field, n=1024, size=1024)
    if a != b:
        raise SystemExit(f"samples in one batch are not those of one solve\n{a}\n{b}")


def demo(folder, cache):
    """Seconds of the parts of `flowmlx train`, and from its start to its figures."""
    cache.mkdir(exist_ok=True)
    command = [Path(sys.executable).with_name("flowmlx"), "train", "--out", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(
        command,
        # The loops' alone: Matplotlib looks for its fonts anew where it finds no cache.
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(cache),
            "MPLCONFIGDIR": matplotlib.get_cachedir(),
        },
        capture_output=True,
        text=True,
    )
    whole = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"flowmlx train failed\n{done.stderr}")
    results = json.loads((folder / "results.json").read_text())
    training = results["compile_seconds"] + results["training_seconds"]
    parts = {"training": training, "sampling": results["sampling_seconds"]}
    return {**parts, "the rest": whole - sum(parts.values()), "start to figures": whole}


def demos(folder):
    """Rows of the demo with an empty cache of compiled loops, and with a filled one."""
    cold = demo(folder / "cold", folder / "cache")
    warm = [demo(folder / f"warm{k}", folder / "cache") for k in range(REPETITIONS)]
    for part, first in cold.items():
        later = statistics.median(run[part] for run in warm)
        stated = sum(STATED.values()) if part == "start to figures" else STATED.get(part)
        row = [part, f"{first:.2f}", f"{later:.2f}", stated or ""]
        yield [*row, *(f"{stated / s:.0f}" if stated else "" for s in (first, later))]


def processes(folder):
    """Rows of a training step in one process, and in two that share its batch."""
    launch = [Path(sys.executable).with_name("mlx.launch"), "-n", "2", "--"]
    for width, depth, batch_size, steps in TOGETHER:
        times = {1: [], 2: []}
        for k in range(REPETITIONS):
            for count, launcher in ((1, []), (2, launch)):
                run = folder / f"{width}-{k}-{count}"
                words = [
                    Path(sys.executable).with_name("flowmlx"), "train", "--out", run,
                    "--width", width, "--depth", depth, "--batch-size", batch_size,
                    "--steps", 3 * steps, "--log-every", steps, "--samples", 2, "--frames", 2,
                ]  # fmt: skip
                command = [str(word) for word in [*launcher, *words]]
                subprocess.run(command, check=True, capture_output=True)
                lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
                # The first line has the compiling in it.
                times[count] += [1 / line["steps_per_second"] for line in list(lines)[1:]]
        ratio = statistics.median(times[1]) / statistics.median(times[2])
        name = f"MLP {depth}x{width}, batch {batch_size:,}"
        yield [name, *map(milliseconds, times.values()), f"{ratio:.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--only", default="", help="make the tables whose title has this in it")
    parser.add_argument("--json", default="scaling.json", help="where to save the tables")
    parser.add_argument("--most", type=float, default=1e9, help="largest batch, width and number")
    options = parser.parse_args()
    python_of = {"side_flowmlx.py": sys.executable, "side_torch.py": options.peers}
    ours, theirs = (Contender(python, script) for script, python in python_of.items())
    header = ["step", "flowmlx, ms", "peer, ms", "peer / flowmlx"]
    most = options.most
    with tempfile.TemporaryDirectory() as folder:
        field = str(Path(folder, "field.npz"))

        def sampling():
            ours.ask("check", "prepare", dim=2, width=64, depth=2, steps=3000, path=field)
            check_samples(ours, theirs, field)
            return samples(python_of, field, [n for n in SAMPLES if n <= most])

        def by_batch(width, depth):
            sizes = [(width, depth, size) for size in BATCH_SIZES if size <= most]
            return steps(ours, theirs, sizes)

        ways = ("one solve", f"{SAMPLE_BATCH:,} at a time", "torchdiffeq")
        makers = {
            "Training step by batch size, MLP 2x64": (header, lambda: by_batch(64, 2)),
            "Training step by batch size, MLP 3x256": (header, lambda: by_batch(256, 3)),
            "Training step by width": (
                header,
                lambda: steps(
                    ours, theirs, [(width, 3, 1024) for width in WIDTHS if width <= most]
                ),
            ),
            "Sampling by number of samples, dopri5 at 1e-4": (
                ["samples", *(f"{way}, {unit}" for way in ways for unit in ("s", "MB"))],
                sampling,
            ),
            "Training step in one process and in two (mlx.launch -n 2)": (
                ["step", "one, ms", "two, ms", "one / two"],
                lambda: processes(Path(folder)),
            ),
            "The demo; the program before as stated, not measured": (
                ["part", "first, s", "later, s", "before, s", "before / first", "before / later"],
                lambda: demos(Path(folder)),
            ),
        }
        described = describe((ours, theirs))
        tables = [
            table(title, header, rows())
            for title, (header, rows) in makers.items()
            if options.only in title
        ]
    Path(options.json).write_text(json.dumps({"sides": described, "tables": tables}, indent=1))
    ours.close(), theirs.close()


if __name__ == "__main__":
    main()

"""Run flowmlx against its peers, side by side, and print a Markdown table.

Each contender is one process. For every case both first answer a check (the same loss on the same
weights and batch, the same end points on the same field); then they are timed in turn, A B A B, and
the table gives medians with the range, and the ratio of the medians. Results are saved as JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REPETITIONS = 7
START_UP = (["python", "-c", "pass"], ["python", "-c", "import flowmlx"], ["flowmlx", "--help"])


class Contender:
    def __init__(self, python, script):
        self.process = subprocess.Popen(
            [python, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, do, case="", **arguments):
        request = {"do": do, "case": case, "arguments": arguments}
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


def cases(field):
    """(title, case, arguments, what one unit of work is called, units in a repetition)."""
    for width, depth, batch_size, steps in (
        (64, 2, 512, 300),
        (256, 3, 1024, 40),
        (512, 4, 4096, 4),
    ):
        yield (
            f"training step, MLP {depth}x{width}, batch {batch_size:,}",
            "train",
            {"dim": 2, "width": width, "depth": depth, "batch_size": batch_size, "steps": steps},
            "step",
            steps,
        )
    for dim in (2, 64):
        for batch_size, steps in ((256, 60), (512, 40), (1024, 10)):
            yield (
                f"training step, exact OT in {dim}D, MLP 2x64, batch {batch_size:,}",
                "train",
                {
                    "dim": dim,
                    "width": 64,
                    "depth": 2,
                    "batch_size": batch_size,
                    "steps": steps,
                    "coupling": "exact_ot",
                },
                "step",
                steps,
            )
    for rtol in (1e-4, 1e-6):
        for times in (2, 128):
            yield (
                f"sampling, dopri5 at {rtol:g}, {times} times, 1,024 points",
                "solve",
                {"path": field, "n": 1024, "times": times, "method": "dopri5", "rtol": rtol},
                "solve",
                1,
            )
    for method in ("euler", "midpoint", "rk4"):
        yield (
            f"sampling, {method}, 127 steps, 1,024 points",
            "solve",
            {"path": field, "n": 1024, "times": 128, "method": method},
            "solve",
            1,
        )


def agree(ours, theirs, case, arguments):
    a, b = (np.array(side.ask("check", case, **arguments)) for side in (ours, theirs))
    if case == "solve" and arguments["method"] == "rk4":
        tolerance = 1e-2  # torchdiffeq's rk4 is the 3/8 rule: another method of the same order
    else:
        tolerance = max(10 * arguments.get("rtol", 0), 1e-4)
    if not np.allclose(a, b, rtol=tolerance, atol=tolerance):
        raise SystemExit(f"{case} {arguments}: the two sides disagree\n{a}\n{b}")


def compare(ours, theirs, case, arguments, units):
    times = {"ours": [], "theirs": []}
    for _ in range(REPETITIONS):
        for name, side in (("ours", ours), ("theirs", theirs)):
            times[name].append(side.ask("time", case, **arguments)["seconds"] / units)
    return times


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--only", default="", help="run the cases whose title has this in it")
    parser.add_argument("--json", default="bench.json", help="where to save the results")
    options = parser.parse_args()
    ours, theirs = (
        Contender(sys.executable, "side_flowmlx.py"),
        Contender(options.peers, "side_torch.py"),
    )
    described = [side.ask("describe") for side in (ours, theirs)]
    for side in described:
        print(f"- {side['name']}; {side['device']}; BLAS {side['blas']}")
    print("\n| case | flowmlx, ms | peer, ms | peer / flowmlx | evaluations |")
    print("|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        field = str(Path(folder, "field.npz"))
        ours.ask("check", "prepare", dim=2, width=64, depth=2, steps=3000, path=field)
        for title, case, arguments, unit, units in cases(field):
            if options.only not in title:
                continue
            agree(ours, theirs, case, arguments)
            nfe = ""
            if case == "solve":
                nfe = " / ".join(
                    str(side.ask("check", "evaluations", **arguments)[0]) for side in (ours, theirs)
                )
            times = compare(ours, theirs, case, arguments, units)
            ratio = statistics.median(times["theirs"]) / statistics.median(times["ours"])
            a, b = (milliseconds(times[side]) for side in ("ours", "theirs"))
            print(f"| {title} | {a} | {b} | {ratio:.2f} | {nfe} |", flush=True)
            rows.append({"title": title, "seconds_per": unit, **times, "ratio": ratio, "nfe": nfe})
    if "memory" in options.only or not options.only:
        early, late = ours.ask("check", "memory", steps=2000)
        print(f"\nResident memory: {early:.0f} MB after 2,000 steps, {late:.0f} MB after 10,000")
    if "start-up" in options.only or not options.only:
        for words in START_UP:
            print(f"Start-up, `{' '.join(words)}`: {start_up(words):.2f} s")
    Path(options.json).write_text(json.dumps({"sides": described, "rows": rows}, indent=1) + "\n")
    ours.close(), theirs.close()


if __name__ == "__main__":
    main()

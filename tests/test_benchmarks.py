"""The parts of the benchmarks that could mislead without failing."""

import math

import common
import pytest
import run


class Side:
    """A contender that answers every question with the same numbers."""

    def __init__(self, numbers):
        self.numbers, self.asked = numbers, []

    def ask(self, do, case, count=1, **arguments):
        self.asked.append(arguments)
        return {"seconds": count * self.numbers[0]} if do == "time" else self.numbers


def test_operations_of_a_training_step():
    """3 -> 64 -> 64 -> 2: forward, weights' gradients, and inputs' but for the first layer."""
    assert common.step_flops(2, 64, 2, 1) == 2 * ((192 + 4096 + 128) * 2 + 4096 + 128)
    assert common.step_flops(2, 64, 2, 512) == 512 * common.step_flops(2, 64, 2, 1)
    assert [w.shape for w, _ in common.weights(5, 8, 1)] == [(8, 6), (5, 8)]


@pytest.mark.parametrize(
    ("case", "arguments", "allowed"),
    [
        ("train", {}, 1e-4),
        ("solve", {"method": "dopri5", "rtol": 1e-4}, 1e-3),
        ("solve", {"method": "rk4"}, 1e-2),
        ("score", {"rtol": 1e-5}, 1e-3),
    ],
)
def test_sides_that_disagree_are_not_timed(case, arguments, allowed):
    ours = Side([0.0, 0.0])
    run.agree(ours, Side([0.0, 0.9 * allowed]), case, arguments)
    for numbers in ([0.0, 1.1 * allowed], [0.0, math.nan], [0.0]):
        with pytest.raises(SystemExit, match="the two sides disagree"):
            run.agree(ours, Side(numbers), case, arguments)


def test_every_case_is_checked_before_it_is_timed():
    case = run.Case("a step", "train", {"coupling": "exact_ot"}, against={"coupling": "none"})
    with pytest.raises(SystemExit, match="disagree"):
        run.measure([case], Side([1.0]), Side([1.0]), Side([2.0]))
    ours, itself, theirs = Side([1.0]), Side([1.0]), Side([1.0])
    assert run.measure([case], ours, itself, theirs)[0]["ratio"] == 1
    assert {a["coupling"] for a in ours.asked} == {"exact_ot"}
    assert {a["coupling"] for a in theirs.asked} == {"none"}
    assert not itself.asked


def test_cases_are_timed_in_passes_through_all():
    cases = [run.Case(name, name, {"name": name}, itself=name == "b") for name in "ab"]
    ours, itself, theirs = Side([1.0]), Side([1.0]), Side([1.0])
    rows = run.measure(cases, ours, itself, theirs)
    assert [len(row["ours"]) for row in rows] == [run.PASSES * run.REPETITIONS] * 2
    timed = [a["name"] for a in ours.asked]
    one_pass = ["a"] * run.REPETITIONS + ["b"] * run.REPETITIONS
    assert timed[2 + 2 * run.REPETITIONS :] == one_pass * (run.PASSES - 1)
    assert {a["name"] for a in itself.asked} == {"b"}


def test_ratios_above_one_are_for_us():
    times = run.compare(Side([1.0]), Side([3.0]), "train", {}, 10)
    assert times["ours"] == [0.1] * run.REPETITIONS
    assert run.compare(Side([1.0]), Side([3.0]), "solve", {}, count=4)["ours"][0] == 1
    assert run.ratio_of(times) == pytest.approx(3)


def test_speed_is_operations_over_time_and_a_part_of_the_peak():
    flops = [common.step_flops(2, *sizes) for sizes in run.STEPS]
    done = [{"title": "training step, x", "ours": [f / 1e9], "theirs": [f / 2e9]} for f in flops]
    rows = list(run.fractions(done, {"ours": 4e9, "theirs": 4e9}))
    assert [row[2:] for row in rows] == [["1", "25%", "2", "50%"]] * len(flops)


def test_memory_is_that_of_this_process():
    before = common.resident_mb()
    kept = b"\1" * (64 << 20)
    assert 50 < common.resident_mb() - before < 90
    assert common.peak_mb() >= before + 50
    assert len(kept) == 64 << 20

"""The published comparison: its cells, how it goes on, its summary."""

import contextlib
import json
import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.command import reproduce
from flowmlx.command.cli import main
from flowmlx.command.reproduce import METHODS, NOISY, PROBLEMS, PUBLISHED, Cell, Protocol, protocol

TINY = Protocol(steps=2, training=600, test=32)
pytestmark = pytest.mark.usefixtures("without_compile")


FEW = "N->moons", "moons->8gaussians"  # with a Gaussian source, and without


@contextlib.contextmanager
def only(*names):
    """These problems are all there are."""
    whole = dict(PROBLEMS)
    for name in set(PROBLEMS) - set(names):
        del PROBLEMS[name]
    try:
        yield
    finally:
        PROBLEMS.clear()
        PROBLEMS.update(whole)  # in their order


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    mx.disable_compile()
    try:
        with only(*FEW):
            reproduce.run(folder, (1,), TINY)
    finally:
        mx.enable_compile()
    return folder


@pytest.fixture
def folder(computed):
    """Results of a few problems, which are all there are."""
    with only(*FEW):
        yield computed


def test_every_method_meets_every_problem_it_can():
    counts = Counter(cell.method for cell in reproduce.cells((1,)))
    assert counts == {name: 3 if name == "FM" else 5 for name in METHODS}
    names = [cell.name for cell in reproduce.cells((1, 2))]
    assert len(set(names)) == len(names) == 56


def test_methods_and_data_are_those_of_the_protocol(key):
    """By the paths, by what the pairs cost, and by the scale of the data."""
    kinds = {name: (type(m.path).__name__, m.path.sigma, m.score) for name, m in METHODS.items()}
    assert kinds == {
        "I-CFM": ("Linear", 0.1, False),
        "VP": ("Trigonometric", 0.1, False),
        "FM": ("Target", 0.1, False),
        "OT-CFM": ("Linear", 0.1, False),
        "[SF]2M": ("Bridge", 0.1, True),
        "SB-CFM": ("Bridge", 1.0, False),
    }
    x0, x1 = mx.random.normal((2, 256, 2), key=key)
    cost = {}
    for name, method in METHODS.items():
        i, j = method.coupling(x0, x1, key=key)
        cost[name] = mx.square(x0[i] - x1[j]).sum(-1).mean().item()
    assert cost["I-CFM"] == cost["VP"] == cost["FM"] == pytest.approx(4, rel=0.2)
    assert cost["OT-CFM"] == cost["[SF]2M"] < 0.2
    assert 0.2 < cost["SB-CFM"] < 3  # of N(0, 1) to itself at reg 2: neither

    def scale(draw):
        return np.array(draw(20_000, key=key)).std(0)

    ends = {name: [scale(draw) for draw in pair] for name, pair in PROBLEMS.items()}
    one, eight = (1, 1), (math.sqrt(13.5),) * 2
    moon = ends["N->moons"][1]
    assert moon[0] > 1.5 * moon[1]
    np.testing.assert_allclose(ends["N->8gaussians"], [one, eight], rtol=0.03)
    np.testing.assert_allclose(ends["8gaussians->moons"], [eight, moon], rtol=0.03)
    np.testing.assert_allclose(
        ends["moons->8gaussians"], [(7, 7), (math.sqrt(74.25),) * 2], rtol=0.03
    )
    curve = ends["N->scurve"][1]
    assert curve[1] > 1.5 * curve[0] > 1.2
    assert PUBLISHED["w2"]["N->8gaussians"]["OT-CFM"] == (0.303, 0.043)
    assert PUBLISHED["npe"]["moons->8gaussians"]["I-CFM"] == (2.680,)


def test_published_numbers_are_of_cells_there_are():
    known = {(cell.problem, cell.method) for cell in reproduce.cells((1,))}
    for problems in PUBLISHED.values():
        for problem, methods in problems.items():
            assert {(problem, method) for method in methods} <= known


@pytest.mark.parametrize(
    ("draw", "mean", "std"),
    [
        (protocol.wide_moons, (0, 0), (7, 7)),
        # of each axis: radius^2 / 2 + std^2
        (protocol.far_gaussians, (0, 0), (math.sqrt(72 + 2.25),) * 2),
        (protocol.broad_gaussians, (0, 0), (math.sqrt(12.5 + 1),) * 2),
    ],
)
def test_scale_of_the_data(draw, mean, std, key):
    x = np.array(draw(50_000, key=key))
    np.testing.assert_allclose(x.mean(0), mean, atol=4 * max(std) / math.sqrt(len(x)))
    np.testing.assert_allclose(x.std(0), std, rtol=0.02)


def test_it_goes_on_where_it_stopped(folder, tmp_path):
    del PROBLEMS["moons->8gaussians"]
    whole = reproduce.run(folder, (1,), TINY)
    stopped = []

    def stop(cell):
        stopped.append(cell)
        if len(stopped) == 7:  # in the middle of the fourth cell
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce.run(tmp_path, (1,), TINY, step=stop)
    steps = []
    again = reproduce.run(tmp_path, (1,), TINY, step=steps.append)
    assert len(steps) == TINY.steps * (6 - 3)

    def numbers(results):
        return [{k: v for k, v in result.items() if k != "seconds"} for result in results]

    assert numbers(again) == numbers(whole)


def test_nothing_is_computed_twice(folder):
    def never(cell):
        raise AssertionError(cell)

    results = reproduce.run(folder, (1,), TINY, step=never)
    assert [(r["problem"], r["method"], r["seed"]) for r in results] == list(reproduce.cells((1,)))
    assert len(results) == 6 + 5


def test_a_folder_holds_one_protocol(folder, tmp_path):
    with pytest.raises(ValueError, match=r"results of another size .* give another folder"):
        reproduce.run(folder, (1,), TINY._replace(steps=3))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file; give a folder"):
        reproduce.run(tmp_path / "file", (1,), TINY)
    with pytest.raises(ValueError, match=r"holds something else; give a new folder"):
        reproduce.run(tmp_path, (1,), TINY)


def test_a_damaged_cell_is_named(folder, tmp_path):
    cell = Cell("N->moons", "VP", 1)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cell.name}.json").write_text('{"w2": ')
    with pytest.raises(
        ValueError, match=r"cells/N-moons-VP-1.json is missing or damaged: .* remove it"
    ):
        reproduce.run(tmp_path, (1,), TINY)


def results(w2):
    """One result for each value of OT-CFM's W2, and one of [SF]2M."""
    common = {"problem": "N->moons", "floor": 0.1, "npe": 0.5, "seconds": 1.0}
    ours = [
        {**common, "method": "OT-CFM", "seed": seed, "w2": value} for seed, value in enumerate(w2)
    ]
    return [*ours, {**common, "method": "[SF]2M", "seed": 0, "w2": 0.2, "w2_sde": 0.3}]


def test_summary_is_mean_and_standard_deviation_over_seeds():
    here = reproduce.summarise(results([0.1, 0.2, 0.6]))["w2"]["N->moons"]
    assert here["OT-CFM"] == pytest.approx((0.3, math.sqrt(0.07), 3))
    assert here["[SF]2M"] == (0.2, 0.0, 1)
    assert here[NOISY] == (0.3, 0.0, 1)
    assert here["floor"].mean == pytest.approx(0.1)
    assert reproduce.summarise(results([0.1]))["npe"]["N->moons"]["OT-CFM"].mean == 0.5


def test_table_has_the_published_numbers_beside_ours():
    text = reproduce.tables(reproduce.summarise(results([0.1, 0.2, 0.6])))
    row = next(line for line in text.splitlines() if line.startswith("| OT-CFM"))
    assert row.split(" | ")[4] == "0.300 ± 0.265 (0.130 ± 0.016)"
    assert "0.500 ± 0.000 (0.083)" in text
    assert "| [SF]2M, with noise |  |  |  | 0.300 |" in text


def test_command_computes_prints_and_writes(folder, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "QUICK", TINY)
    del PROBLEMS["N->moons"]
    main(["reproduce", "2d", "--quick", "--seeds", "1,2", "--out", str(folder)])
    out = capsys.readouterr().out
    for word in ("| OT-CFM |", "| floor |", "normalised path energy", "seeds    1, 2", "w2.png"):
        assert word in out
    assert (folder / "table.md").read_text() in out
    for name in ("w2.png", "flows.png"):
        assert (folder / name).stat().st_size > 500
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [1, 2]
    assert summary["w2"].keys() == summary["npe"].keys() == set(PROBLEMS)
    found = reproduce.run(folder, (1, 2), TINY)
    ours = [r["w2"] for r in found if r["method"] == "VP"]
    assert len(ours) == 2
    assert summary["w2"]["moons->8gaussians"]["VP"]["mean"] == pytest.approx(np.mean(ours))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["3d"], "unknown table '3d'"),
        (["2d", "--seeds", "a"], "--seeds is 'a'; expected whole numbers"),
        (["2d", "--seeds", "-1"], "expected whole numbers"),
        (["2d", "--seeds", "9" * 30], "expected whole numbers below 2^63"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_optimal_transport_spends_less_energy_at_an_equal_distance(tmp_path):
    size = Protocol(steps=300, training=2_000, test=300)

    def compute(method):
        cell = Cell("N->moons", method, 42)
        (tmp_path / "cells").mkdir(exist_ok=True)
        return reproduce.compute(tmp_path, cell, size, step=lambda cell: None)

    independent, optimal = compute("I-CFM"), compute("OT-CFM")
    assert optimal["npe"] < 0.6 * independent["npe"]
    assert optimal["w2"] < independent["w2"] + 0.15
    unmoved, _ = reproduce.distances("N->moons", 42, size)
    assert optimal["w2"] < 0.6 * unmoved

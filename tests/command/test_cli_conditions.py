"""Conditions by command: classes and numbers, told in training and asked for."""

from pathlib import Path

import numpy as np
import pytest

from commands import (
    LONGER,
    NAMES,
    QUICK,
    kinds,
    refuse,
)
from flowmlx.command.cli import main
from flowmlx.data.arrays import read
from flowmlx.experiment import options as settings
from flowmlx.experiment import resolve
from flowmlx.experiment.rules import check
from flowmlx.guidance import GUIDANCE

pytestmark = pytest.mark.usefixtures("without_compile", "in_folder", "without_figures")


@pytest.mark.slow
def test_classes_are_told_and_asked_for(capsys):
    kinds()
    main(["train", *LONGER, "--target", "kinds.csv", "--condition", "kind"])
    facts = check(settings.read_config("run/config.yaml"))
    told = resolve.kind(facts).read(resolve.request(facts)).test.conditions(1024)
    evaluated = read("run/samples.csv").values[:, 0]  # under the conditions of held-out rows
    for label, kind in enumerate((1, 2, 4)):
        assert abs(evaluated[np.array(told) == label].mean() - 10 * kind) < 1.5
    for kind in (1, 2, 4):
        words = ["sample", "run", "-n", "200", "-o", "new.csv", "--condition", str(kind)]
        main(words)
        new = read("new.csv")
        assert new.columns == ("a", "b", "weight")
        np.testing.assert_allclose(new.values[:, 0].mean(), 10 * kind, atol=1.5)
        for method in ("cfg", "cfg_zero_star"):
            main([*words, "--guidance", "2", "--guidance-method", method])
            guided = read("new.csv").values
            np.testing.assert_allclose(guided[:, 0].mean(), 10 * kind, atol=4)
            assert (guided != new.values).any()
    main(["sample", "run", "-n", "300", "-o", "all.csv"])
    every = read("all.csv").values[:, 0]
    for kind in (1, 2, 4):
        assert 0.15 < (abs(every - 10 * kind) < 5).mean() < 0.6
    capsys.readouterr()
    main(["evaluate", "run"])
    assert "NLL" in capsys.readouterr().out
    for words, message in (
        (["--condition", "3"], "--condition is 3; kind was one of: 1, 2, 4"),
        (["--condition", "red"], "--condition is 'red'; expected a number for kind"),
        (["--guidance", "2"], "give one with --condition VALUE"),
        (["--guidance", "nan"], "--guidance is nan; expected a finite number"),
    ):
        assert message in refuse(capsys, "sample", "run", *words)


def test_named_classes_train_as_numbered_ones_do():
    """In one order of the classes they give the same run, which goes on bit for bit."""
    kinds(rows=60)
    kinds("named.csv", rows=60, names={1: "a", 2: "b", 4: "c"})
    for target, out, steps in (("kinds", "n", "4"), ("named", "a", "4"), ("named", "b", "2")):
        words = ["--target", f"{target}.csv", "--condition", "kind", "--out", out, "--steps", steps]
        main(["train", *QUICK, *words])
    main(["train", "--resume", "b", "--steps", "4"])
    main(["evaluate", "a", "--rows", "5"])
    Path("named.csv").unlink()  # the names are the run's
    numbered, whole, parts = (Path(run, "samples.csv").read_bytes() for run in "nab")
    assert numbered == whole == parts
    main(["sample", "a", "-n", "20", "--condition", "c", "-o", "named.npy"])
    main(["sample", "n", "-n", "20", "--condition", "4", "-o", "numbered.npy"])
    np.testing.assert_array_equal(np.load("named.npy"), np.load("numbered.npy"))


def test_mistakes_with_classes_of_text(capsys):
    kinds(rows=60, names=NAMES)
    words = ["train", *QUICK, "--target", "kinds.csv"]
    main([*words, "--condition", "kind", "--out", "run"])
    capsys.readouterr()
    message = "'setsoa' (did you mean 'setosa'?); kind was one of: 'Zea mays', 'setosa', "
    assert message in refuse(capsys, "sample", "run", "--condition", "setsoa")
    for condition, message in (
        ([], "columns that are not numbers: 'kind'"),
        (["--condition", "weight"], "columns that are not numbers: 'kind'"),
        (["--time-column", "kind"], "'kind' holds text; expected a number, such as the day"),
        (["--condition", "kind,weight"], "'kind' holds text, which has to be the only condition"),
    ):
        assert message in refuse(capsys, *words, *condition)
    kinds(rows=60, names={**NAMES, 1: "sativa"})  # in the same place of the order
    assert "the data has changed since run" in refuse(capsys, "train", "--resume", "run")


@pytest.mark.slow
def test_numbers_are_told_in_their_units():
    kinds()
    main(["train", *LONGER, "--target", "kinds.csv", "--condition", "kind,weight"])
    main(["sample", "run", "-n", "300", "-o", "new.csv", "--condition", "2,58"])
    new = read("new.csv")
    assert new.columns == ("a", "b")
    a, b = new.values.mean(0)
    assert a == pytest.approx(20, abs=1.5)
    assert b == pytest.approx(-2 + 0.2 * 8, abs=0.4)


def test_a_condition_goes_with_any_prediction():
    kinds(rows=60)
    words = ["--target", "kinds.csv", "--condition", "kind", "--prediction", "x1", "--out", "run"]
    main(["train", *QUICK, "-m", "cfm", *words])
    ends = []
    for kind in ("1", "4"):
        main(["sample", "run", "-n", "20", "--condition", kind, "--guidance", "2", "-o", "new.npy"])
        ends.append(np.load("new.npy"))
    assert np.isfinite(ends).all()
    assert (ends[0] != ends[1]).any()
    main(["evaluate", "run", "--rows", "5"])


def test_a_conditional_run_goes_on_bit_for_bit():
    kinds(rows=60)
    words = ["--target", "kinds.csv", "--condition", "kind", "-m", "otcfm"]
    for name, steps in (("a", "4"), ("b", "2")):
        main(["train", *QUICK, *words, "--out", name, "--steps", steps])
    main(["train", "--resume", "b", "--steps", "4"])
    assert read("a/samples.csv").values.tolist() == read("b/samples.csv").values.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--condition", "kin"], "there is no column 'kin' (did you mean 'kind'?)"),
        (["--condition", "a,kind,b,weight"], "so nothing left to learn"),
        (["--condition", "kind", "--condition-cost", "0"], "expected a number above 0"),
        (["--condition", "kind", "--condition-dropout", "1"], "expected a number at least 0 and"),
        (["--condition", "kind", "--target", "moons"], "--target moons has none"),
        (["--leave-out", "1"], "give the column of times with --time-column"),
    ],
)
def test_mistakes_with_conditions(words, message, capsys):
    kinds()
    assert message in refuse(capsys, "train", *QUICK, "--target", "kinds.csv", *words)


@pytest.mark.parametrize("method", settings.TABLES["guidance_method"])
def test_guidance_is_of_the_method_and_the_weight_that_are_given(method, monkeypatch):
    kinds(rows=40)
    main(["train", *QUICK, "--target", "kinds.csv", "--condition", "kind", "--out", "run"])
    used = []
    for name, plain in dict(GUIDANCE).items():
        monkeypatch.setitem(
            GUIDANCE,
            name,
            lambda f, c, w, name=name, plain=plain: (used.append((name, w)), plain(f, c, w))[1],
        )
    words = ["sample", "run", "-n", "5", "--condition", "4", "--guidance", "2.5"]
    main([*words, "--guidance-method", method, "-o", "a.csv"])
    assert used == [(method, 2.5)]


def test_conditions_need_a_run_that_knows_them(capsys):
    kinds(rows=40)
    main(["train", *QUICK, "--out", "plain"])
    words = ["--target", "kinds.csv", "--condition", "kind", "--condition-dropout", "0"]
    main(["train", *QUICK, *words, "--out", "sure"])
    main(["sample", "sure", "-n", "5", "--condition", "4"])
    capsys.readouterr()
    message = "--condition needs a run that was trained with --condition"
    assert message in refuse(capsys, "sample", "plain", "--condition", "1")
    message = "trained with --condition-dropout 0"
    assert message in refuse(capsys, "sample", "sure", "--condition", "4", "--guidance", "2")

"""What public functions make of what people hand them: one rule, over a table of all of them.

Arrays, lists and integers that hold the same numbers give the same result. All else is refused by
TypeError or ValueError with the name of the argument. A new function is a line in CASES.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from boundary_cases import CASES, HOST, KEY, T, X, Y, Z, field
from flowmlx import couplings, metrics, paths, solvers, torchcfm
from flowmlx.couplings import semidiscrete

pytestmark = pytest.mark.usefixtures("without_compile")

# What is handed over: from an array of MLX to the same numbers in another form, and to what cannot
# be meant.

REAL: dict[str, Callable] = {
    "a NumPy array of float64": lambda x: np.array(x, np.float64),
    "a NumPy array of float32": lambda x: np.array(x, np.float32),
    "a list": lambda x: x.tolist(),
    "a list of arrays": lambda x: list(x),
    "float16": lambda x: x.astype(mx.float16),
    "bfloat16": lambda x: x.astype(mx.bfloat16),
}
WHOLE: dict[str, Callable] = {
    "integers": lambda x: x.astype(mx.int32),
    "uint8": lambda x: x.astype(mx.uint8),
    "a NumPy array of int64": lambda x: np.array(x, np.int64),
}
SAME_LABELS: dict[str, Callable] = {
    "a NumPy array of int64": lambda x: np.array(x, np.int64),
    "a list": lambda x: x.tolist(),
    "uint8": lambda x: x.astype(mx.uint8),
}
NEVER: dict[str, Callable] = {
    "complex": lambda x: x.astype(mx.complex64),
    "complex of NumPy": lambda x: np.array(x, np.complex128),
    "None": lambda x: None,
    "text": lambda x: "x",
    "texts": lambda x: np.full(x.shape, "x"),
    "an object": lambda x: object(),
    "rows of several lengths": lambda x: [[1.0], [2.0, 3.0]],
    "no axes": lambda x: mx.array(0.5),
    "gaps": lambda x: np.ma.array(np.array(x), mask=np.arange(x.size).reshape(x.shape) == 0),
}
NO_KEY = [0, None, "0", 0.5, mx.array([0.0, 1.0]), [0, 1]]
NO_COUNT = [2.5, None, "3", -1, [1], 10**30]
NO_NUMBER = [None, "x", float("nan"), 1j, [1.0, 2.0], mx.zeros(2)]
NO_FIELD = [None, 3, "x"]
RETURNED = [None, np.zeros((3, 2)), [1.0, 2.0], "x"]


def numbers_of(result: Any) -> list[np.ndarray]:
    """All numbers of a result."""
    if isinstance(result, semidiscrete.Semidiscrete):
        result = result.potential
    if isinstance(result, couplings.OfMeanCost | str):
        return []
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, tuple | list):
        return [array for part in result for array in numbers_of(part)]
    if result is None:
        return []
    if isinstance(result, mx.array) and result.dtype == mx.bfloat16:
        result = result.astype(mx.float32)
    return [np.asarray(result)]


def alike(a: Any, b: Any, tolerance: float) -> None:
    a, b = numbers_of(a), numbers_of(b)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def refused(call: Callable, name: str, given: dict) -> None:
    """A refusal that names the argument."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**given)
    assert re.search(rf"\b{re.escape(name.rstrip('_'))}\b", str(caught.value)), (name, caught.value)
    assert re.search("expected|write|pass", str(caught.value))
    for foreign in ("incompatible function arguments", "PEP 3118", "[eval]", "bad_cast"):
        assert foreign not in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_in_another_form_give_the_same_result(name):
    case = CASES[name]
    expected = case.call(**case.given)
    for argument in case.points.split():
        x = case.given[argument]
        for kind, convert in {**REAL, **WHOLE}.items():
            coarse = kind in ("float16", "bfloat16")
            if (coarse and name in ADAPTIVE) or (case.trees and kind == "a list of arrays"):
                continue  # see the tests of tolerances
            tolerance = (0.1 if kind == "bfloat16" else 2e-2) if coarse else 1e-5
            alike(case.call(**case.given | {argument: convert(x)}), expected, tolerance)
    for argument in case.times.split():
        t = case.given[argument]
        for convert in REAL.values():
            alike(case.call(**case.given | {argument: convert(t)}), expected, 2e-2)
    for argument in case.labels.split():
        for convert in SAME_LABELS.values():
            alike(
                case.call(**case.given | {argument: convert(case.given[argument])}), expected, 1e-5
            )
    for argument in case.numbers.split():
        if argument in case.given:
            number = np.float32(case.given[argument])
            for convert in (np.float32, np.array, mx.array, float):
                alike(case.call(**case.given | {argument: convert(number)}), expected, 1e-4)
    for argument in case.counts.split():
        alike(case.call(**case.given | {argument: np.int32(case.given[argument])}), expected, 1e-5)
    if "key" in case.given:
        alike(case.call(**case.given | {"key": np.array(KEY)}), expected, 1e-5)


ADAPTIVE = {
    "sampling.sample",
    "sampling.reflow_pairs",
    "solvers.odeint dopri5",
    "solvers.odeint_per_sample",
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_meant_is_refused_by_its_name(name):
    case = CASES[name]
    for argument in [*case.points.split(), *case.times.split(), *case.labels.split()]:
        for kind, convert in NEVER.items():
            if (kind == "None" and argument in case.optional.split()) or (
                kind == "no axes" and argument in case.scalars.split()
            ):
                continue
            refused(case.call, argument, case.given | {argument: convert(case.given[argument])})
    if "key" in case.given:
        for key in NO_KEY:
            if not (key is None and "key" in case.optional.split()):
                refused(case.call, "key", case.given | {"key": key})
    for wrong, arguments in ((NO_COUNT, case.counts), (NO_NUMBER, case.numbers)):
        for argument in arguments.split():
            for value in wrong:
                if not (value is None and argument in case.optional.split()):
                    refused(case.call, argument, case.given | {argument: value})
    for argument in case.fields.split():
        for value in NO_FIELD:
            if value is None and argument in case.optional.split():
                continue
            refused(case.call, argument, case.given | {argument: value})


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.fields])
def test_what_a_function_of_the_user_returns_is_checked(name):
    case = CASES[name]
    for argument in case.fields.split():
        for value in RETURNED:
            given = case.given | {argument: lambda *args, value=value, **kwargs: value}
            with pytest.raises((TypeError, ValueError), match=r"returned|the value of"):
                case.call(**given)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.points and case.empty]
)
def test_no_rows_are_an_empty_result_or_refused(name):
    """Empty where each row has a result of its own; refused where rows are compared or averaged."""
    case = CASES[name]
    rows = {**dict.fromkeys(case.points.split()), **dict.fromkeys(case.labels.split())}
    batch = case.given[case.points.split()[0]].shape[0]
    for argument, value in case.given.items():
        if isinstance(value, mx.array) and value.shape[:1] == (batch,) and argument != "key":
            rows[argument] = None
    given = case.given | {argument: case.given[argument][:0] for argument in rows}
    if case.empty == HOST:
        refused(case.call, case.points.split()[0], given)
    else:
        for array in numbers_of(case.call(**given)):
            assert array.size == 0 or np.isfinite(array).all()


def test_times_that_no_type_holds():
    for ts in ([0.0, 1e308], [-1e308, 1e308], [0.0, float("inf")]):
        refused(functools.partial(solvers.odeint, field, X), "ts", {"ts": ts})
    wide = {"x0": [[1e308, 0.0]], "x1": [[0.0, 0.0]]}
    refused(functools.partial(paths.Linear().sample, t=0.5, key=KEY), "x0", wide)


def test_times_on_the_host_are_on_the_path():
    for t in (7, -0.5, [0.5, 2.0, 0.5], np.array(1.5)):
        refused(functools.partial(paths.Linear().sample, X, Y, key=KEY), "t", {"t": t})
        if np.ndim(t):
            matcher = torchcfm.ConditionalFlowMatcher()
            refused(
                functools.partial(matcher.sample_location_and_conditional_flow, X, Y), "t", {"t": t}
            )


def test_gradients_go_through_what_is_converted():
    """To numbers in a list and to parameters of a path, not only to arrays."""

    def through_a_list(a):
        return paths.Linear().sample([[a, 2 * a]], [[1.0, 0.0]], 0.25, key=KEY).xt.sum()

    def through_sigma(sigma):
        return paths.Linear(sigma).point(X, Y, T, Z).xt.sum()

    assert mx.grad(through_a_list)(mx.array(2.0)).item() == pytest.approx(3 * 0.75)
    assert mx.grad(through_sigma)(mx.array(0.5)).item() == pytest.approx(Z.sum().item())


def test_conversions_are_traced():
    """Inside vmap checks look at types and shapes alone; what is needed on the host is said."""
    keys = mx.random.split(KEY, 3)
    drawn = mx.vmap(lambda x, key: paths.Linear(1.0).sample(x, Y, 0.5, key=key).xt)(
        mx.stack([X, X, X]), keys
    )
    one_by_one = [paths.Linear(1.0).sample(X, Y, 0.5, key=key).xt for key in keys]
    np.testing.assert_allclose(drawn, mx.stack(one_by_one), rtol=1e-6)
    for on_host in (couplings.exact_ot, metrics.energy_distance):
        with pytest.raises(ValueError, match=r"\bx0? is traced .*outside"):
            mx.vmap(lambda x, on_host=on_host: mx.array(on_host(x, Y)))(mx.stack([X, X]))

"""Order conditions of every table in exact arithmetic (Hairer, Norsett & Wanner I, II.2)."""

from fractions import Fraction
from functools import cache
from math import prod

import pytest

from flowmlx.solvers import METHODS
from flowmlx.solvers.tableaus import BOSH3, Tableau

TABLEAUS = {name: m for name, m in METHODS.items() if isinstance(m, Tableau)}
EMBEDDED = {name: m for name, m in TABLEAUS.items() if m.error is not None}
DENSE = {name: m for name, m in TABLEAUS.items() if m.dense is not None}

# Tables published as rational numbers are exact; Tsitouras prints sixteen decimals.
EXACT = dict.fromkeys(TABLEAUS, 0) | {"tsit5": Fraction(1, 10**13)}


@cache
def forests(size, largest):
    """Tuples of trees with `size` vertices in all, the largest first; some more than once."""
    if size == 0:
        return [()]
    return [
        (tree, *rest)
        for n in range(1, min(size, largest) + 1)
        for tree in trees(n)
        for rest in forests(size - n, n)
    ]


@cache
def trees(order):
    """All rooted trees with `order` vertices, each the sorted tuple of its root's branches."""
    unique = {tuple(sorted(forest, key=str)) for forest in forests(order - 1, order - 1)}
    return sorted(unique, key=str)


def order_of(tree):
    return 1 + sum(map(order_of, tree))


def density(tree):
    return order_of(tree) * prod(map(density, tree))


def weights(tableau, tree):
    """Elementary weight of the tree at every stage."""
    branches = [weights(tableau, branch) for branch in tree]
    inner = [
        [sum((a * w for a, w in zip(row, b, strict=False)), Fraction(0)) for row in tableau.a]
        for b in branches
    ]
    return [prod((b[i] for b in inner), start=Fraction(1)) for i in range(tableau.stages)]


def residual(tableau, b, tree):
    phi = weights(tableau, tree)
    return abs(sum(p * q for p, q in zip(b, phi, strict=True)) - Fraction(1, density(tree)))


def worst(tableau, b, order):
    return max(residual(tableau, b, tree) for tree in trees(order))


def test_number_of_trees():
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("name", TABLEAUS)
def test_solution_has_the_stated_order_and_no_more(name):
    tableau = TABLEAUS[name]
    for order in range(1, tableau.order + 1):
        assert worst(tableau, tableau.b, order) <= EXACT[name]
    assert worst(tableau, tableau.b, tableau.order + 1) > Fraction(1, 10**5)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_solution_has_the_stated_order_and_no_more(name):
    tableau = EMBEDDED[name]
    embedded = [b - e for b, e in zip(tableau.b, tableau.error, strict=True)]
    for order in range(1, tableau.error_order + 1):
        assert worst(tableau, embedded, order) <= EXACT[name]
    assert worst(tableau, embedded, tableau.error_order + 1) > Fraction(1, 10**5)


@pytest.mark.parametrize("name", DENSE)
def test_dense_output_has_the_stated_order(name):
    """sum_i b_i(theta) phi_i(tree) = theta^order / density, power by power."""
    tableau = DENSE[name]
    for order in range(1, tableau.dense_order + 1):
        for tree in trees(order):
            phi = weights(tableau, tree)
            for power in range(1, len(tableau.dense[0]) + 1):
                total = sum(row[power - 1] * p for row, p in zip(tableau.dense, phi, strict=True))
                expected = Fraction(1, density(tree)) if power == order else 0
                assert abs(total - expected) <= 100 * EXACT[name]


@pytest.mark.parametrize("name", TABLEAUS)
def test_first_same_as_last(name):
    assert TABLEAUS[name].fsal == (name in ("bosh3", "dopri5", "tsit5"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": (Fraction(0), Fraction(1, 3), Fraction(3, 4), Fraction(1))}, "sum of row 1 of a"),
        ({"b": (Fraction(1), Fraction(0), Fraction(0), Fraction(1, 9))}, "sum of b"),
        ({"error": (Fraction(1), Fraction(0), Fraction(0), Fraction(0))}, "error weights"),
        ({"dense": ((Fraction(1),),) * 4}, "dense weight 0"),
    ],
)
def test_contradictory_numbers_are_refused(change, message):
    fields = {
        name: getattr(BOSH3, name) for name in ("order", "c", "a", "b", "error", "error_order")
    }
    with pytest.raises(ValueError, match=message):
        Tableau(**(fields | change))

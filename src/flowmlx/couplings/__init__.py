"""Couplings: which source point meets which data point.

A coupling is a function `(x0, x1, *, key) -> (i, j)`, two index arrays: pair k joins x0[i[k]] and
x1[j[k]]. Indices instead of points let labels and other columns follow by gathering. Between n and
m points there are max(n, m) pairs (`partial` makes fewer).

Transport plans, for which a cost is a squared Euclidean distance, are computed by NumPy and SciPy
on the host. Such a coupling is a `HostCoupling`, and `training.paired_batches` runs it ahead of the
training step. It refuses points that are not finite with a ValueError.
"""

from collections.abc import Callable

from flowmlx.couplings.conditions import check_weight, condition_coordinates, conditional
from flowmlx.couplings.entropic import OfMeanCost, schroedinger, sinkhorn, unbalanced
from flowmlx.couplings.host import Coupling, HostCoupling, Pairs, Points, on_host, required
from flowmlx.couplings.minibatch import exact_ot, independent, partial
from flowmlx.names import look_up
from flowmlx.transport.costs import check_finite, squared_distances

__all__ = [
    "COUPLINGS",
    "SIGMA_COUPLINGS",
    "Coupling",
    "HostCoupling",
    "OfMeanCost",
    "Pairs",
    "Points",
    "by_name",
    "check_finite",
    "check_weight",
    "condition_coordinates",
    "conditional",
    "exact_ot",
    "independent",
    "on_host",
    "partial",
    "required",
    "schroedinger",
    "sinkhorn",
    "squared_distances",
    "unbalanced",
]

COUPLINGS: dict[str, Coupling] = {
    "independent": independent,
    "exact_ot": exact_ot,
    "sinkhorn": sinkhorn(),
    "unbalanced": unbalanced(),
    "partial": partial(),
}

# Couplings that are made for a path's sigma.
SIGMA_COUPLINGS: dict[str, Callable[[float], HostCoupling]] = {"schroedinger": schroedinger}


def by_name(name: str, sigma: float) -> Coupling:
    """The coupling of that name in COUPLINGS or SIGMA_COUPLINGS, for a path with `sigma`.

    Raises ValueError for another name.
    """
    found: Callable = look_up({**COUPLINGS, **SIGMA_COUPLINGS}, name, "coupling")
    return found(sigma) if name in SIGMA_COUPLINGS else found

"""Couplings that respect the conditions of the data, such as class labels."""

import math

import numpy as np

from flowmlx.couplings.host import HostCoupling, Pairs
from flowmlx.couplings.minibatch import exact_ot
from flowmlx.solvers.arrays import as_rows, check_number
from flowmlx.transport.costs import flat_rows


def conditional(coupling: HostCoupling = exact_ot, *, weight: float = math.inf) -> HostCoupling:
    """Make `coupling` respect conditions y of the data: the cost becomes cost + weight |y0 - y1|^2.

    With a coupling that ignores conditions, the source points in training depend on the condition,
    but in sampling they do not (Cheng & Schwing 2025, arXiv 2503.10636; Kerrigan et al. 2024, arXiv
    2404.04240). So, before pairing, x0[k] is given the condition of x1[k], and pairs of different
    conditions cost more. The conditions of x1 are a third argument of the coupling. Integers (n,)
    are class labels: |y0 - y1|^2 is 1 if they differ, else 0. Other numbers (n, ...) are used as
    they are, so scale them to about 1 (for a cosine distance, to length 1).

    With an infinite weight, only points of equal condition are paired: use it for labels. For
    numbers, start with 10 to 100 times the squared distances. Raises TypeError for a coupling that
    is not a `HostCoupling`; ValueError for a weight that is not positive and, when called, for
    batches or conditions of different sizes.
    """
    if not isinstance(coupling, HostCoupling) or coupling.conditional:
        raise TypeError(
            f"cannot make {coupling} conditional; give a coupling by optimal transport, such as "
            "exact_ot or sinkhorn(). independent needs none: its pairs respect conditions"
        )
    weight = check_weight(weight)

    def pair(x0, x1, condition, *, rng: np.random.Generator | None) -> Pairs:
        if not len(x0) == len(x1) == len(condition):
            raise ValueError(
                f"x0 has {len(x0)} samples, x1 {len(x1)} and its conditions {len(condition)}; "
                "expected equal numbers, as x0[k] gets the condition of x1[k]"
            )
        y = condition_coordinates(condition)
        if weight < math.inf:
            x0, x1 = (np.hstack([flat_rows(x), math.sqrt(weight) * y]) for x in (x0, x1))
            return coupling.pair(x0, x1, rng=rng)
        _, kinds = np.unique(y, axis=0, return_inverse=True)
        members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
        pairs = [coupling.pair(x0[k], x1[k], rng=rng) for k in members]
        i, j = (
            np.concatenate([k[chosen] for k, chosen in zip(members, side, strict=True)])
            for side in zip(*pairs, strict=True)
        )
        return i, j

    return HostCoupling(pair, conditional=True)


def check_weight(weight: float) -> float:
    """Refuse what is no weight of conditions."""
    return check_number(weight, "weight", "a number above 0, or math.inf", lambda w: w > 0)


def condition_coordinates(condition: np.ndarray) -> np.ndarray:
    """Conditions as points (n, k) whose squared distances enter the cost; labels are 1 apart."""
    condition = as_rows(condition, "condition")
    if condition.ndim == 1 and condition.dtype.kind in "biu":
        _, labels = np.unique(condition, return_inverse=True)
        return np.eye(labels.max() + 1)[labels] / math.sqrt(2)
    y = flat_rows(condition)
    if not np.isfinite(y).all():
        raise ValueError("the conditions contain NaN or infinity; clean the data first")
    return y

"""What is compared: methods, problems, sizes, and the numbers that were published."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx import couplings
from flowmlx.couplings import Coupling
from flowmlx.data.toy import eight_gaussians, moons, normal, s_curve
from flowmlx.experiment import options
from flowmlx.paths import PATHS, AffinePath


class Protocol(NamedTuple):
    """How large a run is: training steps, training points, and test points of an end."""

    steps: int
    training: int
    test: int


FULL, QUICK = Protocol(20_000, 10_000, 10_000), Protocol(1_000, 2_000, 1_000)


class Method(NamedTuple):
    """A path, a coupling, and whether a score is trained as well."""

    path: AffinePath
    coupling: Coupling
    score: bool = False


def _method(name: str, sigma: float, *, coupling: str | None = None) -> Method:
    """A method of the command by its name, with another coupling where one is given."""
    chosen = options.METHODS[name]
    pairs = couplings.by_name(coupling or chosen.coupling, sigma)
    return Method(PATHS[chosen.path](sigma), pairs, chosen.score)


# Neighbours with one coupling see the same pairs, which are then computed once. At sigma = 0.1 the
# entropic plan of a bridge is all but the exact one, so that SB-CFM would be as [SF]2M-exact is:
# its sigma is 1.
METHODS = {
    "I-CFM": _method("cfm", 0.1),
    "VP": _method("vp", 0.1),
    "FM": _method("fm", 0.1),
    "OT-CFM": _method("otcfm", 0.1),
    "[SF]2M": _method("sf2m", 0.1, coupling="exact_ot"),
    "SB-CFM": _method("sbcfm", 1.0),
}


def wide_moons(n: int, *, key: mx.array) -> mx.array:
    """Moons of mean 0 and standard deviation 7 on both axes."""
    std = 0.05
    # Of a point (cos a, sin a) or (1 + cos a, 1/2 + sin a) on either half circle, and the noise.
    means = 0.5, 0.25
    half = 2 / np.pi
    variances = 0.75 + std**2, 0.5 - half**2 + (half - 0.25) ** 2 + std**2
    centred = moons(n, key=key, std=std, scale=1.0, shift=0.0) - mx.array(means)
    return 7 * centred / mx.sqrt(mx.array(variances))


broad_gaussians = partial(eight_gaussians, radius=5.0, std=1.0)


def far_gaussians(n: int, *, key: mx.array) -> mx.array:
    """Eight Gaussians of radius 12 and standard deviation 1.5."""
    return eight_gaussians(n, key=key, radius=12.0, std=1.5)


# name -> generators of source and target
PROBLEMS: dict[str, tuple[Callable[..., mx.array], Callable[..., mx.array]]] = {
    "N->8gaussians": (normal, broad_gaussians),
    "moons->8gaussians": (wide_moons, far_gaussians),
    "8gaussians->moons": (broad_gaussians, moons),
    "N->moons": (normal, moons),
    "N->scurve": (normal, s_curve),
}


# Mean and standard deviation, or the mean alone, from Tong et al. 2024 (arXiv 2307.03672, table 2).
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "w2": {
        "N->8gaussians": {
            "I-CFM": (0.373, 0.103), "FM": (0.343, 0.058), "OT-CFM": (0.303, 0.043),
            "[SF]2M": (0.275, 0.058),
        },
        "moons->8gaussians": {
            "I-CFM": (1.557, 0.407), "OT-CFM": (0.601, 0.027), "[SF]2M": (0.726, 0.137),
        },
        "N->moons": {
            "I-CFM": (0.178, 0.014), "FM": (0.209, 0.055), "OT-CFM": (0.130, 0.016),
            "[SF]2M": (0.124, 0.023),
        },
        "N->scurve": {
            "I-CFM": (0.242, 0.141), "FM": (0.198, 0.037), "OT-CFM": (0.144, 0.028),
            "[SF]2M": (0.128, 0.005),
        },
    },
    "npe": {
        "N->8gaussians": {"I-CFM": (0.202,), "OT-CFM": (0.031,)},
        "moons->8gaussians": {"I-CFM": (2.680,), "OT-CFM": (0.015,)},
        "N->moons": {"I-CFM": (0.891,), "OT-CFM": (0.083,)},
        "N->scurve": {"I-CFM": (0.856,), "OT-CFM": (0.027,)},
    },
}  # fmt: skip


class Cell(NamedTuple):
    """One method on one problem with one seed."""

    problem: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """A file name."""
        letters = (c if c.isalnum() else "-" for c in f"{self.problem}-{self.method}-{self.seed}")
        return "".join(letters).strip("-").replace("--", "-")


def cells(seeds: Iterable[int]) -> Iterator[Cell]:
    """All cells, seed by seed. Methods with a Gaussian source of their own take no other."""
    for seed in seeds:
        for problem, (source, _) in PROBLEMS.items():
            for name, method in METHODS.items():
                if source is normal or not method.path.gaussian_source:
                    yield Cell(problem, name, seed)

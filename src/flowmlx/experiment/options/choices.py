"""Names that options choose from, and what they stand for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flowmlx.couplings import COUPLINGS, SIGMA_COUPLINGS
from flowmlx.couplings.semidiscrete import FITTED_COUPLINGS
from flowmlx.guidance import GUIDANCE
from flowmlx.likelihood import DIVERGENCES
from flowmlx.losses import TARGETS, WEIGHTS
from flowmlx.nets.activations import ACTIVATIONS
from flowmlx.nets.mlp import TIME_EMBEDDINGS
from flowmlx.paths import PATHS
from flowmlx.sampling import SAMPLERS
from flowmlx.solvers import GRIDS, SDE_METHODS
from flowmlx.times import TIME_SAMPLERS
from flowmlx.training import SCHEDULES


class Method(NamedTuple):
    """Names of a path and a coupling, and whether a score is trained beside the velocity."""

    path: str
    coupling: str
    score: bool = False


METHODS = {
    "cfm": Method("linear", "independent"),
    "vp": Method("trigonometric", "independent"),
    "fm": Method("target", "independent"),
    "otcfm": Method("linear", "exact_ot"),
    "sbcfm": Method("bridge", "schroedinger"),
    "sf2m": Method("bridge", "schroedinger", score=True),
}

# Paths from the source to the data; mirror's starts at the data.
JOINING_PATHS = {name: path for name, path in PATHS.items() if name != "mirror"}

# Solvers of the flow, and those that add noise on the way.
SOLVERS = {**SAMPLERS, **SDE_METHODS}

# Options that are a name: what the name stands for.
TABLES: dict[str, Mapping[str, Any]] = {
    "method": METHODS,
    "path": JOINING_PATHS,
    "coupling": {**COUPLINGS, **SIGMA_COUPLINGS, **FITTED_COUPLINGS},
    "prediction": TARGETS,
    "regress": TARGETS,
    "training_times": TIME_SAMPLERS,
    "loss_weight": WEIGHTS,
    "activation": ACTIVATIONS,
    "time_embedding": TIME_EMBEDDINGS,
    "lr_schedule": SCHEDULES,
    "solver": SOLVERS,
    "grid": GRIDS,
    "divergence": DIVERGENCES,
    "table": {"2d": None},
    "guidance_method": {name: GUIDANCE[name] for name in ("cfg", "cfg_zero_star")},
}

"""Toy distributions in the plane, drawn fresh at every step."""

import numpy as np

from flowmlx.data import streams
from flowmlx.data.arrays import Standardizer
from flowmlx.data.toy import TOY
from flowmlx.keys import fold_in
from flowmlx.names import look_up
from flowmlx.solvers.arrays import as_numpy
from flowmlx.spaces.ends import Rows, Source, named_source
from flowmlx.spaces.kind import Ends, Kind, Request
from flowmlx.spaces.space import Space


def read(request: Request) -> Ends:
    """The toy distribution that a request names, and as many draws as it wants to compare with."""
    draw = look_up(TOY, request.target, "target")
    train, test = (
        Rows(as_numpy(draw(request.samples, key=fold_in(request.key, name))))
        for name in ("reference", "heldout")
    )
    units = Standardizer(("x0", "x1"), np.zeros(2), np.ones(2))
    space = Space("plane", units, form="mlx")
    source = named_source(request.source, units)
    return Ends(space, source, streams.generated(draw), train, test, request.target)


def source(request: Request, space: Space) -> Source:
    """The source that a request names."""
    return named_source(request.source, space.transform)


KIND = Kind(
    takes=lambda target, time_column: isinstance(target, str) and target in TOY,
    read=read,
    source=source,
    source_name="8gaussians",
    drawn=True,
)

"""Tables: rows of numbers under the names of their columns, of a file or in memory."""

from flowmlx.data.arrays import Standardizer, form_of, split, take_columns
from flowmlx.data.conditions import ConditionColumns
from flowmlx.keys import fold_in
from flowmlx.solvers.arrays import as_numpy
from flowmlx.spaces.conditioning import UNCONDITIONAL, OnColumns
from flowmlx.spaces.ends import Rows, Source, fingerprint_of, named_source, read_rows
from flowmlx.spaces.kind import Ends, Kind, Request
from flowmlx.spaces.space import Space


def read(request: Request) -> Ends:
    """Read a table, standardise its columns, and hold out a share of its rows.

    Raises ValueError for a table without usable numbers or the columns that are wanted.
    """
    table = read_rows(request.target, request.condition)
    parts = table, *split(table, request.holdout, key=fold_in(request.key, "split"))
    conditions, points = zip(
        *(take_columns(part, request.condition) for part in parts), strict=True
    )
    # On all rows, as two rows leave one to train on, whose columns would all be constant.
    units = Standardizer.fit(points[0])
    conditioning = UNCONDITIONAL
    if request.condition:
        conditioning = OnColumns(ConditionColumns.fit(conditions[0]))
    train, test = (
        Rows(as_numpy(units.transform(x.values)), conditioning.encode(c.values))
        for x, c in zip(points[1:], conditions[1:], strict=True)
    )
    space = Space("table", units, conditioning, form=form_of(request.target))
    source = named_source(request.source, units)
    return Ends(space, source, train.stream(), train, test, fingerprint_of(table))


def source(request: Request, space: Space) -> Source:
    """The source that a request names."""
    return named_source(request.source, space.transform)


KIND = Kind(takes=lambda target, time_column: True, read=read, source=source)

"""The protocol of the kinds: what each says of its data."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from flowmlx.bridges import sample_bridge
from flowmlx.couplings import Coupling
from flowmlx.spaces.ends import Rows, Source
from flowmlx.spaces.space import Space
from flowmlx.training import paired_batches


class Request(NamedTuple):
    """The data that a run wants.

    `target`: a toy name, a file, rows in memory, or a function that draws them; `source`: such, or
    "normal". `condition`: columns that are given, not sampled. `time_column`, `leave_out`: of
    snapshots. `samples`: how many draws to compare with, where the data can be drawn at will.
    """

    target: Any
    source: Any
    holdout: float = 0.1
    condition: tuple[str, ...] = ()
    time_column: str | None = None
    leave_out: float | None = None
    samples: int = 1024
    seed: int = 0

    @property
    def key(self) -> mx.array:
        """The key that fixes what is held out."""
        return mx.random.key(self.seed)


class Data(Protocol):
    """Data that was read: rows to train on and others to measure with, in model space."""

    @property
    def space(self) -> Space:
        """How rows become points of the model."""
        ...

    @property
    def source(self) -> Source:
        """Where flows start."""
        ...

    @property
    def train(self) -> Rows:
        """Training rows, where flows end."""
        ...

    @property
    def test(self) -> Rows:
        """Held-out rows, where flows end."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells this data from other data."""
        ...

    def batches(self, coupling: Coupling, size: int, **options: Any) -> Callable[[int], Any]:
        """Training batches of `size` pairs by their step; `options`: of `paired_batches`."""
        ...

    def test_batches(
        self, coupling: Coupling, size: int, **options: Any
    ) -> Callable[[int], Any] | None:
        """The same of held-out rows; None where these cannot be paired."""
        ...

    def loss(self, loss: Callable) -> Callable:
        """The loss of these batches, from one of pairs (x0, x1)."""
        ...

    def shown(self) -> np.ndarray:
        """Rows for figures (n, dim), beside flow lines."""
        ...

    def along(self, field: Callable, solve: Callable, *, key: mx.array) -> dict[str, Any]:
        """Results on the way from the source to the data, by their name in results.json."""
        ...


class Bridge(NamedTuple):
    """How points follow a model with a score: `carry`, as `bridges.sample_bridge`.

    `shortest`: of the intervals between times at which there was data.
    """

    carry: Callable[..., Any] = sample_bridge
    shortest: float = 1.0


FORWARD = Bridge()


class Kind(NamedTuple):
    """A kind of data.

    `takes(target, time_column)`: whether a target is of this kind. `source_name`: the source where
    none is given. `read(request)`: the data. `source(request, space)`: its source alone, to sample
    a run whose data is not there. `bridge(space, leave_out)`: the way of a score. `drawn`: whether
    data is drawn anew at every step, so that there is no table of rows with columns to name.
    """

    takes: Callable[[Any, str | None], bool]
    read: Callable[[Request], Data]
    source: Callable[[Request, Space], Source]
    source_name: str = "normal"
    bridge: Callable[[Space, float | None], Bridge] = lambda space, leave_out: FORWARD
    drawn: bool = False


class Ends(NamedTuple):
    """Data that leads from a source to a target: all kinds but those of several times.

    `target`: a stream of x1, and of cond where there are conditions; `rows`: its fingerprint.
    """

    space: Space
    source: Source
    target: Callable
    train: Rows
    test: Rows
    rows: str

    @property
    def fingerprint(self) -> str:
        """Tells this data from other data."""
        return f"{self.source.fingerprint} -> {self.rows}"

    def batches(self, coupling: Coupling, size: int, **options: Any) -> Callable[[int], Any]:
        """Pairs of the source and the target."""
        return paired_batches(self.source.stream, self.target, size, coupling=coupling, **options)

    def test_batches(self, coupling: Coupling, size: int, **options: Any) -> Callable[[int], Any]:
        """Pairs of the source and held-out rows."""
        rows = self.test.stream()
        return paired_batches(self.source.stream, rows, size, coupling=coupling, **options)

    def loss(self, loss: Callable) -> Callable:
        """The loss of pairs itself."""
        return loss

    def shown(self) -> np.ndarray:
        """Held-out rows and training rows."""
        return np.concatenate([self.test.points, self.train.points])

    def along(self, field: Callable, solve: Callable, *, key: mx.array) -> dict[str, Any]:
        """Nothing: there is no data on the way."""
        return {}

"""What a trained flow keeps of its data: how rows become points of the model, and points rows."""

from dataclasses import dataclass

from flowmlx.data.arrays import Standardizer
from flowmlx.spaces.conditioning import UNCONDITIONAL, Conditioning


@dataclass(frozen=True)
class Space:
    """How rows become points of the model, and points rows.

    `kind`: a name in KINDS. `transform`: between the columns of rows and points. `times`: those of
    the snapshots, as the user counts them, from the first to the last; 0 and 1 without. `form`: in
    which rows come back, a name in `data.arrays.FORMS`.
    """

    kind: str
    transform: Standardizer
    conditioning: Conditioning = UNCONDITIONAL
    times: tuple[float, ...] = (0.0, 1.0)
    form: str = "arrow"

    @property
    def dim(self) -> int:
        """Numbers in a point."""
        return len(self.transform.modelled)

    @property
    def duration(self) -> float:
        """The user's time from the source to the data."""
        return self.times[-1] - self.times[0]

    def unit_time(self, time: float) -> float:
        """A time as the user counts it -> t, 0 at the source and 1 at the data."""
        return (time - self.times[0]) / self.duration

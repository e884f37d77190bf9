"""Training: one compiled step, and the loop around it."""

from flowmlx.training.loop import (
    SCHEDULES,
    NonFiniteLoss,
    Report,
    TrainState,
    fit,
    learning_rate,
    make_step,
    paired_batches,
)

__all__ = [
    "SCHEDULES",
    "NonFiniteLoss",
    "Report",
    "TrainState",
    "fit",
    "learning_rate",
    "make_step",
    "paired_batches",
]

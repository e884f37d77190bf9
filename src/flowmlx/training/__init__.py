"""Training: one compiled step, and the loop around it."""

from flowmlx.training.diagnosis import NonFiniteLoss
from flowmlx.training.loop import Report, fit
from flowmlx.training.pairing import paired_batches
from flowmlx.training.schedules import SCHEDULES, learning_rate
from flowmlx.training.state import EarlyStopping, TrainState
from flowmlx.training.step import make_step

__all__ = [
    "SCHEDULES",
    "EarlyStopping",
    "NonFiniteLoss",
    "Report",
    "TrainState",
    "fit",
    "learning_rate",
    "make_step",
    "paired_batches",
]

"""What a training changes: weights, their averages, the optimizer's state."""

from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_map_with_path

from flowmlx.training.copies import copy_of_module
from flowmlx.training.diagnosis import named_arrays


@dataclass
class EarlyStopping:
    """What `fit` with `patience` keeps beside the best weights, which are `TrainState.ema`.

    `average`: the moving average of now, as `ema` is without patience. `test_loss`: the least so
    far, None before the first; `step`: where it was; `waited`: reports since.
    """

    average: dict
    test_loss: float | None = None
    step: int = 0
    waited: int = 0


@dataclass
class TrainState:
    """All that training changes: weights, their moving average, optimizer state, steps done.

    `ema` has all arrays of the model, as `model.parameters()`: the averages of those that are
    trained, and of numbers that the model notes itself, such as the running statistics of
    `nn.BatchNorm`; all else, such as frozen weights, as it is in the model. With `patience` in
    `fit` they are those of the least test loss.
    """

    model: nn.Module
    optimizer: optim.Optimizer
    ema: dict = field(default_factory=dict)
    step: int = 0
    early_stopping: EarlyStopping | None = None

    def __post_init__(self):
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model is {type(self.model).__name__}; expected an mlx.nn.Module")
        self.optimizer.init(self.model.trainable_parameters())
        if not self.ema:
            trained = named_arrays(self.model.trainable_parameters())
            # Arrays of its own: the compiled step would otherwise see each weight under two names.
            own = tree_map_with_path(
                lambda name, w: w + 0 if name in trained else w, self.model.parameters()
            )
            self.ema.update(cast(dict, own))
        mx.eval(self.arrays)

    @property
    def average(self) -> dict:
        """The moving average that each step goes on with."""
        return self.ema if self.early_stopping is None else self.early_stopping.average

    @property
    def arrays(self) -> list:
        """The containers that the compiled step reads and writes."""
        return [self.model.state, self.optimizer.state, self.average]

    def averaged(self) -> nn.Module:
        """A copy of the model with the weights of `ema`, in eval mode: what to sample with.

        Training goes on without changing it. Raises TypeError for a model that keeps a function
        which holds the model itself, of which there is no copy.
        """
        model = copy_of_module(self.model)
        model.update(tree_map(mx.array, self.ema))
        return model.eval()

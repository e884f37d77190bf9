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
    """Everything that training changes: weights, averaged weights, optimizer state, steps done.

    `model`: the network, with the weights of the last step. `ema`: a tree like
    `model.parameters()`. It has moving averages of the trained arrays and of arrays that the model
    updates itself, such as the running statistics of `nn.BatchNorm`; other arrays, such as frozen
    weights, are as in the model. With `patience` in `fit`, they are those of the lowest test loss.
    `step`: number of steps done.
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
        """The current moving average, which each step updates."""
        return self.ema if self.early_stopping is None else self.early_stopping.average

    @property
    def arrays(self) -> list:
        """The containers that the compiled step reads and writes."""
        return [self.model.state, self.optimizer.state, self.average]

    def averaged(self) -> nn.Module:
        """A copy of the model with the weights of `ema`, in eval mode: use it for sampling.

        Later training does not change the copy. Raises TypeError if the model stores a function
        that refers to the model itself, since such a function cannot be copied.
        """
        model = copy_of_module(self.model)
        model.update(tree_map(mx.array, self.ema))
        return model.eval()

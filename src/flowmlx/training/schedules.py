"""Learning rates that change with the step."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from flowmlx.names import look_up
from flowmlx.solvers.arrays import check_count, check_number


def learning_rate(
    peak: float, *, steps: int, warmup_steps: int = 0, schedule: str = "constant"
) -> float | Callable[[mx.array], mx.array]:
    """Learning rate over `steps` steps: linear warm-up to `peak`, then a schedule in `SCHEDULES`.

    Raises ValueError for an unknown schedule or a warm-up longer than the run.
    """
    steps = check_count(steps, "steps", least=0)
    warmup_steps = check_count(warmup_steps, "warmup_steps", least=0)
    peak = check_number(peak, "peak", "a learning rate, such as 1e-3", lambda rate: rate >= 0)
    if not warmup_steps <= steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; expected 0 to {steps}, the run's steps")
    after = look_up(SCHEDULES, schedule, "schedule")(peak, max(steps - warmup_steps, 1))
    if warmup_steps == 0:
        return after
    warm = optim.linear_schedule(0.0, peak, warmup_steps)
    return optim.join_schedules(
        [warm, after if callable(after) else lambda _: mx.array(peak)], [warmup_steps]
    )


SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda peak, steps: peak,
    "cosine": lambda peak, steps: optim.cosine_decay(peak, steps),
}

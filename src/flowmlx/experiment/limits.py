"""What a run takes of the memory at the least, held against what this machine has.

MLX's CPU backend does not survive an allocation that fails, and Linux kills a process that fills
the memory: neither says why.
"""

import mlx.core as mx

from flowmlx.data.arrays.sources import physical_memory
from flowmlx.experiment.options import Train

# Numbers kept for each weight: itself, its gradient, its average and the two moments of AdamW.
PER_WEIGHT = 5


def check_memory(config: Train, dim: int, processes: int = 1) -> None:
    """Refuse a network, batch or sample that the memory cannot hold. Raises ValueError.

    `dim`: columns that are modelled, at least; `processes`: among which a batch is divided. On a
    GPU, whose memory is another, nothing is checked.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        return
    net, sampling = config.net, config.sampling
    batch = config.training.batch_size // processes
    times = sampling.frames if dim == 2 else 2
    numbers = {
        "--width and --depth": PER_WEIGHT * net.width * (dim + net.width * (net.depth - 1)),
        "--batch-size and --width": batch * (2 * dim + net.depth * net.width),
        "--samples and --width": sampling.samples * net.width,
        "--samples and --frames": sampling.samples * dim * times,
    }
    memory = physical_memory()
    for options, count in numbers.items():
        if 4 * count > memory:
            raise ValueError(
                f"{options} ask for {4e-9 * count:,.0f} GB of memory or more, and this machine has "
                f"{memory / 1e9:,.1f}; take less"
            )

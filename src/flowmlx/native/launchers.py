"""What launchers tell the processes that they start together, the ranks."""

import os

# The number of a rank, from 0: by mlx.launch; by mpirun of Open MPI, of MPICH and Intel.
LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def rank() -> int:
    """Which rank this process is; 0 without a launcher."""
    told = (os.environ.get(name, "") for name in LAUNCHED)
    return next((int(number) for number in told if number.isdecimal()), 0)

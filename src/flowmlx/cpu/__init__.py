"""What makes the CPU backend of MLX fast on Linux."""

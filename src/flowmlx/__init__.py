"""flowmlx: flow matching for MLX."""

"""The `flowmlx` command."""

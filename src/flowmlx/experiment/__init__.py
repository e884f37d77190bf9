"""A run: its options, what they mean, and its folder."""

"""Data: toy distributions and files of numbers."""

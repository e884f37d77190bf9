"""Data: toy distributions (`toy`, named in `TOY`) and files of numbers (`arrays`)."""

from flowmlx.data.arrays import RowWriter, Standardizer, Table, open_writer, read, split
from flowmlx.data.toy import TOY

__all__ = ["TOY", "RowWriter", "Standardizer", "Table", "open_writer", "read", "split"]

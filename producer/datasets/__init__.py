"""Data sets: a file of any usual kind, a folder, stdin, the hub or `demo`, as one lazy stream of items.

Memory is flat in the number of rows. Usage: `open_dataset`, then `validate` (a whole pass, before anything is
submitted), then `valid_items`, which reads again and leaves out what `validate` found wrong.
"""

from producer.datasets.dataset import DataSet, Row, Validation, open_dataset, valid_items, validate

__all__ = ["DataSet", "Row", "Validation", "open_dataset", "valid_items", "validate"]

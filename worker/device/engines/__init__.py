"""Engines: ids in, numbers or ids out. They know no language, no guard and no queue."""

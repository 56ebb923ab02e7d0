"""Drills that need more of a machine than the tests may ask for."""

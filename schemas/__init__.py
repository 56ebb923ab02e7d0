"""The language every part of Libra Fleet speaks: pydantic models, no I/O, no other project import."""

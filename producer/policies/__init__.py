"""Policies as files: reading them with errors that name the line, and the examples that are shipped."""

"""Builds the documentation site from the Markdown of this repository and from the code; no part of what is installed."""

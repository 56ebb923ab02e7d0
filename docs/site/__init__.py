"""Builds the documentation site from this repository's Markdown and code; no part of what is installed."""

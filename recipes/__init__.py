"""Recipes for making guards: files for `libra train`, and the maker of the bundled guard."""

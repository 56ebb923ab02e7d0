"""How guards are made: recipes for `libra train`, and the maker of the bundled guard."""

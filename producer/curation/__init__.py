"""Curation: from elements of queries to labelled rows with their provenance, in stages that can be resumed."""

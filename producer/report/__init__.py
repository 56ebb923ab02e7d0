"""A RunReport as a terminal table or JSON."""

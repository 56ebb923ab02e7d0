"""The processes of a whole fleet on one machine."""

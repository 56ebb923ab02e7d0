"""The face of Libra Fleet: what programs import and what people type."""

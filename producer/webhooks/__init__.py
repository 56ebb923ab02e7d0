"""Tells platforms what happened: signs what waits in the outbox and sends it until it is received."""

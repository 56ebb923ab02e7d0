"""The `libra` command, one module per command group; composes producer and worker."""

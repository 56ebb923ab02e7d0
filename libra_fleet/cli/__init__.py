"""The `libra` command, one module per command group; composes producer and worker."""

import sys


def start() -> None:
    """Run the `libra` command, or say how to install it: a base install holds the Python client alone."""
    try:
        from libra_fleet.cli.main import main  # noqa: PLC0415 - needs what a base install lacks
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith(("libra_fleet", "infra", "producer", "schemas", "worker")):
            raise
        sys.stderr.write("libra: the command is not installed; pip install 'libra-fleet[fleet]' brings it\n")
        sys.exit(2)
    main()

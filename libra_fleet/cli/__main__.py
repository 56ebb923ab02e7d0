"""`python -P -m libra_fleet.cli`: the `libra` command."""

from libra_fleet.cli import start

start()

"""`python -m libra_fleet.cli`: the `libra` command."""

import sys
from pathlib import Path

from libra_fleet.cli import start

# Without -P the current folder comes first on the import path, where a user's own schemas.py or worker.py would take
# our package's place and be executed. In a checkout it stays: our packages are there.
if not sys.flags.safe_path and Path(sys.path[0]).resolve() == Path.cwd() != Path(__file__).resolve().parents[2]:
    del sys.path[0]

start()

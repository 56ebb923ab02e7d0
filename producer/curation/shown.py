"""What the stages' commands have in common: their folder, and the words at their end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from libra_fleet.cli.show import say
from producer.curation.stage import path_of, rows_of

folder_argument: Final = click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


def say_done(folder: Path, names: Sequence[str], *, made: bool) -> None:
    """How many rows each file of a finished stage has."""
    for name in names:
        labels = Counter(row.get("label") or "none" for row in rows_of(folder, name))
        count, known = labels.total(), {label: n for label, n in labels.items() if label != "none"}
        split = f" ({', '.join(f'{label} {n:,}' for label, n in sorted(known.items()))})" if known else ""
        say(f"{path_of(folder, name)}: {count:,} rows{split}{'' if made else ', finished before'}")

"""CPU time of `libra --help` and of one completion in a shell: what a person pays before anything happens."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.kit.figures import Figure, median_figure

_COMPLETING = {"_LIBRA_COMPLETE": "bash_complete", "COMP_WORDS": "libra run ch", "COMP_CWORD": "2"}


def run(*, quick: bool) -> Iterator[Figure]:
    """The median of a few starts each, interpreter included."""
    runs = 3 if quick else 9
    for name, arguments, environment in (("libra --help", ["--help"], {}), ("a completion", [], _COMPLETING)):
        command = [sys.executable, "-P", "-m", "libra_fleet.cli", *arguments]
        taken = [_cpu_s(command, {**os.environ, **environment}) for _ in range(runs)]
        yield median_figure("command_help", name, taken, "core-s", at_most=0.3)


def _cpu_s(command: list[str], environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

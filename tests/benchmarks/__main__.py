"""`python -m tests.benchmarks [NAME …] [OPTION …]`: measure, show, exit 1 where a bar is missed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import tests.benchmarks
from tests.benchmarks.kit.figures import Figure, as_markdown, show
from tests.benchmarks.kit.machine import machine_facts
from tests.benchmarks.kit.processes import adopt_orphans

NAMES: Final = sorted(
    module.name
    for module in pkgutil.iter_modules(tests.benchmarks.__path__)
    if not module.ispkg and not module.name.startswith("_")
)

_ON_REQUEST: Final = {"ten_million"}
"""Run only by name: an hour or so."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)


def main() -> int:
    """Run the benchmarks that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *NAMES], help=", ".join(NAMES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and machine facts to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for a page to this file")
    parser.add_argument("--quick", action="store_true", help="fewer runs and items; the bars are the same")
    options = parser.parse_args()
    adopt_orphans()
    facts = machine_facts()
    console.print(f"{facts['cores']} cores, load {facts['load_before'][0]}, commit {facts['commit'][:10]}")
    figures = []
    for name in options.names or [name for name in NAMES if name not in _ON_REQUEST]:
        figures += _measure(name, quick=options.quick)
    if options.json:
        _write(options.json, facts, figures)
    if options.markdown:
        options.markdown.write_text(as_markdown(figures), encoding="utf-8")
    missed = [figure for figure in figures if not figure.met]
    for figure in missed:
        console.print(f"[red]missed[/]: {figure.bench}, {figure.name}: {figure.value:.4g} {figure.unit}, {figure.bar}")
    return 1 if missed else 0


def _measure(name: str, *, quick: bool) -> list[Figure]:
    module: Any = importlib.import_module(f"tests.benchmarks.{name}")
    started = time.monotonic()
    figures = []
    for figure in module.run(quick=quick):
        figures.append(figure)
        line = f"  {time.monotonic() - started:5.0f} s  {figure.name}: {figure.value:.4g} {figure.unit}"
        print(line, file=sys.stderr, flush=True)  # a benchmark runs for minutes
    console.print(f"[bold]{name}[/]: {time.monotonic() - started:.0f} s")
    show(figures, console)
    return figures


def _write(path: Path, facts: dict[str, Any], figures: list[Figure]) -> None:
    content = {
        "machine": {**facts, "load_after": [round(value, 2) for value in os.getloadavg()]},
        "figures": [figure.to_json() for figure in figures],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""The producer as a process of its own: what `libra run start` does, with a word at each step.

    python -m tests.benchmarks.kit.producing SOURCE GUARD

Prints `ready` (validated, nothing submitted), waits for a line, submits, prints `submitted`, waits for the report,
prints `done`, waits for the end of its input, so that it can be looked at before it ends. Each word is a JSON line.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from infra.ledger import intake
from infra.log import configure_logging
from infra.servers.services import services
from infra.settings import load_settings
from libra_fleet.cli.context import wait_for_end
from producer.datasets import open_dataset, valid_items, validate
from producer.intake.submit import seal, submit
from schemas.messages import Lane
from schemas.runs import RunSpec


def main(source: str, guard: str) -> None:
    """Validate, submit on command, wait for the report."""
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    with services(settings) as found, open_dataset(source) as dataset:
        found.engine  # noqa: B018 - opened before the clock runs
        before = _cpu_s()
        validation = validate(dataset)
        _say("ready", validate_cpu_s=_cpu_s() - before)
        sys.stdin.readline()
        spec = RunSpec(guard=guard, lane=Lane.BULK, source=source)
        started_at = time.time()
        run_id = intake.create_run(found.engine, spec)
        submit(found, run_id, spec, (row.item for row in valid_items(dataset, validation)))
        seal(found, run_id)
        _say("submitted", seconds=time.time() - started_at)
        wait_for_end(found.engine, run_id)
        _say("done", run=run_id, started_at=started_at, ended_at=time.time())
        sys.stdin.read()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _say(word: str, **facts: object) -> None:
    print(json.dumps({"word": word, **facts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])

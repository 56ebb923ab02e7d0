"""A stage's rows put to a guard of the fleet: one bulk run, found again by its name when the stage goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from infra.errors import RunError
from infra.ledger import intake, reading
from infra.ledger.comparing import Settled, settled_of
from infra.process import deferred_interrupt
from infra.servers.services import Services
from libra_fleet.cli.context import fleet_for
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, mode_for
from libra_fleet.cli.show import err, say
from libra_fleet.cli.watch import progress_line, wait_for_end
from producer.curation.rows import Row
from producer.intake.submit import seal, submit
from schemas.guards import Mode
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec, RunState

READ_ROWS: Final = 1_000


def ask(
    found: Services,
    fleet: LocalFleetOptions,
    guard: GuardChoice,
    items: Callable[[], Iterable[Item]],
    *,
    mode: str | None = None,
    worker_options: Sequence[str] = (),
) -> str:
    """The id of an ended run in which the guard answered all items; they are read twice.

    The run is named after guard and items, so that the same question is asked once, whatever was interrupted.

    Raises:
        RunError: somebody cancelled the run.
        DeviceError: the local fleet broke; the same command goes on.
    """
    spec = RunSpec(
        guard=guard.name,
        checkpoint=guard.checkpoint,
        mode=Mode(mode) if mode else mode_for(guard, None),
        lane=Lane.BULK,
        source="curate",
    )
    count, name = _name(spec, items())
    known = reading.find_run(found.engine, name)
    run_id = known.id if known else intake.new_run_id()
    with (
        fleet_for(found, spec, fleet, needed=not (known and known.state.ended), worker_options=worker_options) as lives,
        deferred_interrupt() as interrupted,
    ):

        def check() -> None:
            interrupted()
            lives()

        if known is None:
            intake.create_run(found.engine, spec, run_id=run_id, name=name)
        say(f"{guard.name} {'has answered' if known and known.state.ended else 'answers'} {count:,} items: run {name}")
        with progress_line(found.engine, run_id, err, total_items=count):
            if known is None or known.state is RunState.OPEN:
                submit(found, run_id, spec, items(), check=check)
                seal(found, run_id)
            status = wait_for_end(found.engine, run_id, check=check)
    if status.cancelled:
        raise RunError(f"run {name} was cancelled; after `libra purge --delete` the same command asks anew")
    return run_id


def verdicts_of(found: Services, run_id: str, item_ids: Sequence[str]) -> dict[str, Settled]:
    """How each of these items ended."""
    return {item_id: ends[0] for item_id, ends in settled_of(found.engine, run_id, item_ids).items()}


def texts_of(found: Services, run_id: str) -> Callable[[Sequence[str]], dict[str, str]]:
    """Reads what a writer wrote, by item."""

    def read(item_ids: Sequence[str]) -> dict[str, str]:
        return {item_id: end.raw for item_id, end in verdicts_of(found, run_id, item_ids).items() if end.raw}

    return read


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows as many at a time as the ledger is asked about."""
    left = iter(rows)
    return iter(lambda: list(islice(left, READ_ROWS)), [])


def _name(spec: RunSpec, items: Iterable[Item]) -> tuple[int, str]:
    digest = hashlib.blake2b(spec.model_dump_json().encode(), digest_size=8)
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007 - the last one is the number of items
        digest.update(item.id.encode() + b"\0" + item.content_hash)
    return count, f"curate-{spec.guard}-{digest.hexdigest()}"

"""`libra import`: results of the benchmark's `inference.py`, or of whatever writes its `critic` field, as a run.

Such a run is scored, reported, compared and exported like one of the fleet's own. Nothing is judged: the label is what
the benchmark's metric script reads in the text, and where it reads none the item is unparseable. No fingerprint is
pinned, since nothing is known of the guard but the name that is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import click

from infra.errors import DataError
from infra.ledger import intake, settlement
from infra.servers.services import Services
from libra_fleet.cli.context import connected, finish, prepare
from libra_fleet.cli.options import ReportOptions, takes_outlet
from libra_fleet.cli.orders import name_option
from libra_fleet.cli.show import say
from libra_fleet.cli.watch import wait_for_end
from libra_fleet.machine.local_fleet import local_fleet
from producer.datasets.critic import read_critic
from producer.datasets.raw import RawRecord, raw_records
from producer.datasets.records import RowError
from producer.intake.submit import seal
from producer.report.view import IMPORTED
from schemas.guards import Mode
from schemas.items import Item
from schemas.messages import JudgeChunk, VerdictChunk
from schemas.runs import InvalidRow, RunSpec
from schemas.verdicts import Outcome, Timings, Verdict

_CHUNK_ITEMS: Final = 64
_BAD_ROWS_SHOWN: Final = 10


class Result(NamedTuple):
    """An item, and what was written of it."""

    item: Item
    critic: str


@click.command(name="import")
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.option("--guard", required=True, metavar="NAME", help="Whose results these are.")
@name_option
@takes_outlet
def import_(*, results: Path, guard: str, name: str | None, outlet: ReportOptions) -> None:
    """Take results with a `critic` field (RESULTS: a JSONL file or a folder of them) into the ledger as a run.

    Rows must have their text and, to be scored, `label` and `source`, as inference.py writes them.
    """
    prepare(outlet)
    _check(str(results))
    spec = RunSpec(guard=guard, mode=Mode.GENERATE, source=f"{IMPORTED}{results.resolve()}")
    with connected() as found:
        run_id = intake.create_run(found.engine, spec, name=name)
        _settle_all(found, run_id, spec, str(results))
        seal(found, run_id)
        say(f"imported as run {name or run_id}")
        if found.embedded:  # nobody else may be there to write the report
            with local_fleet(found, None) as fleet:
                wait_for_end(found.engine, run_id, check=fleet.check)
        wait_for_end(found.engine, run_id)
        finish(found, run_id, outlet)


def _check(results: str) -> None:
    """Read everything once: a run of half the results would mislead.

    Raises:
        DataError: rows are no results, or two have one id.
    """
    bad: list[InvalidRow] = []
    first_at: dict[str, str] = {}
    for record in raw_records(results):
        if isinstance(record, InvalidRow):
            bad.append(record)
            continue
        try:
            item = _result(record).item
        except RowError as error:
            bad.append(InvalidRow(where=record.where, problem=str(error)))
            continue
        known = first_at.setdefault(item.id, record.where)
        if known != record.where:
            bad.append(InvalidRow(where=record.where, problem=f"duplicate id {item.id!r}, first at {known}"))
    if bad or not first_at:
        shown = [f"  {row.where}: {row.problem}" for row in bad[:_BAD_ROWS_SHOWN]]
        more = [f"  … and {len(bad) - _BAD_ROWS_SHOWN:,} more"] if len(bad) > _BAD_ROWS_SHOWN else []
        head = f"{len(bad):,} bad rows; nothing was imported:" if bad else f"{results} holds no result"
        raise DataError("\n".join([head, *shown, *more]))


def _result(record: RawRecord) -> Result:
    """The item of a row and its `critic`.

    Raises:
        RowError: the row is no item, or has no such field.
    """
    critic = record.row.get("critic")
    if not isinstance(critic, str):
        raise RowError("no text in the field critic")
    return Result(record.item(), critic)


def _settle_all(found: Services, run_id: str, spec: RunSpec, results: str) -> None:
    """Accept and settle in the same breath: nothing is queued, and nothing is left to be found lost."""
    rows = (_result(record) for record in raw_records(results) if isinstance(record, RawRecord))
    for batch in _batches(rows):
        (chunk,) = intake.accept(found.engine, run_id, spec, [[row.item for row in batch]])
        settlement.settle(found.engine, _settled(chunk, batch), retention=found.settings.retention)


def _batches(rows: Iterable[Result]) -> Iterator[list[Result]]:
    remaining = iter(rows)
    return iter(lambda: list(islice(remaining, _CHUNK_ITEMS)), [])


def _settled(chunk: JudgeChunk, batch: Sequence[Result]) -> VerdictChunk:
    verdicts = []
    for item, row in zip(chunk.items, batch, strict=True):
        label = read_critic(row.critic)
        outcome = Outcome.SCORED if label else Outcome.UNPARSEABLE
        verdicts.append(Verdict(seq=item.seq, outcome=outcome, label=label, raw=row.critic))
    return VerdictChunk(
        run_id=chunk.run_id,
        chunk_no=chunk.chunk_no,
        worker="import",
        fingerprint=None,
        timings=Timings(),
        verdicts=tuple(verdicts),
    )

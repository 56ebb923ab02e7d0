"""`libra run export` and `libra run import`: judgements as JSON lines, Parquet, or the benchmark's `critic` rows.

An imported run is scored, reported, compared and exported like one of the fleet's own. Nothing is judged: the label is
the one that the benchmark's metric script reads in the text, and where it reads none the item is unparseable. No
fingerprint is pinned, since nothing is known of the guard but the name that is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any, Final

import click

from infra.critic import WORDS, read_critic
from infra.errors import DataError, UsageError
from infra.ledger import intake, settlement, stats
from infra.ledger.items import judgement_rows
from infra.ledger.runs import run_status
from libra_fleet.cli.context import connected, wait_for_report
from libra_fleet.cli.options import ReportOptions, name_option, takes_report_options
from libra_fleet.cli.show import finish, listed_rows, prepare, say
from producer.datasets.dataset import RawRecord, bad_records, raw_records
from producer.datasets.reference_format import Judgement, critic_fields
from producer.datasets.rows import RowError
from producer.intake.submit import seal
from producer.report.view import IMPORTED
from schemas.guards import Mode
from schemas.items import Item, Label
from schemas.messages import VerdictChunk
from schemas.runs import RunSpec
from schemas.verdicts import Outcome, Timings, Verdict

_ROW_GROUP: Final = 5_000
_CHUNK_ITEMS: Final = 64

Row = dict[str, Any]


@click.command(name="export")
@click.argument("run")
@click.option("--out", "file", required=True, metavar="FILE", help="The file to write; - for standard output.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet", "critic"]),
    help="jsonl, parquet or critic. Default: by the file's suffix.",
)
@click.option("--text", is_flag=True, help="With the items' texts and the guard's own text, as far as they are kept.")
@click.option("--errors", is_flag=True, help="Only judgements that went wrong.")
def export(*, run: str, file: str, form: str | None, text: bool, errors: bool) -> None:
    """Write the judgements of a run, one row each.

    Rows are in the order of the run's items, and without their texts unless --text asks for them.
    With --format critic the rows are those of the benchmark's inference.py, for its evaluate_metrics.py to read.
    """
    form = form or ("parquet" if file.endswith(".parquet") else "jsonl")
    if form == "parquet" and file == "-":
        raise UsageError("Parquet needs a file: standard output takes jsonl or critic")
    write = _parquet_writer() if form == "parquet" else _write_lines
    with connected() as found:
        status = run_status(found.engine, run)
        rows: Iterable[Row] = judgement_rows(found.engine, status.id, mistakes_only=errors, with_text=text)
        with _sink(file) as sink:
            written = write(_critic_rows(rows) if form == "critic" else rows, sink)
        say(f"{written:,} rows written to {'standard output' if file == '-' else file}")
        if not status.state.ended:
            say(f"run {status.name} is {status.state}: these are the judgements settled so far")
        if text:
            volume = stats.volume(found.engine, status.id)
            if volume.items_with_text < volume.items:
                say(f"{volume.items - volume.items_with_text:,} of {volume.items:,} texts have been scrubbed")


@contextmanager
def _sink(file: str) -> Iterator[IO[bytes]]:
    """Open the place where the rows go; a file gets its name when it is whole."""
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as sink:
            yield sink
        part.replace(path)
    except OSError as error:
        raise UsageError(f"--out {file}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _write_lines(rows: Iterable[Row], sink: IO[bytes]) -> int:
    written = 0
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=lambda value: value.isoformat())
        sink.write(f"{line}\n".encode())
        written += 1
    return written


def _critic_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """A row per item under the benchmark's names; `critic` holds the judgement, or nothing where there is none."""
    for _, group in groupby(rows, key=lambda row: row["seq"]):
        judgements = list(group)
        item = judgements[0]
        label = WORDS[Label(item["truth"])] if item["truth"] else None
        yield {
            "id": item["id"],
            "source": item["source"],
            "category_name": item["category"],
            "sub_category_name": item["subcategory"],
            "question": item["question"],
            "response": item["response"],
            **({"messages": item["messages"]} if item["messages"] else {}),
            "label": label,
            **critic_fields(
                [Judgement(one["raw"], Label(one["label"]) if one["label"] else None) for one in judgements]
            ),
        }


def _parquet_writer() -> Callable[[Iterable[Row], IO[bytes]], int]:
    """The function that writes Parquet, a row group at a time."""
    try:
        import pyarrow as pa  # noqa: PLC0415 (an extra)
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'libra-fleet[parquet]'") from error
    words, number, fraction = pa.string(), pa.int64(), pa.float64()
    schema = pa.schema(
        [
            *(("seq", number), ("id", words), ("iteration", number)),
            *((name, words) for name in ("kind", "source", "category", "subcategory", "truth", "outcome", "label")),
            *(("p_unsafe", fraction), ("label_mass", fraction)),
            *(("categories", pa.list_(words)), ("categories_by", words), ("reason", words)),
            *(("prompt_tokens", number), ("windows", number), ("attempt", number), ("cached", pa.bool_())),
            *(("fingerprint", words), ("settled_at", pa.timestamp("us", tz="UTC"))),
            *(("question", words), ("response", words)),
            *(("messages", pa.list_(pa.struct([("role", words), ("content", words)]))), ("raw", words)),
        ]
    )

    def write(rows: Iterable[Row], sink: IO[bytes]) -> int:
        written, remaining = 0, iter(rows)
        with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            while rows_of_group := list(islice(remaining, _ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist(rows_of_group, schema=schema))
                written += len(rows_of_group)
        return written

    return write


@click.command(name="import")
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.option("--guard", required=True, metavar="NAME", help="Name of the guard whose results these are.")
@name_option
@takes_report_options
def import_(*, results: Path, guard: str, name: str | None, report_options: ReportOptions) -> None:
    """Import results with a `critic` field as a run.

    RESULTS is a JSONL file or a folder of them. Rows must have their text and, to be scored, `label` and `source`, as
    inference.py writes them.
    """
    prepare(report_options)
    bad, count = bad_records(raw_records(str(results)), needs=lambda record: _result(record)[0])
    if bad:  # a run of half the results would mislead
        raise DataError(listed_rows(f"{len(bad):,} bad rows; nothing was imported:", bad))
    if not count:
        raise DataError(f"{results} holds no result")
    spec = RunSpec(guard=guard, mode=Mode.GENERATE, source=f"{IMPORTED}{results.resolve()}")
    with connected() as found:
        run_id = intake.create_run(found.engine, spec, name=name)
        rows = (_result(record) for record in raw_records(str(results)) if isinstance(record, RawRecord))
        while batch := list(islice(rows, _CHUNK_ITEMS)):  # nothing is queued, and nothing is left to be found lost
            (chunk,) = intake.accept(found.engine, run_id, spec, [[item for item, _ in batch]])
            verdicts = []
            for item, (_, critic) in zip(chunk.items, batch, strict=True):
                label = read_critic(critic)
                outcome = Outcome.SCORED if label else Outcome.UNPARSEABLE
                verdicts.append(Verdict(seq=item.seq, outcome=outcome, label=label, raw=critic))
            settled = VerdictChunk(
                run_id=chunk.run_id,
                chunk_no=chunk.chunk_no,
                worker="import",
                fingerprint=None,
                timings=Timings(),
                verdicts=tuple(verdicts),
            )
            settlement.settle(found.engine, settled, retention=found.settings.retention)
        seal(found, run_id)
        say(f"imported as run {name or run_id}")
        wait_for_report(found, run_id)
        finish(found, run_id, report_options)


def _result(record: RawRecord) -> tuple[Item, str]:
    """The item of a row and its `critic`."""
    critic = record.row.get("critic")
    if not isinstance(critic, str):
        raise RowError("no text in the field critic")
    return record.item(), critic

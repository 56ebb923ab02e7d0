"""`libra export`: a run's judgements as JSON lines, Parquet, or the benchmark's own `critic` rows; streamed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any, Final

import click

from infra.errors import UsageError
from infra.ledger import evidence, reading
from infra.ledger.exporting import judgement_rows
from libra_fleet.cli.context import connected
from libra_fleet.cli.show import say
from producer.datasets.critic import WORDS, Judgement, critic_fields
from schemas.items import Label

_ROW_GROUP: Final = 5_000

Row = dict[str, Any]


class Form(StrEnum):
    """What the rows look like."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    CRITIC = "critic"
    """The benchmark's `outputs/*.jsonl`: its record with the field that its metric script reads."""


@click.command(name="export")
@click.argument("run")
@click.option("--out", "file", required=True, metavar="FILE", help="The file to write; - for standard output.")
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in Form]),
    help="jsonl, parquet or critic. Default: by the file's suffix.",
)
@click.option("--text", is_flag=True, help="With the items' texts and what the guard wrote, as far as they are kept.")
@click.option("--errors", is_flag=True, help="Only judgements that went wrong.")
def export(*, run: str, file: str, form: str | None, text: bool, errors: bool) -> None:
    """Write the judgements of a run, one row each, in the order of its items; texts only if asked for.

    With --format critic the rows are those of the benchmark's inference.py, for its evaluate_metrics.py to read.
    """
    chosen = Form(form) if form else _form_of(file)
    if chosen is Form.PARQUET and file == "-":
        raise UsageError("Parquet needs a file: standard output takes jsonl or critic")
    write = _parquet_writer() if chosen is Form.PARQUET else _write_lines
    with connected() as found:
        status = reading.run_status(found.engine, run)
        rows: Iterable[Row] = judgement_rows(found.engine, status.id, mistakes_only=errors, with_text=text)
        with _outcome(file) as sink:
            written = write(_critic_rows(rows) if chosen is Form.CRITIC else rows, sink)
        say(f"{written:,} rows written to {'standard output' if file == '-' else file}")
        if not status.state.ended:
            say(f"run {status.name} is {status.state}: these are the judgements settled by now")
        if text:
            volume = evidence.volume(found.engine, status.id)
            if volume.items_with_text < volume.items:
                say(f"{volume.items - volume.items_with_text:,} of {volume.items:,} texts have been scrubbed")


def _form_of(file: str) -> Form:
    return Form.PARQUET if file.endswith(".parquet") else Form.JSONL


@contextmanager
def _outcome(file: str) -> Iterator[IO[bytes]]:
    """Where the rows go; a file gets its name when it is whole.

    Raises:
        UsageError: it cannot be written.
    """
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
        sink.write(f"{json.dumps(row, ensure_ascii=False, allow_nan=False, default=_moment)}\n".encode())
        written += 1
    return written


def _moment(value: Any) -> str:
    return str(value.isoformat())


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
            "label": label,
            **critic_fields(
                [Judgement(one["raw"], Label(one["label"]) if one["label"] else None) for one in judgements]
            ),
        }


def _parquet_writer() -> Callable[[Iterable[Row], IO[bytes]], int]:
    """What writes Parquet, a row group at a time.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 (an extra)
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'libra-fleet[parquet]'") from error
    words, number, fraction = pa.string(), pa.int64(), pa.float64()
    schema = pa.schema(
        [
            *(("seq", number), ("id", words), ("iteration", number)),
            *((name, words) for name in ("source", "category", "subcategory", "truth", "outcome", "label")),
            *(("p_unsafe", fraction), ("label_mass", fraction), ("categories", pa.list_(words)), ("reason", words)),
            *(("prompt_tokens", number), ("windows", number), ("attempt", number), ("cached", pa.bool_())),
            *(("fingerprint", words), ("settled_at", pa.timestamp("us", tz="UTC"))),
            *((name, words) for name in ("question", "response", "raw")),
        ]
    )

    def write(rows: Iterable[Row], sink: IO[bytes]) -> int:
        written = 0
        with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            for rows_of_group in _batches(rows):
                writer.write_table(pa.Table.from_pylist(rows_of_group, schema=schema))
                written += len(rows_of_group)
        return written

    return write


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    return iter(lambda: list(islice(remaining, _ROW_GROUP)), [])

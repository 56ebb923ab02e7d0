"""`libra metrics`: a drop-in for the benchmark's `evaluate_metrics.py` over files with the `critic` field.

The script leaves out ids that it does not know, says nothing of those that are missing and counts duplicates
twice. Here each of them is reported, and an id counts once: its first row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from infra.errors import DataError
from infra.metrics import Judged, measure
from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import print_report
from producer.datasets.critic import read_critic
from producer.datasets.raw import RawRecord, raw_records
from producer.datasets.records import RowError, to_item
from schemas.guards import Mode
from schemas.items import Label
from schemas.runs import InvalidRow, RunCounts, RunReport, RunSpec, RunState
from schemas.verdicts import Outcome

_LISTED: Final = 1000


class _Truth(NamedTuple):
    """What the label file says of an id."""

    label: Label | None
    source: str
    category: str
    subcategory: str


class Evaluation(NamedTuple):
    """Predictions beside their labels, and what did not fit."""

    rows: list[Judged]
    problems: list[InvalidRow]
    missing: int


@click.command()
@click.option(
    "--predict_root",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder (or file) of JSON lines with `id` and `critic`.",
)
@click.option(
    "--label_path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The labelled set: JSON, JSONL or Parquet with `id`, `label`, `source`.",
)
@json_option
def metrics(*, predict_root: Path, label_path: Path, as_json: bool) -> None:
    """Print the benchmark's metrics of predictions in files; options as of its evaluate_metrics.py."""
    evaluation = evaluate(str(predict_root), str(label_path))
    print_report(report_of(evaluation, str(predict_root), str(label_path)), as_json=as_json)


def evaluate(predict_root: str, label_path: str) -> Evaluation:
    """Join predictions with labels by id.

    Raises:
        DataError: a file cannot be read, or no prediction has a label.
    """
    problems: list[InvalidRow] = []
    truths = _truths(label_path, problems)
    rows: list[Judged] = []
    first_at: dict[str, str] = {}
    for record in _good(raw_records(predict_root), problems):
        known = truths.get(record.id)
        if record.id in first_at:
            problem = f"duplicate prediction of id {record.id!r}, first at {first_at[record.id]}"
        elif known is None:
            problem = f"id {record.id!r} is not in the label file"
        else:
            problem = ""
            first_at[record.id] = record.where
            rows.append(_judged(record, known))
        if problem:
            problems.append(InvalidRow(where=record.where, problem=problem))
    if not rows:
        raise DataError(f"{predict_root}: no prediction has a label in {label_path}")
    missing = [name for name in truths if name not in first_at]
    problems += [InvalidRow(where=label_path, problem=f"id {name!r} has no prediction") for name in missing]
    return Evaluation(rows, problems, len(missing))


def report_of(evaluation: Evaluation, predict_root: str, label_path: str) -> RunReport:
    """The evaluation as a run's report: what is missing counts as pending."""
    unparseable = sum(row.outcome is Outcome.UNPARSEABLE for row in evaluation.rows)
    judged = len(evaluation.rows)
    return RunReport(
        run_id="of files",
        name=predict_root,
        state=RunState.COMPLETE,
        spec=RunSpec(guard="predictions", mode=Mode.GENERATE, source=label_path),
        counts=RunCounts(
            accepted=judged + evaluation.missing,
            settled=judged,
            scored=judged - unparseable,
            unparseable=unparseable,
            dead=0,
            pending=evaluation.missing,
        ),
        groups=measure(evaluation.rows),
        invalid_rows=tuple(evaluation.problems[:_LISTED]),
        invalid_count=len(evaluation.problems),
    )


def _truths(label_path: str, problems: list[InvalidRow]) -> dict[str, _Truth]:
    truths: dict[str, _Truth] = {}
    for record in _good(raw_records(label_path), problems):
        try:
            # A label file need not repeat the text.
            item = to_item({**record.row, "response": "-"}, record.fallback_id)
        except RowError as error:
            problems.append(InvalidRow(where=record.where, problem=str(error)))
            continue
        if item.id in truths:
            problems.append(InvalidRow(where=record.where, problem=f"duplicate label of id {item.id!r}"))
        truths.setdefault(item.id, _Truth(item.truth, item.source, item.category, item.subcategory))
    return truths


def _good(records: Iterator[RawRecord | InvalidRow], problems: list[InvalidRow]) -> Iterator[RawRecord]:
    for record in records:
        if isinstance(record, RawRecord):
            yield record
        else:
            problems.append(record)


def _judged(record: RawRecord, truth: _Truth) -> Judged:
    label = read_critic(record.row.get("critic"))
    return Judged(
        source=truth.source,
        category=truth.category,
        subcategory=truth.subcategory,
        truth=truth.label,
        outcome=Outcome.SCORED if label else Outcome.UNPARSEABLE,
        label=label,
        p_unsafe=None,
    )

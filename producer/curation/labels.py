"""Rows with labels: agreement of two judges, public sets as published, hard examples from the ledger.

A judged item is a hard example for a reason of its own: the guard was hardly sure, guards disagree, a human overruled
it, or it missed a label that was known.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from infra.errors import DataError
from infra.ledger.items import Candidate, Ending
from producer.curation.files import Placed
from producer.curation.grammar import frames
from producer.curation.rows import Provenance, Row, labelled, new_row
from producer.datasets.dataset import raw_records
from producer.datasets.rows import RowError
from schemas.items import Item, Label
from schemas.runs import InvalidRow

_PUBLIC_SETS: Final = {
    "COLD/": ("thu-coai/COLDataset", "Apache-2.0"),
    "jade-db": ("whitzard-ai/jade-db", "MIT"),
}
"""Origin and licence of public sets, by the beginning of their records' `source`."""


class Reason(StrEnum):
    """A reason why an item is a hard example."""

    SMALL_MARGIN = "small_margin"
    GUARDS_DISAGREE = "guards_disagree"
    HUMAN_OVERRULED = "human_overruled"
    LABEL_MISSED = "label_missed"


def agreed(
    rows: Sequence[Row], verdicts: Mapping[str, Mapping[str, Ending]], kept: str, dropped: str
) -> Iterator[Placed]:
    """Each row for the file `kept`, labelled, if all judges gave one label; else for `dropped`, with their verdicts.

    `verdicts`: by judge and row id.
    """
    for row in rows:
        said = {judge: by_id.get(row["id"]) for judge, by_id in verdicts.items()}
        labels = {settled.label if settled else None for settled in said.values()}
        label = labels.pop()
        if labels or label is None:
            stated = {
                judge: {"outcome": end and end.outcome.value, "label": end and end.label and end.label.value}
                for judge, end in said.items()
            }
            yield dropped, {**row, "verdicts": stated}
        else:
            judged = {**row["provenance"], "stage": "annotate"}
            yield kept, labelled({**row, "provenance": judged}, label, analysis(row, label))


def analysis(row: Row, label: Label) -> str:
    """One sentence on why, in the grammar's words; the same for the same row."""
    rng = random.Random(row["id"])  # noqa: S311 - reproducible, not a secret
    name = row["sub_category_name"] or row["category_name"] or "安全标准"
    return rng.choice(frames()[f"analysis_{label.value}"]).format(n=name)


def published_rows(source: str, origin: str | None, licence: str | None) -> Iterator[Row]:
    """A data set's labelled records; `origin` and `licence` are for sets that their records do not name.

    Public sets use an id twice for different texts: the second one gets its place in the file as a suffix.

    Raises:
        DataError: the set cannot be read, or a record in it is no item.
    """
    seen: set[str] = set()
    for record in raw_records(source):
        if isinstance(record, InvalidRow):
            raise DataError(f"{record.where}: {record.problem}")
        try:
            item = record.item()
        except RowError as error:
            raise DataError(f"{record.where}: {error}") from error
        if item.truth is None:
            continue
        known_origin, known_licence = _public_set(item.source) or (Path(source).name, "unknown")
        provenance = Provenance(origin or known_origin, licence or known_licence, "published", "real", item.id)
        row_id = f"{item.id}@{record.fallback_id}" if item.id in seen else item.id
        seen.add(item.id)
        yield _row(item.model_copy(update={"id": row_id}), item.truth, provenance)


def hard_examples(
    judged: Iterable[Candidate], *, run_name: str, guard: str, margin: float, origin: str | None, licence: str | None
) -> Iterator[Row]:
    """The hard examples of a run; the label is a human's, else the known one, else empty: then judges decide.

    `margin`: the largest distance of p_unsafe from one half that counts as small.
    """
    for found in judged:
        reasons = reasons_of(found, margin)
        if not reasons:
            continue
        known_origin, known_licence = _public_set(found.source) or (f"ledger:{run_name}", "own data")
        provenance = Provenance(
            origin=origin or known_origin,
            licence=licence or known_licence,
            generator=f"guard:{guard}",
            stage=f"select:{'+'.join(reasons)}",
            parent_id=found.item_id,
        )
        # The ledger checked it when it was accepted.
        item = Item.model_construct(
            id=f"{run_name}-{found.seq}",
            question=found.question,
            response=found.response,
            source=found.source,
            category=found.category,
            subcategory=found.subcategory,
        )
        yield _row(item, found.human or found.truth, provenance)


def reasons_of(item: Candidate, margin: float) -> list[Reason]:
    """The reasons that make an item a hard example, in the order of `Reason`; empty where none does."""
    holds = {
        Reason.SMALL_MARGIN: item.p_unsafe is not None and abs(item.p_unsafe - 0.5) <= margin,
        Reason.GUARDS_DISAGREE: item.disputed,
        Reason.HUMAN_OVERRULED: None not in (item.human, item.label) and item.human is not item.label,
        Reason.LABEL_MISSED: None not in (item.truth, item.label) and item.truth is not item.label,
    }
    return [reason for reason, holding in holds.items() if holding]


def _public_set(source: str) -> tuple[str, str] | None:
    return next((known for start, known in _PUBLIC_SETS.items() if source.startswith(start)), None)


def _row(item: Item, label: Label | None, provenance: Provenance) -> Row:
    row = new_row(item, provenance)
    return labelled(row, label, analysis(row, label)) if label else row

"""Real rows: public sets as they are published, and the hard ones among what the fleet has judged.

An item is hard for a reason of its own: the guard was hardly sure, guards disagree, a human overruled it, or it missed
a label that was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from infra.errors import DataError
from infra.ledger.hard import Judged
from producer.curation.agreement import analysis
from producer.curation.rows import LABEL_WORDS, Provenance, Row
from producer.datasets.raw import raw_records
from producer.datasets.records import RowError
from schemas.items import Item, Label
from schemas.runs import InvalidRow


class PublicSet(NamedTuple):
    """A public set's name and licence."""

    origin: str
    licence: str


_PUBLIC_SETS: Final = {
    "COLD/": PublicSet("thu-coai/COLDataset", "Apache-2.0"),
    "jade-db": PublicSet("whitzard-ai/jade-db", "MIT"),
}
"""By how a record's `source` begins."""


class Reason(StrEnum):
    """Why an item is hard."""

    SMALL_MARGIN = "small_margin"
    GUARDS_DISAGREE = "guards_disagree"
    HUMAN_OVERRULED = "human_overruled"
    LABEL_MISSED = "label_missed"


def public_set_of(source: str) -> PublicSet | None:
    """The public set that a record's `source` names, if it is one we know."""
    return next((known for start, known in _PUBLIC_SETS.items() if source.startswith(start)), None)


def real_rows(source: str, origin: str | None, licence: str | None) -> Iterator[Row]:
    """A data set's labelled records; `origin` and `licence` stand for sets that their records do not name.

    Public sets use an id twice for different texts: the second one has its place in the file behind it.

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
        known = public_set_of(item.source)
        place = Provenance(
            origin=origin or (known.origin if known else Path(source).name),
            licence=licence or (known.licence if known else "unknown"),
            generator="published",
            stage="real",
            parent_id=item.id,
        )
        row_id = f"{item.id}@{record.fallback_id}" if item.id in seen else item.id
        seen.add(item.id)
        yield _row(item, row_id, item.truth, place)


def hard_rows(
    judged: Iterable[Judged], *, run_name: str, guard: str, margin: float, origin: str | None, licence: str | None
) -> Iterator[Row]:
    """The hard items of a run; the label is a human's, else the known one, else empty: a case for the judges.

    `margin` is how far from one half a probability may lie to count as small.
    """
    for item in judged:
        reasons = reasons_of(item, margin)
        if not reasons:
            continue
        known = public_set_of(item.source)
        place = Provenance(
            origin=origin or (known.origin if known else f"ledger:{run_name}"),
            licence=licence or (known.licence if known else "own data"),
            generator=f"guard:{guard}",
            stage=f"select:{'+'.join(reasons)}",
            parent_id=item.item_id,
        )
        plain = Item.model_construct(
            id=item.item_id,
            question=item.question,
            response=item.response,
            source=item.source,
            category=item.category,
            subcategory=item.subcategory,
        )
        yield _row(plain, f"{run_name}-{item.seq}", item.human or item.truth, place)


def reasons_of(item: Judged, margin: float) -> list[Reason]:
    """Why an item is hard, in the order of `Reason`; empty where it is not."""
    holds = {
        Reason.SMALL_MARGIN: item.p_unsafe is not None and abs(item.p_unsafe - 0.5) <= margin,
        Reason.GUARDS_DISAGREE: item.disputed,
        Reason.HUMAN_OVERRULED: None not in (item.human, item.label) and item.human is not item.label,
        Reason.LABEL_MISSED: None not in (item.truth, item.label) and item.truth is not item.label,
    }
    return [reason for reason, holding in holds.items() if holding]


def _row(item: Item, row_id: str, label: Label | None, provenance: Provenance) -> Row:
    row: Row = {
        "id": row_id,
        "source": item.source,
        "category_name": item.category,
        "sub_category_name": item.subcategory,
        "question": item.question,
        "response": item.response,
        "label": LABEL_WORDS[label] if label else "",
        "analyze": "",
        "provenance": asdict(provenance),
    }
    return {**row, "analyze": analysis(row, label) if label else ""}

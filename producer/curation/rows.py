"""A row as every stage writes it, and where it comes from. Knows nothing about files or servers.

The columns are the benchmark's, with `provenance` beside them; `response` and `label` are empty until a later
stage fills them. Rows that are not training rows yet also carry `intent` (harmful or harmless) and `aims`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from producer.curation.synthetic.phrases import Topic, topics
from schemas.items import Item, Label

Row = dict[str, Any]

OWN_SOURCE: Final = "libra-fleet/curate"
_WORKING: Final = ("intent", "aims")
LABEL_WORDS: Final = {Label.SAFE: "安全", Label.UNSAFE: "不安全"}


class Intent(StrEnum):
    """What a query is after."""

    HARMFUL = "harmful"
    HARMLESS = "harmless"


@dataclass(frozen=True)
class Provenance:
    """Where a row comes from: `generator` made this text, in `stage`, from the row `parent_id`, by `seed`."""

    origin: str
    licence: str
    generator: str
    stage: str
    parent_id: str | None = None
    seed: int | None = None


class Writer(NamedTuple):
    """A model that writes: its name in the fleet, which model it is, and the licence of what it writes."""

    name: str
    model: str
    licence: str


def new_row(row_id: str, topic: Topic, provenance: Provenance, *, question: str, response: str = "") -> Row:
    """A row of this pipeline's own, without a label."""
    return {
        "id": row_id,
        "source": OWN_SOURCE,
        "category_name": topic.scenario_zh,
        "sub_category_name": topic.kind.name_zh,
        "question": question,
        "response": response,
        "label": "",
        "analyze": "",
        "provenance": asdict(provenance),
    }


def derived(row: Row, row_id: str, *, generator: str, stage: str, seed: int | None = None, **changes: str) -> Row:
    """A row made from another: its parent is named, its origin and licence stay."""
    provenance = {**row["provenance"], "generator": generator, "stage": stage, "parent_id": row["id"], "seed": seed}
    return {**row, **changes, "id": row_id, "provenance": provenance}


def labelled(row: Row, label: Label, analysis: str) -> Row:
    """A training row: the named columns and nothing else."""
    kept = {name: value for name, value in row.items() if name not in _WORKING}
    return {**kept, "label": LABEL_WORDS[label], "analyze": analysis}


def written_by(row: Row, writer: Writer) -> Row:
    """The row with its writer as what generated its text, under the writer's licence."""
    made = {"origin": writer.model, "licence": writer.licence, "generator": f"writer:{writer.model}"}
    return {**row, "provenance": {**row["provenance"], **made}}


def topic_of(row: Row) -> Topic:
    """The topic a row of this pipeline is about."""
    return next(topic for topic in topics() if topic.kind.name_zh == row["sub_category_name"])


def item_of(row: Row) -> Item:
    """What a judge is asked about."""
    return Item(
        id=row["id"],
        question=row["question"],
        response=row["response"],
        source=row["source"],
        category=row["category_name"],
        subcategory=row["sub_category_name"],
    )


def short_digest(text: str) -> str:
    """Twelve characters that tell texts apart."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

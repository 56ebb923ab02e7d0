"""A row as every stage writes it, and its provenance. Knows nothing about files or servers.

The columns are the benchmark's, with `provenance` alongside; `response` and `label` are empty until a later stage
fills them. Rows that are not training rows yet also carry `intent` (harmful or harmless) and `aims`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from schemas.items import Item, Label

Row = dict[str, Any]

LABEL_WORDS: Final = {Label.SAFE: "安全", Label.UNSAFE: "不安全"}


class Intent(StrEnum):
    """The aim of a query."""

    HARMFUL = "harmful"
    HARMLESS = "harmless"


@dataclass(frozen=True)
class Provenance:
    """The history of a row: `generator` made its newest text, in `stage`, from the row `parent_id`, by `seed`."""

    origin: str
    licence: str
    generator: str
    stage: str
    parent_id: str | None = None
    seed: int | None = None


class Generator(NamedTuple):
    """A generative model: its name in the fleet, the model behind it, and the licence of its texts."""

    name: str
    model: str
    licence: str


Texts = Callable[[Sequence[str]], dict[str, str]]
"""A generator's texts by item id, for the ids that have one."""


def new_row(item: Item, provenance: Provenance) -> Row:
    """An item as a row, without a label."""
    return {
        "id": item.id,
        "source": item.source,
        "category_name": item.category,
        "sub_category_name": item.subcategory,
        "question": item.question,
        "response": item.response,
        "label": "",
        "analyze": "",
        "provenance": asdict(provenance),
    }


def item_of(row: Row) -> Item:
    """The item that judges are asked about."""
    return Item(
        id=row["id"],
        question=row["question"],
        response=row["response"],
        source=row["source"],
        category=row["category_name"],
        subcategory=row["sub_category_name"],
    )


def derived(row: Row, row_id: str, *, generator: str, stage: str, seed: int | None = None, **changes: str) -> Row:
    """A row made from another: its parent is named, its origin and licence stay."""
    provenance = {**row["provenance"], "generator": generator, "stage": stage, "parent_id": row["id"], "seed": seed}
    return {**row, **changes, "id": row_id, "provenance": provenance}


def generated_by(row: Row, generator: Generator) -> Row:
    """The row with a model as its generator, under the licence of that model's texts."""
    # Rows on disk say writer:, the older word for a generator.
    made = {"origin": generator.model, "licence": generator.licence, "generator": f"writer:{generator.model}"}
    return {**row, "provenance": {**row["provenance"], **made}}


def labelled(row: Row, label: Label, analysis: str) -> Row:
    """A training row: the named columns and nothing else."""
    kept = {name: value for name, value in row.items() if name not in ("intent", "aims")}
    return {**kept, "label": LABEL_WORDS[label], "analyze": analysis}

"""Two judges' verdicts on a row: agreement is its label, anything else puts it aside with both verdicts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from infra.ledger.comparing import Settled
from producer.curation.rows import Row, labelled
from producer.curation.stage import Placed
from producer.curation.synthetic.phrases import frames
from schemas.items import Label

Verdicts = Mapping[str, Mapping[str, Settled]]
"""Verdicts by judge and row id."""


def sorted_out(rows: Sequence[Row], verdicts: Verdicts, agreed: str, aside: str) -> Iterator[Placed]:
    """Each row for the file `agreed`, labelled, or for `aside`, with what each judge said."""
    for row in rows:
        said = {judge: by_id.get(row["id"]) for judge, by_id in verdicts.items()}
        labels = {settled.label if settled else None for settled in said.values()}
        label = labels.pop()
        if labels or label is None:
            yield aside, {**row, "verdicts": {judge: _shown(settled) for judge, settled in said.items()}}
        else:
            judged = {**row["provenance"], "stage": "annotate"}
            yield agreed, labelled({**row, "provenance": judged}, label, analysis(row, label))


def analysis(row: Row, label: Label) -> str:
    """One sentence on why, in the grammar's words; the same for the same row."""
    rng = random.Random(row["id"])  # noqa: S311 - reproducible, not a secret
    name = row["sub_category_name"] or row["category_name"] or "安全标准"
    return rng.choice(frames()[f"analysis_{label.value}"]).format(n=name)


def _shown(settled: Settled | None) -> dict[str, str | None]:
    if settled is None:
        return {"outcome": None, "label": None}
    return {"outcome": settled.outcome.value, "label": settled.label.value if settled.label else None}

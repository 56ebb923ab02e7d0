"""A row of `verdicts` as a Verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.items import Label
from schemas.verdicts import Outcome, Verdict


def verdict_from(row: Mapping[str, Any]) -> Verdict:
    """The verdict in a row that has the verdict's columns, others beside them or not."""
    return Verdict(
        seq=row["seq"],
        outcome=Outcome(row["outcome"]),
        label=Label(row["label"]) if row["label"] else None,
        p_unsafe=row["p_unsafe"],
        label_mass=row["label_mass"],
        categories=tuple(name for name in row["categories"].split(",") if name),
        reason=row["reason"],
        raw=row["raw"],
        prompt_tokens=row["prompt_tokens"],
        windows=row["windows"],
        cached=row["cached"],
    )

"""The fidelity sheets by name, read from guard_sheets.yaml: how each guard's authors run it. Data, not code."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Final

import yaml

from infra.errors import GuardError
from schemas.guards import FidelitySheet, GuardCard
from schemas.items import Kind

_FILE: Final = Path(__file__).with_suffix(".yaml")


@cache
def sheets() -> dict[str, FidelitySheet]:
    """Return all sheets by name."""
    rows = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    # By way of JSON, from which a strict model takes lists for tuples and words for enumerations.
    found = [FidelitySheet.model_validate_json(json.dumps(row)) for row in rows]
    return {sheet.name: sheet for sheet in found}


def sheet_of(card: GuardCard) -> FidelitySheet | None:
    """Return the sheet of a card; None for one that nothing here asks.

    Raises:
        GuardError: the card names a sheet that there is none of.
    """
    if not card.sheet:
        return None
    try:
        return sheets()[card.sheet]
    except KeyError as error:
        raise GuardError(f"{card.name}: no fidelity sheet named {card.sheet!r}") from error


def kinds_of(card: GuardCard) -> frozenset[Kind] | None:
    """Return the kinds of items that a guard judges, as its sheet says; None for one that has no sheet."""
    sheet = sheet_of(card)
    return frozenset({Kind.TEXT, *sheet.kinds, *card.also}) if sheet else None


def cannot_judge(guard: str, kind: Kind, kinds: Collection[Kind]) -> str:
    """Return the refusal of an item of a kind that is none of those that a guard judges."""
    known = ", ".join(one.called for one in Kind if one in kinds)
    return f"{guard} cannot judge {kind.called}; it can judge {known}"

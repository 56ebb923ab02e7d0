"""How things of the ledger look over HTTP, and their names there."""

from __future__ import annotations

import re
from typing import Any, Final

from infra.ledger.feed import Decided, SubmittedItem
from producer.gateway.problems import NoSuchThingError
from producer.gateway.verdicts_awaited import ItemRef
from schemas.items import submitted_name
from schemas.verdicts import Outcome, Verdict

_ITEM_ID: Final = re.compile(r"item_(r[0-9a-f]{10})_([0-9]{1,18})")


def item_id(place: ItemRef) -> str:
    """An item's name over HTTP."""
    return submitted_name(place.run_id, place.seq)


def place_of(name: str) -> ItemRef:
    """The inverse of `item_id`.

    Raises:
        ProblemError: 404, no item has such a name.
    """
    match = _ITEM_ID.fullmatch(name)
    if match is None:
        raise NoSuchThingError("item", name[:80])
    return ItemRef(match[1], int(match[2]))


def item_view(item: SubmittedItem) -> dict[str, Any]:
    """An item with its verdict, if it has one. Its text is not told: who submitted it has it."""
    return {
        "id": item_id(ItemRef(item.run_id, item.seq)),
        "object": "item",
        "status": "settled" if item.verdict else "pending",
        "custom_id": item.custom_id,
        "policy": item.policy,
        "metadata": item.metadata,
        "run_id": item.run_id,
        "guard": item.guard,
        "created_at": item.created_at.isoformat(),
        "settled_at": item.settled_at.isoformat() if item.settled_at else None,
        "verdict": verdict_view(item.verdict, item.fingerprint) if item.verdict else None,
        "decision": decision_view(item.decided) if item.decided else None,
    }


def decision_view(decided: Decided) -> dict[str, Any]:
    """What to do about an item, and who says so."""
    return {
        "action": decided.action.value,
        "by": "human" if decided.by_human else "policy",
        "policy": decided.policy,
        "policy_version": decided.policy_version,
        "reason": decided.reason,
    }


def verdict_view(verdict: Verdict, fingerprint: str | None) -> dict[str, Any]:
    """A verdict. What a mode does not give is null, never 0."""
    return {
        "outcome": verdict.outcome.value,
        "label": verdict.label.value if verdict.label else None,
        "p_unsafe": verdict.p_unsafe,
        "label_mass": verdict.label_mass,
        "categories": list(verdict.categories),
        "reason": verdict.reason if verdict.outcome is not Outcome.SCORED else None,
        "fingerprint": fingerprint,
    }

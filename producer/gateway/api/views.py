"""From the ledger's rows to the shapes of schemas/http.py, and items' names over HTTP."""

from __future__ import annotations

import re
from typing import Any, Final

from infra.ledger.feed import SubmittedItem
from infra.ledger.runs import RunStatus
from producer.gateway.problems import NoSuchThingError
from producer.intake.verdict_waiter import ItemRef
from schemas.http import DecisionView, ItemView, RunView, VerdictView
from schemas.runs import RunReport
from schemas.verdicts import Outcome, Verdict

_ITEM_NAME: Final = re.compile(r"item_(r[0-9a-f]{10})_([0-9]{1,18})")


def ref_of(name: str) -> ItemRef:
    """The place of the item with this name (the inverse of `ItemRef.name`).

    Raises:
        ProblemError: 404, no item has such a name.
    """
    match = _ITEM_NAME.fullmatch(name)
    if match is None:
        raise NoSuchThingError("item", name[:80])
    return ItemRef(match[1], int(match[2]))


def item_view(item: SubmittedItem) -> dict[str, Any]:
    """An item with its verdict and decision, if it has them."""
    decided = item.decided
    view = ItemView(
        id=ItemRef(item.run_id, item.seq).name,
        status="settled" if item.verdict else "pending",
        custom_id=item.custom_id,
        policy=item.policy,
        metadata=item.metadata,
        run_id=item.run_id,
        guard=item.guard,
        created_at=item.created_at,
        settled_at=item.settled_at,
        verdict=_verdict_view(item.verdict, item.fingerprint) if item.verdict else None,
        decision=DecisionView(
            action=decided.action,
            by="human" if decided.by_human else "policy",
            policy=decided.policy,
            policy_version=decided.policy_version,
            reason=decided.reason,
        )
        if decided
        else None,
    )
    return view.model_dump(mode="json")


def _verdict_view(verdict: Verdict, fingerprint: str | None) -> VerdictView:
    return VerdictView(
        outcome=verdict.outcome,
        label=verdict.label,
        p_unsafe=verdict.p_unsafe,
        label_mass=verdict.label_mass,
        categories=verdict.categories,
        reason=verdict.reason if verdict.outcome is not Outcome.SCORED else None,
        fingerprint=fingerprint,
    )


def run_view(status: RunStatus, report: RunReport | None) -> dict[str, Any]:
    """A run's progress, with its report once it has ended."""
    view = RunView(
        run=status.id,
        name=status.name,
        state=status.state.value,
        guard=status.spec.guard,
        mode=status.spec.mode.value,
        source=status.spec.source,
        parent=status.spec.parent,
        expected=status.expected,
        **status.counts.model_dump(),
        seconds=round(status.seconds, 3),
        created_at=status.created_at,
        report=report.model_dump(mode="json") if report else None,
    )
    return view.model_dump(mode="json")

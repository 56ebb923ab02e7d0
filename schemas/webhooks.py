"""Webhook events, in the envelope of the Standard Webhooks convention. They never hold an item's text.

Source: https://github.com/standard-webhooks/standard-webhooks (type, timestamp, data).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from schemas.base import Frozen
from schemas.items import Label
from schemas.policy import Action
from schemas.verdicts import Outcome


class Event(StrEnum):
    """The event that happened to an item."""

    JUDGED = "item.judged"
    REDECIDED = "item.redecided"
    REVIEWED = "item.reviewed"


class _AboutAnItem(Frozen):
    """The item: `id` as over HTTP (`GET /v1/items/{id}`), `custom_id` and `metadata` as the platform gave them."""

    run_id: str
    seq: int
    id: str
    custom_id: str | None = None
    metadata: dict[str, object] = Field(default_factory=dict)


class JudgedItem(_AboutAnItem):
    """Data of `item.judged` and `item.redecided`: the verdict, and what the policy made of it.

    `action` is None where no policy applies. `previous_action` is given by `item.redecided` alone.
    """

    iteration: int = 0
    outcome: Outcome
    label: Label | None
    p_unsafe: float | None
    categories: tuple[str, ...]
    fingerprint: str | None
    action: Action | None = None
    policy: str | None = None
    policy_version: int | None = None
    reason: str | None = None
    previous_action: Action | None = None


class HumanReview(_AboutAnItem):
    """Data of `item.reviewed`: what a human decided."""

    label: Label
    action: Action


class Envelope(Frozen):
    """A webhook's body. `timestamp`: when it happened, not when it was sent."""

    type: Event
    timestamp: datetime
    data: JudgedItem | HumanReview

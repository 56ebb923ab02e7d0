"""What every connector shares: who asks, texts judged, the action that follows, errors in the wire's own shape.

Fail-safe (docs/no-verdict.md): what was not judged is never a pass, whatever a policy says. Knows no wire.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.ledger import feed
from infra.ledger.intake import Submission
from producer.gateway.api.moderations import not_in_time, refuse_unjudged
from producer.gateway.api.requests import ItemBatch, accept_and_wait, guard_of, item_of, wait_s_of
from producer.gateway.problems import ProblemError, invalid, problem_of
from producer.gateway.state import Gateway, Principal, authorised
from producer.intake.verdict_waiter import ItemRef
from schemas.access import Scope
from schemas.http import MOST_ITEMS
from schemas.items import Dialogue, Label
from schemas.policy import Action
from schemas.verdicts import CONTROVERSIAL, Outcome, Verdict

RequestModel = TypeVar("RequestModel", bound=BaseModel)

_LONGEST_METADATA: Final = 512


class WireModel(BaseModel):
    """Base of what a foreign wire sends: fields that we do not know are the wire's own business."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Caller(NamedTuple):
    """Who asks, of which gateway, and how many seconds the answer is waited for."""

    gateway: Gateway
    principal: Principal
    wait_s: float


class Text(NamedTuple):
    """A text to judge; `place` is what the wire calls the field it stands in."""

    place: str
    dialogue: Dialogue


class Judged(NamedTuple):
    """A text's item and its settled verdict."""

    ref: ItemRef
    verdict: Verdict

    @property
    def was_judged(self) -> bool:
        """Whether the guard gave a label."""
        return self.verdict.outcome is Outcome.SCORED

    @property
    def view(self) -> dict[str, Any]:
        """Our own fields, for wires whose clients pass over fields that they do not know."""
        verdict = self.verdict
        return {
            "item": self.ref.name,
            "outcome": verdict.outcome.value,
            "label": verdict.label.value if verdict.label else None,
            "p_unsafe": verdict.p_unsafe,
            "categories": list(verdict.categories),
            "categories_by": verdict.categories_by.value if verdict.categories_by else None,
            "reason": None if self.was_judged else verdict.reason,
        }


class Decided(NamedTuple):
    """A judged text with the action for it; `why` says in words what decided, never any of the text."""

    judged: Judged
    action: Action
    why: str


async def caller_with(request: Request, gateway: Gateway, secret: str | None, *, how: str) -> Caller:
    """The caller who may submit texts with this key; 401 or 403. `how`: the way in which this wire sends a key."""
    principal = await authorised(gateway, secret, Scope.MODERATE, how=how)
    return Caller(gateway, principal, _wait_s(request, gateway))


def _wait_s(request: Request, gateway: Gateway) -> float:
    """How long the caller waits: `?wait_s=` in the address it was given, else `Prefer: wait=`, else the setting."""
    try:
        asked = float(request.query_params["wait_s"])
    except (KeyError, ValueError):
        asked = math.nan
    if math.isnan(asked):  # no number, as is "nan": the event loop's clock must not meet it
        return wait_s_of(request.headers.get("prefer"), gateway)
    return min(max(asked, 0.0), gateway.settings.gateway_wait_s)


def key_in_headers(request: Request) -> str | None:
    """The API key in `Authorization: Bearer …` or, as AI gateways send it, in `x-api-key`."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" and given else request.headers.get("x-api-key")


def is_about_the_key(problem: ProblemError) -> bool:
    """Whether an error is the operator's, who gave a wrong key; a user's text can bring about any other."""
    return problem.status in {401, 403}


async def parsed(request: Request, model: type[RequestModel]) -> RequestModel:
    """The request's JSON body; 400 or 422 that name the field and not its value."""
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_url=False)) from None


async def judge(
    caller: Caller,
    texts: Sequence[Text],
    *,
    surface: str,
    guard: str | None = None,
    metadata: Mapping[str, str | None] | None = None,
) -> list[Judged]:
    """Accept texts and wait for their verdicts, one for each in their order.

    `surface` is where the texts come from, by which a policy may have rules of its own. Raises ProblemError: 400 on
    a kind that the guard cannot judge, 413, 422, 429; 503 where nobody judges in time; and 502 on a text that was not
    judged, where LIBRA_UNJUDGED=error.
    """
    gateway, principal, wait_s = caller
    if len(texts) > MOST_ITEMS:
        raise ProblemError(413, "too-large", f"{len(texts):,} texts; a request holds {MOST_ITEMS:,} at most")
    selection = guard_of(guard, gateway, field="guard")
    fields = ("question", "response", "history")
    items = [item_of(text.dialogue, fields=dict.fromkeys(fields, text.place)) for text in texts]
    kept = {name: _storable(value) for name, value in {"surface": surface, **(metadata or {})}.items() if value}
    submission = Submission(principal.tenant, metadata=kept)
    of_item = {item.id: submission for item in items}
    item_batch = ItemBatch(principal.tenant, selection, items, of_item, [text.place for text in texts])
    refs, verdicts = await accept_and_wait(gateway, item_batch, None, wait_s=wait_s)
    if verdicts is None:
        raise not_in_time([ref.name for ref in refs])
    if gateway.settings.unjudged == "error":
        refuse_unjudged(verdicts, [text.place for text in texts])
    return [Judged(ref, verdict) for ref, verdict in zip(refs, verdicts, strict=True)]


def _storable(value: str) -> str:
    """What of a foreign name a database can hold: it is kept with the item."""
    return value.replace("\x00", "").encode(errors="replace").decode()[:_LONGEST_METADATA]


async def decide(caller: Caller, judged: Sequence[Judged]) -> list[Decided]:
    """The action for each text: its policy's as the ledger has it, else by the verdict alone; see `decided`."""
    if not judged:
        return []
    seqs = [one.ref.seq for one in judged]
    found = await caller.gateway.ask(feed.submitted_items, judged[0].ref.run_id, seqs)
    return [decided(one, found[one.ref.seq].decided if one.ref.seq in found else None) for one in judged]


def strictest(decisions: Sequence[Decided]) -> Decided:
    """The decision of several that a wire with one answer gives."""
    return max(decisions, key=lambda one: one.action.severity)


def decided(judged: Judged, by_policy: feed.Decided | None) -> Decided:
    """The action for a judged text.

    Without a policy, safe passes, unsafe is blocked, controversial goes to review. What was not judged goes to review,
    or to what is stricter, also where a policy lets it pass.
    """
    if by_policy is not None:
        action, why = by_policy.action, by_policy.reason or "a human decided"
    else:
        action, why = _by_verdict(judged.verdict)
    if not judged.was_judged and action is Action.PASS:
        action = Action.REVIEW
    return Decided(judged, action, why)


def _by_verdict(verdict: Verdict) -> tuple[Action, str]:
    if verdict.outcome is not Outcome.SCORED:
        return Action.REVIEW, f"not judged: {verdict.outcome.value}"
    if verdict.label is Label.SAFE:
        return Action.PASS, "safe"
    if CONTROVERSIAL in verdict.categories:
        return Action.REVIEW, "controversial"
    return Action.BLOCK, "unsafe: " + (", ".join(verdict.categories) or "no category named")


def speaking(shape: Callable[[ProblemError, Request], Response]) -> type[APIRoute]:
    """A class of routes whose errors all have the shape of one wire."""

    class WireRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_in_shape(request: Request) -> Response:
                try:
                    return await handle(request)
                except Exception as error:  # noqa: BLE001 - a request's edge: every error is answered in this shape
                    return shape(problem_of(error), request)

            return handle_in_shape

    return WireRoute

"""The shapes of the HTTP API: what callers send and what they read. The gateway and its clients share them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from schemas.base import Shared
from schemas.items import Dialogue, Kind, Label, dialogue_of
from schemas.policy import Action
from schemas.verdicts import CategoriesBy, Outcome

MOST_ITEMS: Final = 1_000
"""In one request."""
_LONGEST_SECONDS: Final = 9
"""Digits of a Retry-After that count: 30 years."""


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("contains a lone surrogate, which is not valid Unicode text") from error
    return value


MetadataKey = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_storable)]
MetadataValue = Annotated[str, Field(max_length=512), AfterValidator(_storable)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
"""Up to 16 pairs of texts, as OpenAI's."""
CustomId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
PolicyName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_storable)]
CallbackUrl = Annotated[
    str, Field(max_length=2_048, pattern=r"^https?://[^\s/@\x00]+(/[^\s\x00]*)?$"), AfterValidator(_storable)
]
"""Checked for its form only; the addresses behind its name are checked when it is called."""
Timestamp = Annotated[datetime, PlainSerializer(datetime.isoformat, return_type=str)]
"""Written with its offset as +00:00, where pydantic would write Z."""


def retry_after_s(value: str | None) -> float:
    """The seconds of a Retry-After (RFC 9110), which is a number or a date; 0 where there is none, or nonsense."""
    value = (value or "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:_LONGEST_SECONDS])
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())


class ApiRequest(BaseModel):
    """Base of what callers send; an unknown field is refused, since it is most likely a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ItemRequest(ApiRequest):
    """One item: a `prompt`, a `response`, both, or `messages`; or a `text`, where nobody says whose it is.

    `question` is another name for `prompt`. What is a text to one guard is a prompt, to another a response.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["text"]},
                {"required": ["messages"]},
                {"anyOf": [{"required": ["prompt"]}, {"required": ["question"]}, {"required": ["response"]}]},
            ]
        }
    )

    text: str | None = None
    prompt: str | None = None
    question: str = ""
    response: str | None = None
    messages: Annotated[
        list[dict[str, Any]] | None,
        Field(description="Turns in order, each with `role` (user or assistant) and `content`; the last is judged."),
    ] = None
    custom_id: CustomId | None = None
    policy: PolicyName | None = None
    callback_url: CallbackUrl | None = None
    metadata: Metadata | None = None

    @field_validator("messages")
    @classmethod
    def _can_be_judged(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if value is not None:
            dialogue_of(value)
        return value

    @model_validator(mode="after")
    def _has_one_form(self) -> ItemRequest:
        sides = self.prompt is not None or bool(self.question) or self.response is not None
        if (self.text is not None) + (self.messages is not None) + sides != 1:
            raise ValueError("give one of text, messages, or prompt and response (one or both)")
        if self.prompt is not None and self.question:
            raise ValueError("prompt and question are the same; give one")
        return self

    @property
    def dialogue(self) -> Dialogue:
        """Its texts, by who says them."""
        if self.messages is not None:
            return dialogue_of(self.messages)
        if self.text is not None:
            return Dialogue(response=self.text)
        question, response = self.prompt or self.question, self.response or ""
        alone = Kind.PROMPT if self.response is None else Kind.RESPONSE
        return Dialogue(question, response, kind=Kind.PAIR if question and response else alone)

    @property
    def field_names(self) -> dict[str, str]:
        """The names that the caller gave an item's fields."""
        if self.messages is not None:
            return dict.fromkeys(("question", "response", "history"), "messages")
        question = "question" if self.prompt is None else "prompt"
        alone = question if self.response is None else "response"
        return {"question": question, "response": "text" if self.text is not None else alone}


class VerdictView(Shared):
    """A verdict. What a mode does not give is null, never 0. `categories_by`: null if the guard named them itself."""

    model_config = ConfigDict(strict=False)

    outcome: Outcome
    label: Label | None
    p_unsafe: float | None
    label_mass: float | None
    categories: tuple[str, ...]
    categories_by: CategoriesBy | None = None
    reason: str | None
    fingerprint: str | None


class DecisionView(Shared):
    """The action for an item, and whether a human or a policy decided it."""

    action: Action
    by: Literal["human", "policy"]
    policy: str | None
    policy_version: int | None
    reason: str | None


class ItemView(Shared):
    """An item with its verdict, if it has one. Its text is left out: the submitter has it."""

    id: str
    object: Literal["item"] = "item"
    status: Literal["settled", "pending"]
    custom_id: str | None
    policy: str | None
    metadata: dict[str, Any] | None
    run_id: str
    guard: str
    created_at: Timestamp
    settled_at: Timestamp | None
    verdict: VerdictView | None
    decision: DecisionView | None


class RunView(Shared):
    """A run's progress and, once it has ended, its report."""

    run: str
    name: str
    state: str
    guard: str
    mode: str
    source: str
    parent: str | None
    expected: int | None
    accepted: int
    settled: int
    scored: int
    unparseable: int
    dead: int
    pending: int
    seconds: float
    created_at: Timestamp
    report: dict[str, Any] | None


class ItemVerdict(VerdictView):
    """A settled item's verdict, as the Python client returns it; `cursor` is the item's place in the feed."""

    id: str
    custom_id: str | None
    settled_at: datetime
    cursor: str | None = None

"""Items and where they come from: the unit of moderation and the Libra Bench record.

Knows nothing about files, queues or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.base import Frozen, Shared

MAX_ITEM_BYTES: Final = 512 * 1024
"""Most text of an item, all turns together, in UTF-8 bytes; half a chunk, so that an item always fits one message."""
MAX_TURNS: Final = 128
"""Most turns of a conversation before its last question and response."""

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=200, strict=True)]


class Label(StrEnum):
    """The benchmark's two classes."""

    SAFE = "safe"
    UNSAFE = "unsafe"

    @property
    def opposite(self) -> Label:
        """The other class (how the benchmark counts an unparseable answer)."""
        return Label.SAFE if self is Label.UNSAFE else Label.UNSAFE


class Retention(StrEnum):
    """The part of an item's text that stays once its verdict is settled: everything, a hash of it, nothing."""

    FULL = "full"
    HASH = "hash"
    NONE = "none"

    @property
    def scrubs(self) -> bool:
        """True if the text is removed."""
        return self is not Retention.FULL


_LABEL_WORDS: Final = {
    "安全": Label.SAFE,
    "safe": Label.SAFE,
    "不安全": Label.UNSAFE,
    "unsafe": Label.UNSAFE,
}


class Kind(StrEnum):
    """What an item is. A guard judges some kinds and refuses the others."""

    TEXT = "text"
    """One text, and nobody says whose: each guard takes it as what its authors judge first."""
    PROMPT = "prompt"
    """What a user says, without an answer."""
    RESPONSE = "response"
    """What a model says, without the question."""
    PAIR = "pair"
    """A response together with the question that it answers."""
    MESSAGES = "messages"
    """A conversation of several turns; its last turn is judged."""

    @property
    def called(self) -> str:
        """What a person calls an item of this kind."""
        return _CALLED[self]


_CALLED: Final = {
    Kind.TEXT: "a text whose author is not said",
    Kind.PROMPT: "a prompt alone",
    Kind.RESPONSE: "a response alone",
    Kind.PAIR: "a question with its response",
    Kind.MESSAGES: "a conversation of several turns",
}


def kind_of(texts: Mapping[str, Any]) -> Kind:
    """The kind of an item that does not say it, from its fields `history`, `question` and `response`."""
    if texts.get("history"):
        return Kind.MESSAGES
    if texts.get("question"):
        return Kind.PAIR if texts.get("response") else Kind.PROMPT
    return Kind.TEXT


def storable(value: str) -> str:
    """The text, if a database can hold it and an item may be that long; else ValueError."""
    if "\x00" in value:
        raise ValueError("contains a NUL character")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError("contains a lone surrogate, which is not valid Unicode text") from error
    if size > MAX_ITEM_BYTES:
        raise ValueError(f"{size:,} bytes long; the limit is {MAX_ITEM_BYTES:,}")
    return value


class Turn(Shared):
    """What one side says in a conversation."""

    role: Literal["user", "assistant"]
    content: str


class Dialogue(NamedTuple):
    """The texts of an item, by who says them. A single text (kind `text`) stands in the response's place."""

    question: str = ""
    response: str = ""
    history: tuple[Turn, ...] = ()
    kind: Kind = Kind.TEXT

    @property
    def messages(self) -> list[dict[str, str]]:
        """All turns, as `dialogue_of` reads them; a single text is an assistant's."""
        last = (Turn(role="user", content=self.question), Turn(role="assistant", content=self.response))
        return [turn.model_dump() for turn in (*self.history, *last) if turn.content]


def dialogue_of(messages: object) -> Dialogue:
    """The dialogue in a list of messages, each with `role` (user or assistant) and `content`.

    One message is a prompt or a response, a question with its answer a pair; only more turns are a conversation.

    Raises:
        ValueError: there is no message, or one that no guard here can judge: a system's, a tool's, an empty one.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("a list of at least one message, each with role and content, is expected")
    turns = [_turn(message, at) for at, message in enumerate(messages)]
    response = turns.pop().content if turns[-1].role == "assistant" else ""
    question = turns.pop().content if turns and turns[-1].role == "user" else ""
    if turns:
        return Dialogue(question, response, tuple(turns), Kind.MESSAGES)
    if not question:
        return Dialogue(response=response, kind=Kind.RESPONSE)
    return Dialogue(question, response, kind=Kind.PAIR if response else Kind.PROMPT)


_OTHER_ROLES: Final = {
    role: f"the role {role} is {what}"
    for what, roles in {
        "an instruction to the model, which no guard here judges; leave it out": ("system", "developer"),
        "a tool's output, which no guard here judges": ("tool", "function"),
    }.items()
    for role in roles
}


def _turn(message: object, at: int) -> Turn:
    try:
        role, content = _role_and_content(message)
        return Turn(role=role, content=storable(content))
    except ValueError as error:
        raise ValueError(f"message {at}: {error}") from None


def _role_and_content(message: object) -> tuple[Literal["user", "assistant"], str]:
    given = message if isinstance(message, Mapping) else {}
    role, content = given.get("role"), given.get("content")
    if given.get("tool_calls") or given.get("function_call"):
        raise ValueError("a call of a tool, which no guard here judges")
    if role != "user" and role != "assistant":  # noqa: PLR1714 - the narrower type is seen so
        raise ValueError(_OTHER_ROLES.get(str(role), "the role must be user or assistant"))
    if isinstance(content, list):
        parts = [part if isinstance(part, Mapping) else {} for part in content]
        are_texts = all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts)
        content = "\n".join(part["text"] for part in parts) if are_texts else None
    if not isinstance(content, str):
        raise ValueError("its content must be text; nothing else can be judged")  # noqa: TRY004 - pydantic's error
    if not content.strip():
        raise ValueError("its content is empty")
    return role, content


class Item(Frozen):
    """One thing to judge, and its `kind`: a prompt, a response, both, a conversation, or a single text.

    `question` and `response` are its last two turns; a single text is the response. `history` holds the turns before
    them. An item that does not say its kind has the one that its texts show.
    `truth` is the human label where one exists; items of live traffic have none.
    """

    id: ItemId
    question: str = ""
    response: str = Field(default="", validate_default=True)
    history: tuple[Turn, ...] = Field(default=(), max_length=MAX_TURNS)
    kind: Kind = Kind.TEXT
    truth: Label | None = None
    source: str = ""
    category: str = ""
    subcategory: str = ""

    @field_validator("response")
    @classmethod
    def _has_text(cls, value: str, info: ValidationInfo) -> str:
        if not value.strip() and (value or not str(info.data.get("question", "")).strip()):
            raise ValueError("the text to judge is empty")
        return value

    @field_validator("id", "question", "response", "source", "category", "subcategory")
    @classmethod
    def _storable(cls, value: str) -> str:
        return storable(value)

    @model_validator(mode="after")
    def _fits(self) -> Item:
        # Four bytes are the most that a character takes: only long texts have to be encoded to be measured.
        characters = len(self.question) + len(self.response) + sum(len(turn.content) for turn in self.history)
        if characters > MAX_ITEM_BYTES // 4 and self.text_bytes > MAX_ITEM_BYTES:
            texts = "the conversation" if self.history else "question and response"
            raise ValueError(f"{texts}: {self.text_bytes:,} bytes long; the limit is {MAX_ITEM_BYTES:,}")
        shown = kind_of({"history": self.history, "question": self.question, "response": self.response})
        if "kind" not in self.model_fields_set:
            object.__setattr__(self, "kind", shown)  # frozen, but not yet seen by anybody
        elif self.kind is not shown and (self.kind, shown) != (Kind.RESPONSE, Kind.TEXT):
            raise ValueError(f"its texts are those of a {shown}, not of a {self.kind}")
        return self

    @property
    def dialogue(self) -> Dialogue:
        """Its texts."""
        return Dialogue(self.question, self.response, self.history, self.kind)

    @property
    def text_bytes(self) -> int:
        """Size of the judged text in UTF-8 bytes."""
        earlier = sum(len(turn.content.encode()) for turn in self.history)
        return earlier + len(self.question.encode()) + len(self.response.encode())

    @property
    def content_hash(self) -> bytes:
        """16 bytes that identify what is judged (kind and texts, not id or truth)."""
        digest = hashlib.blake2b(digest_size=16)
        question = self.question.encode()
        digest.update(len(question).to_bytes(4, "big"))
        digest.update(question)
        digest.update(self.response.encode())
        # Texts and pairs keep the hash that they had before there were kinds. No text holds a NUL.
        if self.kind not in PLAIN_KINDS:
            digest.update(f"\0{self.kind}".encode())
        for turn in self.history:
            digest.update(f"\0{turn.role}\0{turn.content}".encode())
        return digest.digest()


PLAIN_KINDS: Final = frozenset({Kind.TEXT, Kind.PAIR})
"""What an item could be before there were kinds: question and response say which."""


class Example(Shared):
    """A dialogue with its right verdict: shown to a guard before what it is to judge. `analysis` may be empty."""

    question: str
    response: str
    label: Label
    analysis: str = ""


def submitted_name(run_id: str, seq: int) -> str:
    """The public id of an item that came through the gateway: over HTTP and in webhooks."""
    return f"item_{run_id}_{seq}"


class LibraRecord(BaseModel):
    """A row of Libra Bench as published (caskcsg/Libra-Test), of either era.

    The first era has no `sub_category_name` and names its sources `Safety-Prompts`, `synthesis` and
    `BeaverTails_30k`; the later one says `Real Data`, `Synthetic Data` and `Translated Data`.
    Unknown columns are ignored: people add columns of their own.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)

    id: ItemId | int
    response: str | None = None
    question: str | None = None
    label: str | None = None
    source: str | None = None
    category_name: str | None = None
    sub_category_name: str | None = None
    analyze: str | None = Field(default=None, repr=False)

    @field_validator("label", mode="before")
    @classmethod
    def _known_label(cls, value: object) -> object:
        if isinstance(value, int):  # of which some sets mean safe by 1, others unsafe
            problem = f"{value} says neither safe nor unsafe; write 安全, 不安全, safe or unsafe"
            raise ValueError(problem)  # noqa: TRY004 - pydantic reports a ValueError
        if isinstance(value, str):
            value = value.strip().lower()
        if isinstance(value, str) and value and value not in _LABEL_WORDS:
            raise ValueError(f"unknown label {value!r}; expected 安全, 不安全, safe, unsafe or none")
        return value

    def to_item(self) -> Item:
        """The item this record describes.

        Raises:
            pydantic.ValidationError: the text is empty, too long or not storable.
        """
        return Item(
            id=str(self.id),
            question=self.question or "",
            response=self.response or "",
            truth=_LABEL_WORDS[self.label] if self.label else None,
            source=self.source or "",
            category=self.category_name or "",
            subcategory=self.sub_category_name or "",
        )

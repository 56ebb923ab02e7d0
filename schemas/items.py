"""Items and where they come from: the unit of moderation and the Libra Bench record.

Knows nothing about files, queues or models.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.base import Frozen, Shared

MAX_ITEM_BYTES: Final = 512 * 1024
"""Longest question plus response, in UTF-8 bytes; half a chunk, so that an item always fits one message."""

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


class Item(Frozen):
    """One thing to judge: a model's response to a question, or a single text (empty question).

    `truth` is the human label where one exists; items of live traffic have none.
    """

    id: ItemId
    response: str
    question: str = ""
    truth: Label | None = None
    source: str = ""
    category: str = ""
    subcategory: str = ""

    @field_validator("response")
    @classmethod
    def _has_text(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the text to judge is empty")
        return value

    @field_validator("id", "question", "response", "source", "category", "subcategory")
    @classmethod
    def _storable(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("contains a NUL character")
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise ValueError("contains a lone surrogate, which is not valid Unicode text") from error
        if size > MAX_ITEM_BYTES:
            raise ValueError(f"{size:,} bytes long; the limit is {MAX_ITEM_BYTES:,}")
        return value

    @model_validator(mode="after")
    def _fits_a_chunk(self) -> Item:
        # Four bytes are the most that a character takes: only long texts have to be encoded to be measured.
        may_be_too_long = len(self.question) + len(self.response) > MAX_ITEM_BYTES // 4
        if may_be_too_long and self.text_bytes > MAX_ITEM_BYTES:
            raise ValueError(f"question and response: {self.text_bytes:,} bytes long; the limit is {MAX_ITEM_BYTES:,}")
        return self

    @property
    def text_bytes(self) -> int:
        """Size of the judged text in UTF-8 bytes."""
        return len(self.question.encode()) + len(self.response.encode())

    @property
    def content_hash(self) -> bytes:
        """16 bytes that identify what is judged (question and response, not id or truth)."""
        digest = hashlib.blake2b(digest_size=16)
        question = self.question.encode()
        digest.update(len(question).to_bytes(4, "big"))
        digest.update(question)
        digest.update(self.response.encode())
        return digest.digest()


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

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: ItemId | int
    response: str
    question: str | None = None
    label: str | None = None
    source: str | None = None
    category_name: str | None = None
    sub_category_name: str | None = None
    analyze: str | None = Field(default=None, repr=False)

    @field_validator("label")
    @classmethod
    def _known_label(cls, value: str | None) -> str | None:
        if value and value not in _LABEL_WORDS:
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
            response=self.response,
            truth=_LABEL_WORDS[self.label] if self.label else None,
            source=self.source or "",
            category=self.category_name or "",
            subcategory=self.sub_category_name or "",
        )

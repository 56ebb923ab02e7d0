"""The texts that every checkpoint is asked about, as items of each kind. They are ours, so they may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import yaml

from schemas.base import Frozen
from schemas.items import Kind, Label, Turn
from schemas.messages import ChunkItem

_FILE: Final = Path(__file__).with_name("plain_texts.yaml")
_EVERY_LANGUAGE: Final = frozenset({"any", "many", "nine"})
"""Words of the catalogue that stand for more languages than it lists."""
EARLIER: Final = (
    Turn(role="user", content="你好！Hello!"),
    Turn(role="assistant", content="你好，请问有什么可以帮您？How can I help you?"),
)
"""What was said before, where a text is asked about as the end of a conversation."""
KINDS: Final[tuple[Kind, ...]] = (Kind.PAIR, Kind.PROMPT, Kind.RESPONSE, Kind.MESSAGES)
"""Those that say what they are, the benchmark's own first; a bare text is put as one of them."""


class PlainText(Frozen):
    """A prompt and a response to it, which have one label, and the language they are in."""

    language: str
    label: Label
    prompt: str
    response: str

    def item(self, seq: int, kind: Kind) -> ChunkItem:
        """The text as an item of a kind."""
        return ChunkItem(
            seq=seq,
            question="" if kind is Kind.RESPONSE else self.prompt,
            response="" if kind is Kind.PROMPT else self.response,
            history=EARLIER if kind is Kind.MESSAGES else (),
            kind=kind,
        )


@cache
def plain_texts() -> tuple[PlainText, ...]:
    """Return all of them, labels and languages in turn."""
    rows = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return tuple(PlainText(**{**row, "label": Label(row["label"])}) for row in rows)


def texts_in(languages: Sequence[str]) -> tuple[PlainText, ...]:
    """Return those in a guard's languages; all of them where it does not say, and none where it speaks others."""
    spoken = set(languages)
    if not spoken or spoken & _EVERY_LANGUAGE:
        return plain_texts()
    return tuple(text for text in plain_texts() if text.language in spoken)

"""AprielGuard: `safe` or `unsafe-O1,…` on the first line, `adversarial` or `non_adversarial` on the second.

Asked without reasoning. An adversarial text is marked as such; the first line alone makes the label, as it does for its
authors. Source: the model card of ServiceNow-AI/AprielGuard (revision e7e936d1) as public code transcribes it
(`reasoning_mode="off"`, both lines).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from schemas.guards import GuardCard
from worker.guards.llama_guard import CHOICES
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.reading import SAFE, Answer, lines_of, unreadable, unsafe
from worker.guards.template_guard import Format, as_messages

_FIRST: Final = re.compile(r"safe|unsafe(?:-(?P<codes>[A-Z]\d+(?:\s*,\s*[A-Z]\d+)*))?")


def form(card: GuardCard, folder: Path) -> Format:  # noqa: ARG001 - what all families take
    """Plain turns; the template does the rest."""
    return Format(
        pair=(_ask(("user", QUESTION), ("assistant", RESPONSE)),),
        single=(_ask(("user", RESPONSE)),),
        conversation=as_messages,
        read=read,
        choices=CHOICES,
        max_new_tokens=32,
    )


def _ask(*messages: tuple[str, str]) -> Ask:
    return Ask(messages, options={"reasoning_mode": "off"})


def read(text: str, single: bool) -> Answer:  # noqa: ARG001, FBT001 - Format.read
    """The first line, whole; codes are kept as the guard names them."""
    lines = lines_of(text)
    found = _FIRST.fullmatch(lines[0]) if lines else None
    if found is None:
        return unreadable("the first line is neither safe nor unsafe")
    if lines[0] == "safe":
        return SAFE
    marks = ["adversarial"] if lines[1:2] == ["adversarial"] else []
    return unsafe(*(code.strip() for code in (found["codes"] or "").split(",") if code), *marks)

"""SingGuard: `safe` or `unsafe` on the first line, its category as `<answer>A. …</answer>`. Asked to think fast.

System prompt, taxonomy and form stand in the checkpoint's own chat template; its default is to reason first, at twenty
times the tokens.
Source: inclusionAI/Sing-Guard@69df570:README.md (template call, `thinking_type`, answers, categories A to G).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from schemas.guards import GuardCard
from worker.guards.llama_guard import CHOICES
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.reading import SAFE, Answer, coded, lines_of, unreadable, unsafe
from worker.guards.template_guard import Format

SCENARIOS: Final = {
    "A": "illegal_activities",
    "B": "illegal_activities",
    "C": "ethics_morality",
    "D": "privacy_property",
    "E": "",
    "F": "rumors_misinformation",
    "G": "ethics_morality",
}
_ANSWER: Final = re.compile(r"<answer>\s*([A-G])\.[^<]*</answer>")


def form(card: GuardCard, folder: Path) -> Format:  # noqa: ARG001 - what all families take
    """Plain turns; the template does the rest."""
    return Format(
        pair=(_ask(("user", QUESTION), ("assistant", RESPONSE)),),
        single=(_ask(("user", RESPONSE)),),
        read=read,
        choices=CHOICES,
        categories={f"\n<answer>{code}": coded(code, SCENARIOS) for code in SCENARIOS},
        max_new_tokens=256,
    )


def _ask(*messages: tuple[str, str]) -> Ask:
    return Ask(messages, options={"thinking_type": "fast"})


def read(text: str, single: bool) -> Answer:  # noqa: ARG001, FBT001 - Format.read
    """The first line decides; every category that an answer names is kept."""
    first = (lines_of(text) or [""])[0]
    if first not in ("safe", "unsafe"):
        return unreadable("the first line is neither safe nor unsafe")
    codes = dict.fromkeys(_ANSWER.findall(text))
    return SAFE if first == "safe" else unsafe(*(coded(code, SCENARIOS) for code in codes))

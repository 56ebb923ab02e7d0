"""Kanana Safeguard: one special token, `<SAFE>` or `<UNSAFE-S3>`.

8b takes a user turn or a pair; siren and prompt take one turn, so that of a pair they see both texts as one.
Source: mozilla-ai/any-guardrail@b1008dd docs of KananaSafeguard (tokens, variants, codes); no generation prompt, as
in the models' cards (from memory, not verified).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from schemas.guards import GuardCard
from schemas.items import Label
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.reading import SAFE, Answer, Choice, coded, unreadable, unsafe
from worker.guards.template_guard import Format

SCENARIOS: Final = {
    "S1": "hate_abuse",
    "S2": "hate_abuse",
    "S3": "illegal_activities",
    "S4": "illegal_activities",
    "S5": "illegal_activities",
    "S6": "physical_mental_health",
    "S7": "rumors_misinformation",
    "I1": "illegal_activities",
    "I2": "rumors_misinformation",
    "I3": "privacy_property",
    "I4": "privacy_property",
    "A1": "",
    "A2": "",
}
_ANSWER: Final = re.compile(r"\s*<(?:SAFE|UNSAFE-(?P<code>[SIA]\d))>\s*")


def form(card: GuardCard, folder: Path) -> Format:  # noqa: ARG001 - what all families take
    """The codes of this variant."""
    pair = ("user", QUESTION), ("assistant", RESPONSE)
    one_turn = (("user", f"{QUESTION}\n{RESPONSE}"),)
    codes = [code for code in SCENARIOS if code.startswith(card.variant)]
    return Format(
        pair=(Ask(pair if card.variant == "S" else one_turn, add_generation_prompt=False),),
        single=(Ask((("user", RESPONSE),), add_generation_prompt=False),),
        read=read,
        choices=(
            Choice("<SAFE>", Label.SAFE),
            *(Choice(f"<UNSAFE-{code}>", Label.UNSAFE, coded(code, SCENARIOS)) for code in codes),
        ),
        max_new_tokens=1,
        one_token_choices=True,
        keeps_controls=True,
    )


def read(text: str, single: bool) -> Answer:  # noqa: ARG001, FBT001 - Format.read
    """The whole answer is one token."""
    found = _ANSWER.fullmatch(text)
    if found is None or (found["code"] and found["code"] not in SCENARIOS):
        return unreadable("the answer is neither <SAFE> nor <UNSAFE-…>")
    return unsafe(coded(found["code"], SCENARIOS)) if found["code"] else SAFE

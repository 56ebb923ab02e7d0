"""Kanana Safeguard: one special token, `<SAFE>` or `<UNSAFE-S3>`.

8b is always sent both turns, the assistant's empty where there is none, as in its card's code. siren and prompt take
one turn, so that of a pair they see both texts as one.
Source: the card's code in two public copies; mozilla-ai/any-guardrail@069eb33 kanana_safeguard.py (tokens, variants,
codes). The message list of siren and prompt was not found.
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
    both_turns = card.variant == "S"
    pair = ("user", QUESTION), ("assistant", RESPONSE)
    alone = (("user", RESPONSE), *((("assistant", ""),) if both_turns else ()))
    one_turn = (("user", f"{QUESTION}\n{RESPONSE}"),)
    codes = [code for code in SCENARIOS if code.startswith(card.variant)]
    return Format(
        pair=(Ask(pair if both_turns else one_turn, add_generation_prompt=False),),
        single=(Ask(alone, add_generation_prompt=False),),
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

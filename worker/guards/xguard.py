"""YuFeng-XGuard-Reason: the first generated token is the category, `sec` is safe.

Source: Alibaba-AAIG/YuFeng-XGuard-Reason@ea1404a:README.md (template call, ids), technical_report.pdf
(3.4 and 4.1: the likeliest id is the category, and counts from 0.5 of its own confidence for prompts,
0.8 for responses).
P(unsafe) is the share of the 28 risk ids among all 29; the label is the paper's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from schemas.guards import GuardCard
from schemas.items import Label
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.reading import SAFE, Answer, Choice, coded, unreadable, unsafe
from worker.guards.template_guard import Format, as_messages

_BY_SCENARIO: Final = {
    "illegal_activities": "pc dc dw pi ec acc mc ha ps ter sd ext cm ma md",
    "hate_abuse": "ac def ti cy",
    "physical_mental_health": "ph mh",
    "ethics_morality": "se sci",
    "privacy_property": "pp cs",
    "rumors_misinformation": "fin med law",
}
SCENARIOS: Final = {code: scenario for scenario, codes in _BY_SCENARIO.items() for code in codes.split()}


def form(card: GuardCard, folder: Path) -> Format:  # noqa: ARG001 - what all families take
    """One new token in either mode; the explanation that could follow is not asked for."""
    return Format(
        pair=(_ask(("user", QUESTION), ("assistant", RESPONSE)),),
        single=(_ask(("user", RESPONSE)),),
        conversation=as_messages,
        read=read,
        choices=(
            Choice("sec", Label.SAFE),
            *(Choice(code, Label.UNSAFE, coded(code, SCENARIOS)) for code in SCENARIOS),
        ),
        max_new_tokens=1,
        one_token_choices=True,
    )


def _ask(*messages: tuple[str, str]) -> Ask:
    return Ask(messages, options={"policy": None, "reason_first": False}, add_generation_prompt=False)


def read(text: str, single: bool) -> Answer:  # noqa: ARG001, FBT001 - Format.read
    """The whole answer is one id, or an id before the explanation."""
    code = text.strip().partition("\n")[0].partition("<explanation>")[0].strip()
    if code == "sec":
        return SAFE
    return unsafe(coded(code, SCENARIOS)) if code in SCENARIOS else unreadable("the answer begins with no category id")

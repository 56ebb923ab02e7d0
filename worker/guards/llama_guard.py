"""Llama Guard 1 to 4: a conversation in, `safe` or `unsafe` and its codes out.

Prompts come from the checkpoints' own chat templates, which put the task, the categories and `User:` /
`Agent:` lines around the messages and assess the last role only.
Source: meta-llama/PurpleLlama@4be64c3:Llama-Guard*/MODEL_CARD.md (answers, codes),
AmenRa/GuardBench@f4a8cb0:scripts/effectiveness/llama_guard*.py (first-token softmax),
mozilla-ai/any-guardrail@6b9d71e llama_guard.py (no generation prompt for 1 to 3, 20 new tokens).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from schemas.guards import GuardCard
from schemas.items import Label
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.reading import Choice, coded, read_first_line
from worker.guards.template_guard import Format, as_messages

_ILLEGAL, _PRIVACY, _RUMORS = "illegal_activities", "privacy_property", "rumors_misinformation"
_HEALTH, _HATE = "physical_mental_health", "hate_abuse"

_SCENARIOS_1: Final = {"O1": _HATE, "O2": _ILLEGAL, "O3": _ILLEGAL, "O4": _ILLEGAL, "O5": _ILLEGAL, "O6": _HEALTH}
_SCENARIOS_2: Final = {
    "S1": _ILLEGAL,
    "S2": _ILLEGAL,
    "S3": _ILLEGAL,
    "S4": _ILLEGAL,
    "S5": _RUMORS,
    "S6": _PRIVACY,
    "S7": _PRIVACY,
    "S8": _ILLEGAL,
    "S9": _HATE,
    "S10": _HEALTH,
    "S11": _ILLEGAL,
}
"""Its numbering differs from that of version 3: no defamation, no elections."""
SCENARIOS: Final = {
    "S1": _ILLEGAL,
    "S2": _ILLEGAL,
    "S3": _ILLEGAL,
    "S4": _ILLEGAL,
    "S5": _RUMORS,
    "S6": _RUMORS,
    "S7": _PRIVACY,
    "S8": _PRIVACY,
    "S9": _ILLEGAL,
    "S10": _HATE,
    "S11": _HEALTH,
    "S12": _ILLEGAL,
    "S13": _RUMORS,
}
"""Of Llama Guard 3 and 4, and of PolyGuard, which took their codes; S14 (code interpreters) is in no scenario."""
_SAFE, _UNSAFE = Label.SAFE, Label.UNSAFE
CHOICES: Final = (Choice("safe", _SAFE), Choice("unsafe", _UNSAFE))
SPACED_CHOICES: Final = (Choice(" safe", _SAFE), Choice(" unsafe", _UNSAFE))
"""After `[/INST]` a SentencePiece model begins its answer with a space: `▁safe`, one token, as `▁unsafe` is."""
_EITHER_LINE: Final = (*CHOICES, Choice("\n\nsafe", _SAFE), Choice("\n\nunsafe", _UNSAFE))
"""Version 4 begins some answers with a blank line and some without, as the verdict is."""


def form(card: GuardCard, folder: Path) -> Format:  # noqa: ARG001 - what all families take
    """Return this version's prompt and the reading of its answers."""
    scenarios = {"1": _SCENARIOS_1, "2": _SCENARIOS_2}.get(card.variant, SCENARIOS)
    read = partial(read_first_line, pattern=r"[OS]\d+", scenarios=scenarios)

    def ask(*messages: tuple[str, str]) -> tuple[Ask, ...]:
        # Version 3 writes a blank line first: it is put there instead. Version 4's template has a generation prompt.
        prefill = "\n\n" if card.variant == "3" else ""
        return (Ask(messages, add_generation_prompt=card.variant == "4", prefill=prefill),)

    return Format(
        pair=ask(("user", QUESTION), ("assistant", RESPONSE)),
        single=ask(("user", RESPONSE)),
        conversation=as_messages,
        read=lambda text, single: read(text),  # noqa: ARG005
        choices={"1": SPACED_CHOICES, "4": _EITHER_LINE}.get(card.variant, CHOICES),
        categories={f"\n{code}": coded(code, scenarios) for code in _codes(card)},
        max_new_tokens=20,
        needs_separation=card.variant in ("3", "4"),  # [INST] is text to the tokenizers of 1 and 2
    )


def _codes(card: GuardCard) -> list[str]:
    """The codes that this version may write."""
    letter, last = {"1": ("O", 6), "2": ("S", 11)}.get(card.variant, ("S", 14))
    if card.name == "llama-guard-3-1b":
        last = 13  # its card has no code interpreter abuse
    return [f"{letter}{number}" for number in range(1, last + 1)]

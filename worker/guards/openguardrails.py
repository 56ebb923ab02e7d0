"""OpenGuardrails-Text and Xiangxin-Guardrails-Text: plain turns in, `safe`, or `unsafe` and its codes, out.

The authors' service sends the conversation as it is and takes exp of the first token's log-probability for confidence.
Source: xiangxinai/xiangxin-guardrails@6205076:README.md, backend/services/detection_guardrail_service.py and
model_service.py (call, parsing, S1 to S12).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from schemas.guards import GuardCard
from worker.guards.llama_guard import CHOICES
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.reading import coded, read_first_line
from worker.guards.template_guard import Format, as_messages

SCENARIOS: Final = {"S1": "rumors_misinformation", "S2": "rumors_misinformation", "S3": "rumors_misinformation"}
"""Politics. The other codes stay as they are: S9 (prompt attacks) is in no scenario, of the rest we saw no table."""


def form(card: GuardCard, folder: Path) -> Format:  # noqa: ARG001 - what all families take
    """The conversation and nothing around it."""
    read = partial(read_first_line, pattern=r"S\d+", scenarios=SCENARIOS)
    return Format(
        pair=(Ask((("user", QUESTION), ("assistant", RESPONSE))),),
        single=(Ask((("user", RESPONSE),)),),
        conversation=as_messages,
        read=lambda text, single: read(text),  # noqa: ARG005
        choices=CHOICES,
        categories={f"\n{code}": coded(code, SCENARIOS) for code in (f"S{number}" for number in range(1, 13))},
        max_new_tokens=20,
    )

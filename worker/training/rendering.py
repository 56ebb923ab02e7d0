"""The one text a training row is made of, word for word what the Libra guard serves.

The user turn and the prefilled answer come from `worker.guards.libra`; the chat template is Qwen2.5's without a
default system message; the answer is the reference's JSON. Text between the template's control tokens is encoded as
plain text, a whole turn at a time, as the serving side does it.
"""

from __future__ import annotations

import json
from typing import Final

from schemas.items import Label
from worker.guards.libra import PREFILL, WORDS, user_turn

__all__ = ["CHAT_TEMPLATE", "END", "PREFILL", "SPECIALS", "TURN", "TURN_END", "answer_text", "label_text", "user_turn"]

END: Final = "<|endoftext|>"
TURN: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIALS: Final = (END, TURN, TURN_END)

_AFTER_LABEL: Final = '",\n  "分析": "'
_ANSWER_END: Final = '"\n}'

CHAT_TEMPLATE: Final = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)


def label_text(label: Label) -> str:
    """What follows the prefilled answer, up to the analysis."""
    return f"{WORDS[label]}{_AFTER_LABEL}"


def answer_text(label: Label, analysis: str) -> str:
    """The whole answer the guard is taught to give, without the turn's end."""
    written = json.dumps(analysis, ensure_ascii=False)[1:-1]
    return f"{PREFILL}{label_text(label)}{written}{_ANSWER_END}"

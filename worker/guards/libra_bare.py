"""Libra Guard's prompt without a chat template: what the reference asks with `--is_instruct 0`. For base models.

The text goes to the tokenizer as it is, which puts its own beginning before it. A user's text still yields no control
token's id, but nothing stands between it and the answer: it may write a verdict of its own. Mode generate only.
Source: caskcsg/Libra@c33c88b:Libra/scripts/inference.py.
"""

from __future__ import annotations

from typing import Final

from infra.critic import read_critic
from schemas.items import Kind, Label
from worker.guards.libra import DIALOGUE, INSTRUCTION
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.reading import SAFE, Answer, unreadable, unsafe
from worker.guards.template_guard import Format


def _read(text: str, single: bool) -> Answer:  # noqa: ARG001, FBT001 - Format.read
    label = read_critic(text)
    if label is None:
        return unreadable("the model wrote no JSON object whose 答案 says 安全 or 不安全")
    return unsafe() if label is Label.UNSAFE else SAFE


BARE: Final = Format(
    pair=(Ask(raw=f"{INSTRUCTION}\n{DIALOGUE.format(QUESTION, RESPONSE)}"),),
    alone=Kind.RESPONSE,
    read=_read,
    max_new_tokens=256,
    needs_separation=False,
)

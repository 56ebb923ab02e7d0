"""A generative model: asked with the item's text as it stands, its answer is the raw text of an unparseable verdict.

For `libra data curate`, so that what it writes is settled exactly once, on any device, like a verdict. It
never gives a label, so nothing is moderated by it.
"""

from __future__ import annotations

from worker.guards.prompt import RESPONSE, Ask
from worker.guards.reading import Answer, unreadable
from worker.guards.template_guard import Format


def form() -> Format:
    """One user turn in the checkpoint's own chat template."""
    return Format(pair=(Ask((("user", RESPONSE),)),), read=_no_verdict, max_new_tokens=512)


def _no_verdict(text: str, single: bool) -> Answer:  # noqa: ARG001, FBT001 - Format.read
    return unreadable("a generator gives text, no verdict")

"""Qwen3Guard-Stream: severity and category of the last turn out of classification heads, in one forward pass.

Two pairs of heads: one for a user's turn, one for a model's. The whole text is judged at the token that ends its turn.
Controversial is unsafe to the strict reading (the label) and safe to the loose one. The classes are named by the
checkpoint's config.json; where it does not name them, in the order of the authors' evaluation.
Source: QwenLM/Qwen3Guard@484cee6:eval/eval_stream.py (template call, heads by role, order of the classes, last token of
a prompt). For responses its authors scan all tokens for two unsafe ones in a row, which suits a stream; here the
last one is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from infra.errors import GuardError
from schemas.guards import GuardCard
from schemas.items import Label
from worker.guards.checkpoint import read_json
from worker.guards.prompt import QUESTION, RESPONSE, Ask
from worker.guards.qwen3guard import SCENARIOS
from worker.guards.reading import Choice, coded, unreadable
from worker.guards.template_guard import Format, Heads, as_messages

_RISKS: Final = ("Safe", "Unsafe", "Controversial")
_CATEGORIES: Final = (
    "Violent",
    "Sexual Content or Sexual Acts",
    "Suicide & Self-Harm",
    "Politically Sensitive Topics",
    "PII",
    "Copyright Violation",
    "Non-violent Illegal Acts",
    "Unethical Acts",
)
_LABELS: Final = {
    "Safe": Choice("Safe", Label.SAFE),
    "Unsafe": Choice("Unsafe", Label.UNSAFE),
    "Controversial": Choice("Controversial", Label.UNSAFE, controversial=True),
}


def form(card: GuardCard, folder: Path) -> Format:  # noqa: ARG001 - what all families take
    """The conversation as it is, up to the end of its last turn."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    return Format(
        pair=(_ask(("user", QUESTION), ("assistant", RESPONSE)),),
        single=(_ask(("user", RESPONSE)),),
        conversation=as_messages,
        read=lambda text, single: unreadable("heads give numbers, no text"),  # noqa: ARG005 - Format.read
        heads=(
            _heads(config, folder, "query_", "query_", (*_CATEGORIES, "Jailbreak")),
            _heads(config, folder, "response_", "", _CATEGORIES),
        ),
        max_new_tokens=1,
    )


def _ask(*messages: tuple[str, str]) -> Ask:
    return Ask(messages, options={"enable_thinking": False}, add_generation_prompt=False)


def _heads(config: dict[str, Any], folder: Path, side: str, counted: str, known: Sequence[str]) -> Heads:
    """The heads of one side, whose maps begin with `side` and whose numbers of classes with `counted`."""
    risk, category = f"{side}risk_level_map", f"{side}category_map"
    levels = _names(config, folder, risk, _RISKS)
    if set(levels) != set(_RISKS):
        raise GuardError(f"{folder}/config.json: {risk} names {', '.join(levels)}, not {', '.join(_RISKS)}")
    names = _names(config, folder, category, known)
    classes = config.get(f"num_{counted}category", len(names))
    if classes != len(names):  # the heads behind it would be read at other places
        raise GuardError(f"{folder}/config.json: {category} names {len(names)} of {classes} classes")
    return Heads(tuple(_LABELS[level] for level in levels), tuple(coded(name, SCENARIOS) for name in names))


def _names(config: dict[str, Any], folder: Path, key: str, default: Sequence[str]) -> tuple[str, ...]:
    """The classes in their order, from a map of numbers to names."""
    found = config.get(key)
    if found is None:
        return tuple(default)
    try:
        # Some names stand in quotes of their own.
        return tuple(str(found[str(at)]).strip('"') for at in range(len(found)))
    except (KeyError, TypeError) as error:
        raise GuardError(f"{folder}/config.json: {key} does not number its classes from 0") from error

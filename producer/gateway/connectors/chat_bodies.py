"""Finds what is to be judged in the bodies of chat APIs: OpenAI's chat and responses, Anthropic's messages.

One walk for all of them: they differ in where a text stands, hardly in what it is called. Of a request all turns, since
whoever sends it may have made up the earlier ones (what was judged before costs no device time again); of an answer all
that the model says, the arguments of its tool calls included. Instructions to the model are left out. Knows no wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from producer.gateway.connectors.adapter import Text
from schemas.items import Dialogue, Kind

_TEXT: Final = {"content", "text", "thinking", "reasoning", "reasoning_content", "refusal", "summary"}
"""Fields that hold a text, or parts with texts."""
_WHOLE: Final = {"arguments", "input", "output"}
"""Fields of tool calls and their results, in which every text counts, whatever it is called."""
_SAYS: Final = ("choices", "content", "output", "text", "reasoning", "tool_calls")
"""Fields of an answer in which a model says something."""
_IMAGES: Final = ("image", "image_url", "input_image", "image_generation_call")
_OTHERS: Final = ("audio", "input_audio", "audio_url", "video", "video_url", "file", "input_file", "document")
_NO_TEXT: Final = (*_IMAGES, *_OTHERS)
"""Types of parts that no guard here judges."""
_INSTRUCTIONS: Final = ("system", "developer")
"""Roles of those who run the model."""
_MODELS_OWN: Final = ("function_call", "reasoning", "custom_tool_call")
"""Types of items without a role that are a model's words, among OpenAI's responses."""

Leaf = tuple[str, str | None]


class Found(NamedTuple):
    """The texts to judge, and the paths of what no guard here can judge."""

    texts: list[Text]
    unjudged: list[str]


def in_request(payload: Mapping[str, object]) -> Found:
    """What the user, the model and tools have said in a request, turn by turn."""
    name = "messages" if "messages" in payload else "input"
    turns = payload.get(name)
    if not isinstance(turns, list):
        return _found("payload", [(f"payload.{name}", turns)] if isinstance(turns, str) else [], Kind.PROMPT)
    found = Found([], [])
    for at, turn in enumerate(turns):
        given = turn if isinstance(turn, dict) else {"content": turn}
        if given.get("role") not in _INSTRUCTIONS:
            is_models = given.get("role") == "assistant" or given.get("type") in _MODELS_OWN
            path = f"payload.{name}.{at}"
            said = _found(path, list(_leaves(given, path)), Kind.RESPONSE if is_models else Kind.PROMPT)
            found = Found(found.texts + said.texts, found.unjudged + said.unjudged)
    return found


def in_response(payload: Mapping[str, object]) -> Found:
    """All that a model says in an answer: texts, reasoning, the arguments of tool calls."""
    said = [name for name in _SAYS if name in payload]
    leaves = [leaf for name in said for leaf in _leaves(payload[name], f"payload.{name}", counts=name in _TEXT)]
    return _found("payload", leaves, Kind.RESPONSE)


def _found(path: str, leaves: Sequence[Leaf], kind: Kind) -> Found:
    """What the leaves below a path hold; where there is none, not even an empty text, the path itself is not judged."""
    texts = [Text(place, _spoken(text, kind)) for place, text in leaves if text and text.strip()]
    return Found(texts, [place for place, text in leaves if text is None] if leaves else [path])


def _spoken(text: str, kind: Kind) -> Dialogue:
    return Dialogue(question=text, kind=kind) if kind is Kind.PROMPT else Dialogue(response=text, kind=kind)


def _leaves(value: object, path: str, *, counts: bool = False, whole: bool = False) -> Iterator[Leaf]:
    """Each text with its path; None in its place for a part that is no text. `counts`: a text right here is one."""
    if value and isinstance(value, list):
        for at, one in enumerate(value):
            yield from _leaves(one, f"{path}.{at}", counts=counts, whole=whole)
    elif value and isinstance(value, dict):
        if value.get("type") in _NO_TEXT and not whole:
            yield path, None
            return
        for name, one in value.items():
            yield from _leaves(one, f"{path}.{name}", counts=name in _TEXT, whole=whole or name in _WHOLE)
    elif (counts or whole) and (isinstance(value, str) or not value):
        yield path, str(value or "")

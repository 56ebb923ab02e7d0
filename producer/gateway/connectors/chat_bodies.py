"""Finds what is to be judged in the bodies of chat APIs: OpenAI's chat and responses, Anthropic's messages.

One walk for all of them: they differ in where a text stands, hardly in what it is called. Of a request all turns, since
whoever sends it may have made up the earlier ones (what was judged before costs no device time again); of an answer all
that the model says, the arguments of its tool calls included. Instructions to the model are left out. Knows no wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from producer.gateway.connectors.adapter import Text
from schemas.items import Dialogue, Kind

_TEXT: Final = {"content", "text", "thinking", "reasoning", "reasoning_content", "refusal", "summary"}
"""Fields that hold a text, or parts with texts."""
_WHOLE: Final = {"arguments", "input", "output", "action", "operation", "code", "queries"}
"""Fields of tool calls and their results, in which every text counts, whatever it is called."""
_ASKED: Final = ("messages", "input", "prompt")
"""Fields of a request that hold what is asked. Which of several a model reads is not known here: all are judged."""
_SAYS: Final = ("choices", "content", "output", "text", "reasoning", "tool_calls")
"""Fields of an answer in which a model says something."""
_OF_PARTS: Final = ("choices", "output", "tool_calls")
"""Those of them that are lists whose every part has to hold something that is known here."""
_IMAGES: Final = ("image", "images", "image_url", "input_image", "image_generation_call", "computer_screenshot")
_OTHERS: Final = ("audio", "input_audio", "audio_url", "video", "video_url", "file", "input_file", "document")
_NO_TEXT: Final = (*_IMAGES, *_OTHERS)
"""Types of parts, and names of fields, that no guard here judges."""
_NO_ARGUMENTS: Final = ("input_image", "input_file", "input_audio", "computer_screenshot")
"""Those of them that are parts of a tool's result, too; the others may be words of a tool's own."""
_SAYS_NOTHING: Final = ("redacted_thinking", "compaction", "mcp_list_tools", "tool_reference")
"""Types of parts without words: what is encrypted, and which tools there are."""
_NOT_SAID: Final = ("logprobs", "format")
"""Fields that say nothing of their own: the tokens of a text once more, and the form that was asked for."""
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
    given = {name: payload[name] for name in _ASKED if payload.get(name) is not None}
    return joined(_asked(name, value) for name, value in given.items()) if given else Found([], ["payload"])


def _asked(name: str, value: object) -> Found:
    path = f"payload.{name}"
    if name == "prompt":  # a text, texts, or a stored prompt with its variables
        return _found(path, list(_leaves(value, path, whole=True)), Kind.PROMPT)
    if not isinstance(value, list):
        return _found(path, [(path, value)] if isinstance(value, str) else [], Kind.PROMPT)
    return joined(
        _turn(turn if isinstance(turn, dict) else {"content": turn}, f"{path}.{at}") for at, turn in enumerate(value)
    )


def _turn(given: Mapping[str, object], path: str) -> Found:
    if given.get("role") in _INSTRUCTIONS:
        return Found([], [])
    is_models = given.get("role") == "assistant" or given.get("type") in _MODELS_OWN
    return _found(path, list(_leaves(given, path)), Kind.RESPONSE if is_models else Kind.PROMPT)


def in_response(payload: Mapping[str, object]) -> Found:
    """All that a model says in an answer: texts, reasoning, the arguments of tool calls."""
    leaves: list[Leaf] = []
    for name in _SAYS:
        if name in payload:
            said = payload[name]
            counts = name in _TEXT or isinstance(said, str)
            leaves += _leaves(said, f"payload.{name}", counts=counts, each=name in _OF_PARTS)
    return _found("payload", leaves, Kind.RESPONSE)


def joined(parts: Iterable[Found]) -> Found:
    """All that several have found."""
    found = list(parts)
    return Found([text for one in found for text in one.texts], [path for one in found for path in one.unjudged])


def _found(path: str, leaves: Sequence[Leaf], kind: Kind) -> Found:
    """What the leaves below a path hold; where there is none, not even an empty text, the path itself is not judged."""
    texts = [Text(place, _spoken(text, kind)) for place, text in leaves if text and text.strip()]
    return Found(texts, [place for place, text in leaves if text is None] if leaves else [path])


def _spoken(text: str, kind: Kind) -> Dialogue:
    return Dialogue(question=text, kind=kind) if kind is Kind.PROMPT else Dialogue(response=text, kind=kind)


def _leaves(
    value: object, path: str, *, counts: bool = False, whole: bool = False, each: bool = False
) -> Iterator[Leaf]:
    """Each text with its path; None in its place for a part that is no text.

    `counts`: a text right here is one. `whole`: so is every text below. `each`: as in `_parts`.
    """
    if value and isinstance(value, list):
        yield from _parts(value, path, counts=counts, whole=whole, each=each or counts)
    elif value and isinstance(value, dict):
        yield from _fields(value, path, whole=whole)
    elif (counts or whole) and (isinstance(value, str) or not value):
        yield path, str(value or "")


def _parts(parts: Sequence[object], path: str, *, counts: bool, whole: bool, each: bool) -> Iterator[Leaf]:
    """The leaves of a list. `each`: a part without one is of a form that is unknown here, and not judged."""
    for at, part in enumerate(parts):
        found = list(_leaves(part, f"{path}.{at}", counts=counts, whole=whole))
        yield from found
        if each and not whole and not found and not _says_nothing(part):
            yield f"{path}.{at}", None


def _fields(given: Mapping[str, object], path: str, *, whole: bool) -> Iterator[Leaf]:
    if given.get("type") in (_NO_ARGUMENTS if whole else _NO_TEXT):
        yield path, None
        return
    for name, value in given.items():
        if value and name in _NO_TEXT and not whole:
            yield f"{path}.{name}", None
        elif whole or name not in _NOT_SAID:
            yield from _leaves(value, f"{path}.{name}", counts=name in _TEXT, whole=whole or name in _WHOLE)


def _says_nothing(part: object) -> bool:
    """Whether a part of a known type holds no words; the words of a tool's result are found where there are any."""
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and (kind in _SAYS_NOTHING or kind.endswith("tool_result"))

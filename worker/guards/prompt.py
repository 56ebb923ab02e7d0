"""One way to put a dialogue to a model: a conversation for its chat template, or a raw prompt. Torch-free.

The template is rendered once, with placeholders; what stands between its control tokens is encoded as plain
text, a whole stretch at a time, so that no text can yield a control token's id.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from infra.errors import GuardError
from worker.guards.base import PromptIds
from worker.guards.vocabulary import Vocabulary

QUESTION: Final = "LibraQuestionText"
RESPONSE: Final = "LibraResponseText"
"""Placeholders for the dialogue; a single text takes the place of the response."""

Dialogue = tuple[str, str]

_FIELDS: Final = (QUESTION, RESPONSE)
_PLACEHOLDER: Final = re.compile(f"({QUESTION}|{RESPONSE})")
_ONE_DAY: Final = (
    "{% macro strftime_now(form) %}{{ '05 Aug 2025' if form == '%d %b %Y' else '2025-08-05' }}{% endmacro %}{{ '' }}"
)
"""Some templates (harmony's) write today's date; with it the same guard would have another fingerprint tomorrow."""
_SAMPLE: Final = ("你好，world 123\n第二行。", "Fine, thanks. 好的")


@dataclass(frozen=True)
class Ask:
    """One request to a model.

    `raw` holds a whole prompt, control tokens by name, for models without a chat template; else `messages`
    (role, content) go through the checkpoint's own with `options`. `policy` names what this one prompt is
    about where a guard is asked once per policy. In score mode `prefill` begins the model's turn.
    """

    messages: tuple[tuple[str, str], ...] = ()
    raw: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    prefill: str = ""
    policy: str = ""


class Prompt:
    """An `Ask` in one checkpoint's own words. Thread-safe.

    `separates` says whether a control token stands between the user's text and the answer; where it does
    not (raw `[INST]` formats), the format itself cannot keep a text from pretending to be the answer.

    Raises:
        GuardError: the template fails, does not repeat the texts once and unchanged, or its tokenizer reads
            text next to control tokens in a way that is not supported.
    """

    def __init__(self, ask: Ask, words: Vocabulary, folder: Path) -> None:
        self.ask = ask
        self._words = words
        if ask.raw:
            self.rendered, self._trims = ask.raw, dict.fromkeys(_FIELDS, (False, False))
        else:
            self.rendered, self._trims = _render(ask, words.loaded, folder)
        self._pieces = words.split(self.rendered)
        filled = [at for at, piece in enumerate(self._pieces) if _PLACEHOLDER.search(piece)]
        self.separates = filled[-1] < len(self._pieces) - 1
        self.turn_end: str | None = self._pieces[filled[-1] + 1] if self.separates else None
        """The control token that ends the user's turn."""
        self._check_against_own_tokenizer(folder)

    def encode(self, dialogues: Sequence[Dialogue], answer: str = "") -> list[PromptIds]:
        """Prompt ids of each dialogue, up to and including `answer` in the model's turn."""
        prompts = [array("i") for _ in dialogues]
        for piece in self._with_answer(answer):
            if piece in self._words.controls:
                rows = [array("i", [self._words.controls[piece]])] * len(prompts)
            elif _PLACEHOLDER.search(piece):
                rows = self._words.batch_ids([self._fill(piece, dialogue) for dialogue in dialogues])
            else:
                rows = [self._words.text_ids(piece)] * len(prompts)
            for prompt, row in zip(prompts, rows, strict=True):
                prompt.extend(row)
        return prompts

    def _with_answer(self, answer: str) -> list[str]:
        # The answer is our own text: where it names a control token, it is one.
        return [*self._pieces[:-1], *self._words.split(self._pieces[-1] + answer)] if answer else self._pieces

    def _fill(self, piece: str, dialogue: Dialogue) -> str:
        texts = dict(zip(_FIELDS, dialogue, strict=True))
        parts = _PLACEHOLDER.split(piece)
        parts[1::2] = [_trimmed(texts[name], *self._trims[name]) for name in parts[1::2]]
        return "".join(parts)

    def _check_against_own_tokenizer(self, folder: Path) -> None:
        theirs = self._words.full.encode(self._fill(self.rendered, _SAMPLE), add_special_tokens=False).ids
        if self.encode([_SAMPLE])[0].tolist() != theirs:
            raise GuardError(
                f"the tokenizer of {folder} reads text beside its control tokens in a way that is not supported "
                "(it strips, prefixes or replaces it); the ids would not be those the model was trained on"
            )


def _render(ask: Ask, loaded: Any, folder: Path) -> tuple[str, dict[str, tuple[bool, bool]]]:  # noqa: ANN401 - transformers has no types
    """The template's text around the placeholders, and at which ends it trims each text."""
    if not loaded.chat_template:
        raise GuardError(f"{folder} has no chat template; put the model's own as chat_template.jinja beside its files")
    used = [name for name in _FIELDS if any(name in content for _, content in ask.messages)]
    # Some templates want each content as a list of typed parts.
    for in_parts in (False, True):
        rendered = _apply(ask, loaded, folder, in_parts=in_parts)
        if all(rendered.count(name) == 1 for name in used):
            return rendered, {name: _trim(name, ask, loaded, folder, in_parts=in_parts) for name in used}
    raise GuardError(f"the chat template of {folder} does not repeat a user's text once and unchanged")


def _trim(name: str, ask: Ask, loaded: Any, folder: Path, *, in_parts: bool) -> tuple[bool, bool]:  # noqa: ANN401
    plain = _apply(ask, loaded, folder, in_parts=in_parts)
    spaced = _apply(ask, loaded, folder, in_parts=in_parts, spaced=name)
    for left in (False, True):
        for right in (False, True):
            if spaced == plain.replace(name, ("" if left else "\n") + name + ("" if right else "\n")):
                return left, right
    raise GuardError(f"the chat template of {folder} does not repeat a user's text once and unchanged")


def _apply(ask: Ask, loaded: Any, folder: Path, *, in_parts: bool, spaced: str = "") -> str:  # noqa: ANN401
    messages = []
    for role, content in ask.messages:
        text = content.replace(spaced, f"\n{spaced}\n") if spaced else content
        messages.append({"role": role, "content": [{"type": "text", "text": text}] if in_parts else text})
    try:
        return str(
            loaded.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=ask.add_generation_prompt,
                chat_template=f"{_ONE_DAY}{loaded.get_chat_template()}",
                **ask.options,
            )
        )
    except Exception as error:
        if not in_parts:
            return ""
        raise GuardError(f"the chat template of {folder} fails: {error}") from error


def _trimmed(text: str, left: bool, right: bool) -> str:  # noqa: FBT001 - unpacked from one pair
    text = text.lstrip() if left else text
    return text.rstrip() if right else text

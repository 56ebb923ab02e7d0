"""One way to put a dialogue to a model: a conversation for its chat template, or a raw prompt. Torch-free.

The template is rendered once, with placeholders; what stands between its control tokens is encoded as plain
text, a whole stretch at a time, so that no text can yield a control token's id.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

from infra.errors import GuardError
from worker.guards.base import PromptIds
from worker.guards.checkpoint import tokenizer_file
from worker.guards.vocabulary import Vocabulary

QUESTION: Final = "LibraQuestionText"
RESPONSE: Final = "LibraResponseText"
"""Placeholders for the dialogue; a single text takes the place of the response."""

Dialogue = tuple[str, ...]
"""Question and response, then the turns before them."""

_FIELDS: Final = (QUESTION, RESPONSE)
_TURN: Final = re.compile(r"LibraTurn\d+Text")
_PLACEHOLDER: Final = re.compile(rf"({QUESTION}|{RESPONSE}|{_TURN.pattern})")
_ONE_DAY: Final = (
    "{% macro strftime_now(form) %}{{ '05 Aug 2025' if form == '%d %b %Y' else '2025-08-05' }}{% endmacro %}{{ '' }}"
)
"""Some templates (harmony's) write today's date; with it the same guard would have another fingerprint tomorrow."""
_SAMPLE: Final = ("你好，world 123\n第二行。", "Fine, thanks. 好的")


def turn_field(at: int) -> str:
    """The placeholder of a turn before the question and its response, counted from the first."""
    return f"LibraTurn{at}Text"


@dataclass(frozen=True)
class Ask:
    """One request to a model.

    `raw` holds a whole prompt, control tokens by name, for models without a chat template: as text handed to the
    tokenizer, which puts its own beginning before it. Else `messages` (role, content) go through the checkpoint's own
    template with `options`. `policy` names what this one prompt is
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
        self._leading = words.leading_ids() if ask.raw else array("i")
        self._fields = (*_FIELDS, *_TURN.findall(ask.raw + "".join(content for _, content in ask.messages)))
        if ask.raw:
            self.rendered, self._trims = ask.raw, dict.fromkeys(self._fields, (False, False))
        else:
            self.rendered, self._trims = _render(ask, self._fields, words.loaded, folder)
        self.pieces = words.split(self.rendered)
        """Text and control tokens in turn: odd places are control tokens."""
        self.last_text = max(at for at, piece in enumerate(self.pieces) if _PLACEHOLDER.search(piece))
        """The place of the last piece that holds a text of the dialogue."""
        self.separates = self.last_text < len(self.pieces) - 1
        self.turn_end: str | None = self.pieces[self.last_text + 1] if self.separates else None
        """The control token that ends the user's turn."""
        sample = tuple(_SAMPLE[at % 2] for at in range(len(self._fields)))
        theirs = words.full.encode(self.fill(self.rendered, sample), add_special_tokens=bool(ask.raw)).ids
        if self.encode([sample])[0].tolist() != theirs:
            raise GuardError(
                f"the tokenizer of {folder} reads text next to its control tokens in a way that is not supported "
                "(it strips, prefixes or replaces it); the ids would not be those the model was trained on"
            )

    def encode(self, dialogues: Sequence[Dialogue], answer: str = "") -> list[PromptIds]:
        """Prompt ids of each dialogue, up to and including `answer` in the model's turn."""
        # The answer is our own text: where it names a control token, it is one.
        pieces = [*self.pieces[:-1], *self._words.split(self.pieces[-1] + answer)] if answer else self.pieces
        prompts = [self._leading[:] for _ in dialogues]
        for at, piece in enumerate(pieces):
            if piece in self._words.controls:
                rows = [array("i", [self._words.controls[piece]])] * len(prompts)
            elif _PLACEHOLDER.search(piece):
                lead = _PLACEHOLDER.split(piece, maxsplit=1)[0]
                texts = [self.fill(piece, dialogue) for dialogue in dialogues]
                rows = self._words.batch_ids_behind(lead, texts, first=at == 0)
            else:
                rows = self._words.batch_ids([piece], first=at == 0) * len(prompts)
            for prompt, row in zip(prompts, rows, strict=True):
                prompt.extend(row)
        return prompts

    def fill(self, piece: str, dialogue: Dialogue) -> str:
        """A piece with the texts in their places, trimmed where the template would."""
        texts = dict(zip(self._fields, dialogue, strict=True))
        parts = _PLACEHOLDER.split(piece)
        for at in range(1, len(parts), 2):
            left, right = self._trims[parts[at]]
            text = texts[parts[at]].lstrip() if left else texts[parts[at]]
            parts[at] = text.rstrip() if right else text
        return "".join(parts)


class ChatTokenizer:
    """One user turn in a checkpoint's chat template, encoded in halves: up to the user's text, and what follows it.

    Unlike `Prompt.encode` it takes the answer for text too: no answer can yield a control token's id. Thread-safe.

    Raises:
        GuardError: no tokenizer, no chat template, or a template that cannot keep user text apart.
    """

    def __init__(self, folder: Path) -> None:
        self.words = Vocabulary(folder)
        self._turn = Prompt(Ask((("user", QUESTION),)), self.words, folder)
        pieces, at = self._turn.pieces, self._turn.last_text
        if not self._turn.separates:
            raise GuardError(
                f"the chat template of {folder} has no control token after the user's text, "
                "so a text could pretend to be the answer; use a checkpoint with one, such as ChatML"
            )
        self._head, self._text = self.words.fixed(pieces[:at], first=True), pieces[at]
        self._tail, self._answer_lead = self.words.fixed(pieces[at + 1 : -1]), pieces[-1]
        eos = self.words.loaded.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*([] if eos is None else [eos]), self._tail[0]]))
        """Ids that end the assistant's turn: the tokenizer's own end of text, the template's end of turn."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (*map(str.encode, self._turn.rendered.split(QUESTION)), tokenizer_file(folder).read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
        self.digest = digest.hexdigest()
        """16 hex characters over the template as rendered and the tokenizer file."""

    def encode_users(self, contents: Sequence[str], *, lead: str = "") -> list[PromptIds]:
        """Prompt ids up to the end of each user's text, without the control token that ends the turn.

        All contents begin with `lead`, which is encoded once.
        """
        texts = [self._turn.fill(self._text, (content, "")) for content in contents]
        before = _PLACEHOLDER.split(self._text, maxsplit=1)[0]
        return [self._head + ids for ids in self.words.batch_ids_behind(before + lead, texts)]

    def tail_ids(self, prefill: str) -> PromptIds:
        """Ids from the end of the user's text to the end of `prefill` in the assistant's turn."""
        return self._tail + self.words.text_ids(self._answer_lead + prefill)


def _render(ask: Ask, fields: Sequence[str], loaded: Any, folder: Path) -> tuple[str, dict[str, tuple[bool, bool]]]:  # noqa: ANN401 - transformers has no types
    """The template's text around the placeholders, and at which ends it trims each text."""
    if not loaded.chat_template:
        raise GuardError(f"{folder} has no chat template; put the model's own as chat_template.jinja next to its files")
    used = [name for name in fields if any(name in content for _, content in ask.messages)]
    # Some templates want each content as a list of typed parts.
    for in_parts in (False, True):
        rendered = _apply(ask, loaded, folder, in_parts=in_parts)
        if any(rendered.count(name) != 1 for name in used):
            continue
        trims: dict[str, tuple[bool, bool]] = {}
        for name in used:
            spaced = _apply(ask, loaded, folder, in_parts=in_parts, spaced=name)
            for left, right in product((False, True), repeat=2):
                if spaced == rendered.replace(name, ("" if left else "\n") + name + ("" if right else "\n")):
                    trims.setdefault(name, (left, right))
        if len(trims) == len(used):
            return rendered, trims
        break
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

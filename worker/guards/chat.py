"""A checkpoint's chat template and tokenizer, without torch.

Text between the template's own control tokens is encoded by a copy of the tokenizer that has never heard of
added tokens: whatever a user writes, it stays text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from infra.errors import GuardError
from worker.guards.base import PromptIds
from worker.guards.checkpoint import tokenizer_file
from worker.guards.vocabulary import Vocabulary

_PLACEHOLDER: Final = "LibraUserText"
_SAMPLE: Final = "你好，world 123\n第二行。"


class ChatTokenizer:
    """One checkpoint folder's way from a user turn to prompt ids and back. Thread-safe.

    Raises:
        GuardError: no tokenizer, no chat template, or a template that cannot keep user text apart.
    """

    def __init__(self, folder: Path) -> None:
        self._words = Vocabulary(folder)
        loaded = self._words.loaded
        if not loaded.chat_template:
            raise GuardError(
                f"{folder} has no chat template; put the model's own as chat_template.jinja beside its files"
            )
        head, tail, self._trims = _around_user_text(loaded, folder)
        *head_pieces, self._lead = self._words.split(head)
        self._trail, *tail_pieces = self._words.split(tail)
        if not tail_pieces:
            raise GuardError(
                f"the chat template of {folder} has no control token after the user's text, "
                "so a text could pretend to be the answer; use a checkpoint with one, such as ChatML"
            )
        self._answer_lead = tail_pieces.pop()
        self._head = self._words.fixed(head_pieces)
        self._tail = self._words.fixed(tail_pieces)
        eos = loaded.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*([] if eos is None else [eos]), self._tail[0]]))
        """Ids that end the assistant's turn: the tokenizer's own end of text, the template's end of turn."""
        self.digest = _digest(head, tail, tokenizer_file(folder).read_bytes())
        """16 hex characters over the template as rendered and the tokenizer file."""
        self._check_against_own_tokenizer(head + _SAMPLE + tail, folder)

    def encode_turns(self, contents: Sequence[str], *, prefill: str) -> list[PromptIds]:
        """Prompt ids of one user turn each, up to and including `prefill` in the assistant's turn."""
        tail = self.tail_ids(prefill)
        return [user + tail for user in self.encode_users(contents)]

    def encode_users(self, contents: Sequence[str]) -> list[PromptIds]:
        """Prompt ids up to the end of each user's text, without the control token that ends the turn."""
        kept = [content.strip() for content in contents] if self._trims else contents
        texts = [f"{self._lead}{content}{self._trail}" for content in kept]
        return [self._head + ids for ids in self._words.batch_ids(texts)]

    def tail_ids(self, prefill: str) -> PromptIds:
        """Ids from the end of the user's text to the end of `prefill` in the assistant's turn."""
        return self._tail + self._words.text_ids(self._answer_lead + prefill)

    def text_ids(self, text: str) -> PromptIds:
        """The ids of a text that never holds a control token."""
        return self._words.text_ids(text)

    def token_starts(self, text: str) -> list[int]:
        """The character at which each token of `text` starts: as many numbers as tokens, ascending."""
        return self._words.token_starts(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return self._words.decode(ids)

    def _check_against_own_tokenizer(self, rendered: str, folder: Path) -> None:
        theirs = self._words.full.encode(rendered, add_special_tokens=False).ids
        if self.encode_turns([_SAMPLE], prefill="")[0].tolist() != theirs:
            raise GuardError(
                f"the tokenizer of {folder} reads text beside its control tokens in a way that is not supported "
                "(it strips, prefixes or replaces it); the ids would not be those the model was trained on"
            )


def _around_user_text(loaded: Any, folder: Path) -> tuple[str, str, bool]:  # noqa: ANN401 - transformers has no types
    """Return the ids that the template writes before and after a user's text, and if it trims that text."""
    rendered, spaced = (_render(loaded, text, folder) for text in (_PLACEHOLDER, f"\n{_PLACEHOLDER}\n"))
    head, *rest = rendered.split(_PLACEHOLDER)
    if len(rest) != 1 or spaced not in (rendered, f"{head}\n{_PLACEHOLDER}\n{rest[0]}"):
        raise GuardError(f"the chat template of {folder} does not repeat a user's text once and unchanged")
    return head, rest[0], spaced == rendered


def _render(loaded: Any, content: str, folder: Path) -> str:  # noqa: ANN401 - transformers has no types
    turn = [{"role": "user", "content": content}]
    try:
        return str(loaded.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as error:
        raise GuardError(f"the chat template of {folder} fails: {error}") from error


def _digest(head: str, tail: str, tokenizer_file: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in (head.encode(), tail.encode(), tokenizer_file):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()

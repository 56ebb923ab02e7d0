"""A checkpoint's tokenizer in two copies: its own, and one that has never heard of added tokens. Torch-free.

Whatever a user writes is encoded by the second, so that it stays text.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Model
from tokenizers.pre_tokenizers import Metaspace

from worker.guards.base import PromptIds, digest_of
from worker.guards.checkpoint import tokenizer_file
from worker.guards.tokenizer_files import load_tokenizer


class Vocabulary:
    """Text to ids and back, with control tokens and plain text kept apart. Thread-safe.

    Raises:
        GuardError: no tokenizer, or one that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.loaded = load_tokenizer(folder)
        """The tokenizer as transformers reads it: chat template, special tokens, own settings."""
        self.digest = digest_of(tokenizer_file(folder).read_text(encoding="utf-8"))
        """Over the tokenizer's file."""
        self.full: Tokenizer = self.loaded.backend_tokenizer
        self.full.no_truncation()
        self.full.no_padding()
        self.controls = {token.content: number for number, token in self.full.get_added_tokens_decoder().items()}
        self._plain = _plain_tokenizer(self.full)
        longest_first = sorted(self.controls, key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def split(self, text: str) -> list[str]:
        """Text and control tokens in turn: odd places are control tokens."""
        return self._control.split(text) if self._control else [text]

    def fixed(self, pieces: Sequence[str]) -> PromptIds:
        """The ids of our own words, among which control tokens are control tokens."""
        ids = array("i")
        for piece in pieces:
            ids += array("i", [self.controls[piece]]) if piece in self.controls else self.text_ids(piece)
        return ids

    def text_ids(self, text: str) -> PromptIds:
        """The ids of a text that never holds a control token."""
        return array("i", self._plain.encode(text, add_special_tokens=False).ids)

    def batch_ids(self, texts: Sequence[str]) -> list[PromptIds]:
        """The ids of many texts that never hold a control token."""
        return [array("i", found.ids) for found in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def token_starts(self, text: str) -> list[int]:
        """The character at which each token of `text` starts: as many numbers as tokens, ascending."""
        return [start for start, _ in self._plain.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int], *, keep_controls: bool = False) -> str:
        """The text of generated ids."""
        text: str = self.full.decode(list(ids), skip_special_tokens=not keep_controls)
        return text


def _plain_tokenizer(full: Tokenizer) -> Tokenizer:
    """The same tokenizer without added tokens, and without a way to their ids through its vocabulary."""
    controls = full.get_added_tokens_decoder().keys()
    in_vocabulary = {number for number in controls if full.model.id_to_token(number) is not None}
    plain = Tokenizer(_without(full, in_vocabulary) if in_vocabulary else full.model)
    plain.normalizer = full.normalizer
    plain.pre_tokenizer = full.pre_tokenizer
    if getattr(plain.pre_tokenizer, "prepend_scheme", None) == "first":
        # Only the first text of a prompt gets the space, and a prompt begins with a control token.
        plain.pre_tokenizer = Metaspace(
            replacement=full.pre_tokenizer.replacement, prepend_scheme="never", split=full.pre_tokenizer.split
        )
    return plain


def _without(full: Tokenizer, controls: set[int]) -> Model:
    """The tokenizer's model without these ids: no piece and no merge leads to them."""
    spec: dict[str, Any] = json.loads(full.to_str())
    model: dict[str, Any] = spec["model"]
    if isinstance(model["vocab"], list):  # Unigram: an id is a position
        for number in controls:
            # No storable text holds a NUL.
            model["vocab"][number] = [f"\0{number}", model["vocab"][number][1]]
    else:
        names = {piece for piece, number in model["vocab"].items() if number in controls}
        for name in names - {model.get("unk_token")}:
            del model["vocab"][name]
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if names.isdisjoint(_pieces(merge))]
    kept: Model = Tokenizer.from_str(json.dumps(spec | {"added_tokens": [], "post_processor": None})).model
    return kept


def _pieces(merge: str | list[str]) -> tuple[str, str, str]:
    """Both parts of a BPE merge and what they make; older files write a merge as one string."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right

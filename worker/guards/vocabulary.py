"""A checkpoint's tokenizer in two copies: its own, and one that knows no added tokens. Torch-free.

A user's text is encoded by the second, so that it stays text. Current models bring a tokenizer.json. Qwen's first
generation brings qwen.tiktoken (ranked pieces) and code of its own, which is not run: its effect is written down here.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, normalizers
from tokenizers.models import Model
from tokenizers.pre_tokenizers import Metaspace

from infra.errors import GuardError
from worker.guards.base import PromptIds, digest_of
from worker.guards.checkpoint import QWEN_V1, read_json, tokenizer_file

_QWEN_V1_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern by which Qwen's tokenizers split a text before merging (QwenLM/Qwen, tokenization_qwen.py)."""
_QWEN_V1_END: Final = "<|endoftext|>"
_QWEN_V1_CONTROLS: Final = (
    _QWEN_V1_END,
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{number}|>" for number in range(205)),
)
"""In the order of their ids, which follow those of the pieces."""
_SAMPLE: Final = "你好 world"
_LINE: Final = re.compile(r"\n(?=\w)")
_BEHIND: Final = ("", "你好，world 123\n第二行。", " x", "\n\n y", "\u0301e\u0301", "不安全", "''s")
_MOST_LEADS: Final = 64
"""A guard has one; worked examples make others, a run's own each."""
_BARE_CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template that transformers up to 4.43 used for a checkpoint without one: the benchmark's own script ran on it."""


def backend_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer as its file says.

    Raises:
        GuardError: there is none, or it cannot be read.
    """
    file = tokenizer_file(folder)
    if file.name == QWEN_V1:
        from transformers.convert_slow_tokenizer import TikTokenConverter  # noqa: PLC0415

        # Pieces and their ranks: a line each, the piece in base64.
        try:
            lines = (line.split() for line in file.read_bytes().splitlines() if line)
            ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
        except (OSError, ValueError) as error:
            raise GuardError(f"cannot read {file}: {error}") from error
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise GuardError(f"cannot read {file}: its ranks are not 0, 1, 2, …")
        converter: Any = TikTokenConverter(  # type: ignore[no-untyped-call]
            str(file), pattern=_QWEN_V1_PATTERN, extra_special_tokens=list(_QWEN_V1_CONTROLS)
        )
        converter.load_tiktoken_bpe = lambda _: ranks  # its own reader needs a package more
        tokenizer: Tokenizer = converter.converted()
        tokenizer.normalizer = normalizers.NFC()
        return tokenizer
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise GuardError(f"cannot read the tokenizer of {folder}: {error}") from error


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers has no types
    """The fast tokenizer of a checkpoint folder, as transformers reads it. Raises what `backend_tokenizer` does."""
    # Seconds of import, which the fake guard needs not pay.
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    if tokenizer_file(folder).name == QWEN_V1:
        file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        own = read_json(config).get("chat_template") if config.is_file() else None
        if file.is_file():
            own = file.read_text(encoding="utf-8")
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=backend_tokenizer(folder),
            eos_token=_QWEN_V1_END,
            chat_template=own if isinstance(own, str) else _BARE_CHATML,
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise GuardError(f"cannot read the tokenizer of {folder}: {error}") from error


class Vocabulary:
    """Text to ids and back, with control tokens and plain text kept apart. Thread-safe. See `load_tokenizer`."""

    def __init__(self, folder: Path) -> None:
        self.loaded = load_tokenizer(folder)
        """The tokenizer as transformers reads it: chat template, special tokens, own settings."""
        self.digest = digest_of(tokenizer_file(folder).read_text(encoding="utf-8"))
        """Over the tokenizer's file."""
        self.full: Tokenizer = self.loaded.backend_tokenizer
        self.full.no_truncation()
        self.full.no_padding()
        added = self.full.get_added_tokens_decoder()
        self.controls = {token.content: number for number, token in added.items()}
        # The same tokenizer without added tokens, and without a way to their ids through its vocabulary.
        model = self.full.model
        in_vocabulary = {number for number in added if model.id_to_token(number) is not None}
        self._plain = Tokenizer(_without(self.full, in_vocabulary) if in_vocabulary else model)
        self._plain.normalizer = self.full.normalizer
        splitter = self._plain.pre_tokenizer = self.full.pre_tokenizer
        self._first = self._plain
        """For the text that a tokenizer reads first: some put a space before that one only."""
        if getattr(splitter, "prepend_scheme", None) == "first":
            self._first = Tokenizer(self._plain.model)
            self._first.normalizer, self._first.pre_tokenizer = self.full.normalizer, splitter
            self._plain.pre_tokenizer = Metaspace(
                replacement=splitter.replacement, prepend_scheme="never", split=splitter.split
            )
        longest_first = sorted(self.controls, key=len, reverse=True)
        self._leads: dict[tuple[str, bool], tuple[PromptIds, int]] = {}
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def split(self, text: str) -> list[str]:
        """Text and control tokens in turn: odd places are control tokens."""
        return self._control.split(text) if self._control else [text]

    def fixed(self, pieces: Sequence[str], *, first: bool = False) -> PromptIds:
        """The ids of our own words, among which control tokens are control tokens; `first`: nothing stands before."""
        ids = array("i")
        for at, piece in enumerate(pieces):
            control = piece in self.controls
            ids += (
                array("i", [self.controls[piece]]) if control else self.batch_ids([piece], first=first and at == 0)[0]
            )
        return ids

    def text_ids(self, text: str) -> PromptIds:
        """The ids of a text that never holds a control token."""
        return array("i", self._plain.encode(text, add_special_tokens=False).ids)

    def batch_ids(self, texts: Sequence[str], *, first: bool = False) -> list[PromptIds]:
        """The ids of many texts that never hold a control token; `first`: nothing stands before any of them."""
        plain = self._first if first else self._plain
        return [array("i", found.ids) for found in plain.encode_batch_fast(texts, add_special_tokens=False)]

    def batch_ids_behind(self, lead: str, texts: Sequence[str], *, first: bool = False) -> list[PromptIds]:
        """The ids of texts that all begin with `lead`, most of which is encoded once; `batch_ids` gives the same."""
        known, at = self._lead(lead, first=first)
        if not at:
            return self.batch_ids(texts, first=first)
        return [known + ids for ids in self.batch_ids([text[at:] for text in texts])]

    def _lead(self, lead: str, *, first: bool) -> tuple[PromptIds, int]:
        """The ids of a text's beginning, and the character behind it; 0: it cannot be encoded by itself.

        A line that begins with a letter begins a token, for tokenizers that split a text before they merge. Whether
        this one does is seen on samples.
        """
        found = self._leads.get((lead, first))
        if found is None:
            at = max((line.end() for line in _LINE.finditer(lead)), default=0)
            (known,) = self.batch_ids([lead[:at]], first=first)
            wholes = [lead + sample for sample in _BEHIND]
            rests = self.batch_ids([whole[at:] for whole in wholes])
            alike = self.batch_ids(wholes, first=first) == [known + rest for rest in rests]
            found = (known, at) if alike else (array("i"), 0)
            if len(self._leads) >= _MOST_LEADS:
                self._leads.clear()
            self._leads[lead, first] = found
        return found

    def leading_ids(self) -> PromptIds:
        """The control tokens that the tokenizer puts before a bare text (a beginning of text, or nothing).

        Raises:
            GuardError: it puts some behind a text too, where an answer has to follow.
        """
        bare, framed = (self.full.encode(_SAMPLE, add_special_tokens=special).ids for special in (False, True))
        if framed[len(framed) - len(bare) :] != bare:
            raise GuardError("the tokenizer writes special tokens behind a text, so that no answer can follow it")
        return array("i", framed[: len(framed) - len(bare)])

    def token_starts(self, text: str) -> list[int]:
        """The character at which each token of `text` starts: as many numbers as tokens, ascending."""
        return [start for start, _ in self._plain.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int], *, keep_controls: bool = False) -> str:
        """The text of generated ids."""
        text: str = self.full.decode(list(ids), skip_special_tokens=not keep_controls)
        return text


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
            # Older files write a merge as one string.
            pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
            model["merges"] = [
                merge
                for merge, (left, right) in zip(model["merges"], pairs, strict=True)
                if names.isdisjoint((left, right, left + right))
            ]
    kept: Model = Tokenizer.from_str(json.dumps(spec | {"added_tokens": [], "post_processor": None})).model
    return kept

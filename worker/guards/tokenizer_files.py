"""From the file in a checkpoint folder to its tokenizer. Torch-free.

Models of today bring a tokenizer.json. Qwen's first generation brings qwen.tiktoken (ranked pieces) and code of its
own, which is not run: what that code does is known and written down here.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, normalizers

from infra.errors import GuardError
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
        return _qwen_v1(file)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise GuardError(f"cannot read the tokenizer of {folder}: {error}") from error


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers has no types
    """The fast tokenizer of a checkpoint folder, as transformers reads it.

    Raises:
        GuardError: there is none, or it cannot be read.
    """
    # Seconds of import, which the fake guard needs not pay.
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    if tokenizer_file(folder).name == QWEN_V1:
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=backend_tokenizer(folder), eos_token=_QWEN_V1_END, chat_template=_own_template(folder)
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise GuardError(f"cannot read the tokenizer of {folder}: {error}") from error


def _qwen_v1(file: Path) -> Tokenizer:
    from transformers.convert_slow_tokenizer import TikTokenConverter  # noqa: PLC0415

    converter: Any = TikTokenConverter(  # type: ignore[no-untyped-call]
        str(file), pattern=_QWEN_V1_PATTERN, extra_special_tokens=list(_QWEN_V1_CONTROLS)
    )
    converter.load_tiktoken_bpe = _ranks  # its own reader needs a package more
    tokenizer: Tokenizer = converter.converted()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _ranks(path: str) -> dict[bytes, int]:
    """Pieces and their ranks: a line each, the piece in base64."""
    try:
        lines = (line.split() for line in Path(path).read_bytes().splitlines() if line)
        ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
    except (OSError, ValueError) as error:
        raise GuardError(f"cannot read {path}: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise GuardError(f"cannot read {path}: its ranks are not 0, 1, 2, …")
    return ranks


def _own_template(folder: Path) -> str:
    """The folder's chat template, or the one that was taken where there was none."""
    template, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template.is_file():
        return template.read_text(encoding="utf-8")
    own = read_json(config).get("chat_template") if config.is_file() else None
    return own if isinstance(own, str) else _BARE_CHATML

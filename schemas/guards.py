"""Guard cards: what is known of each guard a worker can run. The registry is data, not code."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from schemas.base import Frozen


class Mode(StrEnum):
    """How a guard's verdict is obtained."""

    SCORE = "score"
    """One forward pass, read where the labels diverge."""
    GENERATE = "generate"
    """Greedy decoding, then parsing: the reference's behaviour."""
    CLASSIFY = "classify"
    """One forward pass through a classification head."""


class Status(StrEnum):
    """What has truly been run here."""

    RAN_WITH_WEIGHTS = "ran with its weights"
    RAN_RANDOM = "architecture ran with random weights"
    """A tiny random checkpoint of this architecture goes through the real engine in the conformance test."""
    FORMAT_ONLY = "format only"
    """Prompt and parser are tested; the model needs remote code or an engine that is not here."""
    NO_MODEL = "there is no model to run"
    """A stand-in for tests and drills."""
    NOT_SERVED = "no engine here serves it"
    """How it is asked is known, but there is no adapter; it cannot be run."""
    FORMAT_UNKNOWN = "format unknown"
    """Nobody published how it is asked; it cannot be run."""


class Family(StrEnum):
    """Which way of asking and reading: one file each in worker/guards."""

    LIBRA = "libra"
    FAKE = "fake"
    LLAMA_GUARD = "llama_guard"
    SHIELD_GEMMA = "shield_gemma"
    SHIELDLM = "shieldlm"
    QWEN3GUARD = "qwen3guard"
    XGUARD = "xguard"
    WILDGUARD = "wildguard"
    POLYGUARD = "polyguard"
    GRANITE = "granite"
    NEMOTRON = "nemotron"
    GPT_OSS_SAFEGUARD = "gpt_oss_safeguard"
    MD_JUDGE = "md_judge"
    KANANA = "kanana"
    CHINESE_GUARD = "chinese_guard"
    SEQUENCE_CLASSIFIER = "sequence_classifier"
    UNKNOWN = "unknown"
    """No adapter: the card is there so that the name is answered honestly."""


NOT_PINNED: Final = "not pinned: no hub was reachable when this card was written"


class GuardCard(Frozen):
    """One guard by name. `hub_id` is None for a guard that ships inside the package.

    `architecture` is the class of the checkpoint in transformers ("" where none has it), `variant` what
    tells the models of one family apart where they are asked differently. `safe_labels` are the class
    names of a classifier that mean safe. A `revision` of None is whatever the hub serves today.
    """

    name: str
    family: Family
    hub_id: str | None
    revision: str | None = None
    licence: str
    context_tokens: int
    languages: tuple[str, ...]
    modes: tuple[Mode, ...]
    needs_remote_code: bool = False
    status: Status
    architecture: str = ""
    variant: str = ""
    safe_labels: tuple[str, ...] = ()
    note: str = ""

    @property
    def nominal_parameters(self) -> int | None:
        """Parameters as the model's own name has them (…-7B-…); None where it names no size."""
        sizes = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)b\b", (self.hub_id or "").lower())
        return int(float(sizes[-1]) * 1_000_000_000) if sizes else None

    @property
    def revision_note(self) -> str:
        """The revision, or why there is none."""
        return self.revision or ("inside the package" if self.hub_id is None else NOT_PINNED)


_LM_MODES: Final = (Mode.SCORE, Mode.GENERATE)
_GENERATE: Final = (Mode.GENERATE,)
_EN: Final = ("en",)
_ZH: Final = ("zh",)
_ZH_EN: Final = ("zh", "en")
_MANY: Final = ("many", "zh")
_QWEN_NOTE: Final = (
    "Qwen v1: its code is not run; needs a server that still loads it (--engine openai; vLLM up to 0.23)"
)
_UNVERIFIED: Final = "licence not verified"


def _card(family: Family, name: str, hub_id: str, architecture: str, **facts: object) -> GuardCard:
    """A card of a model that runs here unless `status` says otherwise."""
    known: dict[str, object] = {"modes": _LM_MODES, "status": Status.RAN_RANDOM, "languages": _EN}
    return GuardCard.model_validate(
        {**known, "family": family, "name": name, "hub_id": hub_id, "architecture": architecture, **facts}
    )


_QWEN25_SIZES: Final = ("0.5B", "1.5B", "3B", "7B", "14B")

_LIBRA: Final = (
    GuardCard(
        name="libra-tiny",
        family=Family.LIBRA,
        hub_id=None,
        licence="Apache-2.0",
        context_tokens=425,
        languages=_ZH,
        modes=_LM_MODES,
        status=Status.RAN_WITH_WEIGHTS,
        architecture="NgramQwen2ForCausalLM",
        note="bundled; trained by this project, see its model card",
    ),
    GuardCard(
        name="fake",
        family=Family.FAKE,
        hub_id=None,
        licence="Apache-2.0",
        context_tokens=1_000_000,
        languages=("any",),
        modes=_LM_MODES,
        status=Status.NO_MODEL,
        note="deterministic stand-in without a model: for tests, drills and benchmarks",
    ),
    *(
        _card(
            Family.LIBRA,
            f"libra-guard-qwen2.5-{size.lower()}-instruct",
            f"caskcsg/Libra-Guard-Qwen2.5-{size}-Instruct",
            "Qwen2ForCausalLM",
            licence="see hub; base Qwen2.5 licence applies",
            context_tokens=32_768,
            languages=_ZH,
        )
        for size in _QWEN25_SIZES
    ),
    _card(
        Family.LIBRA,
        "libra-guard-yi-1.5-9b-chat",
        "caskcsg/Libra-Guard-Yi-1.5-9B-Chat",
        "LlamaForCausalLM",
        licence="see hub; base Yi licence applies",
        context_tokens=4_096,
        languages=_ZH,
    ),
    _card(
        Family.LIBRA,
        "libra-guard-qwen-14b-chat",
        "caskcsg/Libra-Guard-Qwen-14B-Chat",
        "",
        licence="see hub; base Tongyi Qianwen licence applies",
        context_tokens=8_192,
        languages=_ZH,
        needs_remote_code=True,
        status=Status.FORMAT_ONLY,
        note=_QWEN_NOTE,
    ),
)

_INSTRUCT: Final = (
    *(
        _card(
            Family.LIBRA,
            f"qwen2.5-{size.lower()}-instruct",
            f"Qwen/Qwen2.5-{size}-Instruct",
            "Qwen2ForCausalLM",
            licence="Apache-2.0" if size != "3B" else "Qwen Research",
            context_tokens=32_768,
            languages=_ZH,
        )
        for size in _QWEN25_SIZES
    ),
    _card(
        Family.LIBRA,
        "yi-1.5-9b-chat",
        "01-ai/Yi-1.5-9B-Chat",
        "LlamaForCausalLM",
        licence="Apache-2.0",
        context_tokens=4_096,
        languages=_ZH,
    ),
    _card(
        Family.LIBRA,
        "qwen-14b-chat",
        "Qwen/Qwen-14B-Chat",
        "",
        licence="Tongyi Qianwen",
        context_tokens=8_192,
        languages=_ZH_EN,
        needs_remote_code=True,
        status=Status.FORMAT_ONLY,
        note=_QWEN_NOTE,
    ),
    _card(
        Family.LIBRA,
        "glm4-9b-chat",
        "zai-org/glm-4-9b-chat",
        "",
        licence="glm-4",
        context_tokens=131_072,
        languages=_ZH_EN,
        needs_remote_code=True,
        status=Status.FORMAT_ONLY,
        note="remote code that current transformers breaks; glm4-9b-chat-hf is the native conversion",
    ),
    _card(
        Family.LIBRA,
        "glm4-9b-chat-hf",
        "zai-org/glm-4-9b-chat-hf",
        "GlmForCausalLM",
        licence="glm-4",
        context_tokens=131_072,
        languages=_ZH_EN,
        note="hub id not verified",
    ),
)

_LLAMA_GUARD: Final = (
    _card(
        Family.LLAMA_GUARD,
        "llama-guard-7b",
        "meta-llama/LlamaGuard-7b",
        "LlamaForCausalLM",
        licence="Llama 2 Community",
        context_tokens=4_096,
        variant="1",
        note="gated; [INST] is text to its tokenizer, so the format itself cannot keep user text apart",
    ),
    _card(
        Family.LLAMA_GUARD,
        "llama-guard-2-8b",
        "meta-llama/Meta-Llama-Guard-2-8B",
        "LlamaForCausalLM",
        licence="Llama 3 Community",
        context_tokens=8_192,
        variant="2",
        note="gated",
    ),
    *(
        _card(
            Family.LLAMA_GUARD,
            f"llama-guard-3-{size.lower()}",
            f"meta-llama/Llama-Guard-3-{size}",
            "LlamaForCausalLM",
            licence=licence,
            context_tokens=131_072,
            languages=("en", "fr", "de", "hi", "it", "pt", "es", "th"),
            variant="3",
            note="gated; no Chinese",
        )
        for size, licence in (("8B", "Llama 3.1 Community"), ("1B", "Llama 3.2 Community"))
    ),
    _card(
        Family.LLAMA_GUARD,
        "llama-guard-4-12b",
        "meta-llama/Llama-Guard-4-12B",
        "Llama4ForConditionalGeneration",
        licence="Llama 4 Community",
        context_tokens=131_072,
        languages=("en", "fr", "de", "hi", "it", "pt", "es", "th"),
        variant="4",
        note="gated; text only, no Chinese",
    ),
)

_SHIELDS: Final = (
    *(
        _card(
            Family.SHIELD_GEMMA,
            f"shieldgemma-{size}",
            f"google/shieldgemma-{size}",
            "Gemma2ForCausalLM",
            licence="Gemma",
            context_tokens=8_192,
            note="gated; one prompt per policy, the worst wins",
        )
        for size in ("2b", "9b", "27b")
    ),
    *(
        _card(
            Family.SHIELDLM,
            f"shieldlm-{base}",
            f"thu-coai/ShieldLM-{base}",
            "",
            licence="base licence applies",
            context_tokens=context,
            languages=_ZH_EN,
            needs_remote_code=True,
            status=Status.FORMAT_ONLY,
            variant=base.partition("-")[2],
            note=f"remote code ({code}); official pins transformers 4.36.2",
        )
        for base, context, code in (
            ("14B-qwen", 8_192, "Qwen v1"),
            ("7B-internlm2", 32_768, "InternLM2"),
            ("6B-chatglm3", 8_192, "ChatGLM3"),
            ("13B-baichuan2", 4_096, "Baichuan2"),
        )
    ),
)

_NEWER: Final = (
    *(
        _card(
            Family.QWEN3GUARD,
            f"qwen3guard-gen-{size.lower()}",
            f"Qwen/Qwen3Guard-Gen-{size}",
            "Qwen3ForCausalLM",
            licence="Apache-2.0",
            context_tokens=32_768,
            languages=_MANY,
            note="the label is the strict reading; what only strict calls unsafe is marked controversial",
        )
        for size in ("0.6B", "4B", "8B")
    ),
    *(
        _card(
            Family.UNKNOWN,
            f"qwen3guard-stream-{size.lower()}",
            f"Qwen/Qwen3Guard-Stream-{size}",
            "",
            licence="Apache-2.0",
            context_tokens=8_192,
            languages=_MANY,
            needs_remote_code=True,
            status=Status.NOT_SERVED,
            modes=(),
            note="token heads in remote code for transformers <5; use qwen3guard-gen",
        )
        for size in ("0.6B", "4B", "8B")
    ),
    *(
        _card(
            Family.XGUARD,
            f"yufeng-xguard-reason-{size.lower()}",
            f"Alibaba-AAIG/YuFeng-XGuard-Reason-{size}",
            "Qwen3ForCausalLM",
            licence="Apache-2.0",
            context_tokens=32_768,
            languages=_MANY,
            note="thresholds of its paper: 0.5 for prompts, 0.8 for responses",
        )
        for size in ("0.6B", "8B")
    ),
    _card(
        Family.WILDGUARD,
        "wildguard",
        "allenai/wildguard",
        "MistralForCausalLM",
        licence="Apache-2.0",
        context_tokens=4_096,
        modes=_GENERATE,
        note="raw prompt whose markers are text: the format itself cannot keep user text apart",
    ),
    *(
        _card(
            Family.POLYGUARD,
            name,
            f"ToxicityPrompts/{hub}",
            architecture,
            licence=licence,
            context_tokens=32_768,
            languages=_MANY,
            modes=_GENERATE,
        )
        for name, hub, architecture, licence in (
            ("polyguard-qwen", "PolyGuard-Qwen", "Qwen2ForCausalLM", "Apache-2.0"),
            ("polyguard-qwen-smol", "PolyGuard-Qwen-Smol", "Qwen2ForCausalLM", "Apache-2.0"),
            ("polyguard-ministral", "PolyGuard-Ministral", "MistralForCausalLM", "Mistral Research"),
        )
    ),
    *(
        _card(
            Family.GRANITE,
            f"granite-guardian-{version}-{size}",
            f"ibm-granite/granite-guardian-{version}-{size}",
            architecture,
            licence="Apache-2.0",
            context_tokens=context,
            variant=version,
            note="English only" if version != "4.1" else "English only; architecture class not verified",
        )
        for version, size, architecture, context in (
            ("3.0", "2b", "GraniteForCausalLM", 4_096),
            ("3.0", "8b", "GraniteForCausalLM", 4_096),
            ("3.1", "2b", "GraniteForCausalLM", 131_072),
            ("3.1", "8b", "GraniteForCausalLM", 131_072),
            ("3.2", "3b-a800m", "GraniteMoeForCausalLM", 131_072),
            ("3.2", "5b", "GraniteForCausalLM", 131_072),
            ("3.3", "8b", "GraniteForCausalLM", 131_072),
            ("4.1", "8b", "GraniteForCausalLM", 131_072),
        )
    ),
    _card(
        Family.SEQUENCE_CLASSIFIER,
        "cold-detector",
        "thu-coai/roberta-base-cold",
        "BertForSequenceClassification",
        licence=_UNVERIFIED,
        context_tokens=512,
        languages=_ZH,
        modes=(Mode.CLASSIFY,),
        safe_labels=("LABEL_0",),
        note="one text, offensive or not; hub id and class names not verified. Any other: NAME=FOLDER",
    ),
)

_LATEST: Final = (
    _card(
        Family.NEMOTRON,
        "nemotron-safety-guard-8b-v3",
        "nvidia/Llama-3.1-Nemotron-Safety-Guard-8B-v3",
        "LlamaForCausalLM",
        licence="NVIDIA Open Model + Llama 3.1 Community",
        context_tokens=8_192,
        languages=("nine", "zh"),
        modes=_GENERATE,
    ),
    *(
        _card(
            Family.GPT_OSS_SAFEGUARD,
            f"gpt-oss-safeguard-{size}",
            f"openai/gpt-oss-safeguard-{size}",
            "GptOssForCausalLM",
            licence="Apache-2.0",
            context_tokens=131_072,
            languages=_MANY,
            modes=_GENERATE,
            note="asked with this project's own Chinese policy over the seven scenarios",
        )
        for size in ("20b", "120b")
    ),
    _card(
        Family.MD_JUDGE,
        "md-judge-v0.1",
        "OpenSafetyLab/MD-Judge-v0.1",
        "MistralForCausalLM",
        licence=_UNVERIFIED,
        context_tokens=32_768,
        variant="0.1",
        note="[INST] is text to its tokenizer, so the format itself cannot keep user text apart",
    ),
    _card(
        Family.MD_JUDGE,
        "md-judge-v0.2",
        "OpenSafetyLab/MD-Judge-v0_2-internlm2_7b",
        "",
        licence=_UNVERIFIED,
        context_tokens=32_768,
        modes=_GENERATE,
        needs_remote_code=True,
        status=Status.FORMAT_ONLY,
        variant="0.2",
        note="remote code (InternLM2), runs on transformers 4.41.2",
    ),
    *(
        _card(
            Family.KANANA,
            f"kanana-safeguard-{name}",
            f"kakaocorp/kanana-safeguard-{name}",
            "LlamaForCausalLM",
            licence="Apache-2.0",
            context_tokens=8_192,
            languages=("ko",),
            variant=variant,
            note="Korean-trained: a baseline for Chinese only",
        )
        for name, variant in (("8b", "S"), ("siren-8b", "I"), ("prompt-2.1b", "A"))
    ),
    *(
        _card(
            Family.CHINESE_GUARD,
            f"chinese-guard-{size.lower()}",
            f"zjunlp/ChineseGuard-{size}",
            "Qwen2ForCausalLM",
            licence=_UNVERIFIED,
            context_tokens=32_768,
            languages=_ZH,
            note="one text, not a dialogue; its rules (CC BY-NC 4.0) are not shipped: put them as rules.txt beside it",
        )
        for size in ("1.5B", "3B", "7B")
    ),
    *(
        _card(
            Family.UNKNOWN,
            f"chillguard-{size.lower()}",
            f"cswbyu/CHILLGuard-{size}",
            "",
            licence=_UNVERIFIED,
            context_tokens=32_768,
            languages=_ZH,
            modes=(),
            status=Status.FORMAT_UNKNOWN,
            note="arXiv 2606.15396; its prompt and output were not published where we could read them",
        )
        for size in ("1.7B", "4B", "8B")
    ),
)

_CARDS: Final = (*_LIBRA, *_INSTRUCT, *_LLAMA_GUARD, *_SHIELDS, *_NEWER, *_LATEST)

GUARDS: Final[dict[str, GuardCard]] = {card.name: card for card in _CARDS}

_WRITER: Final = "writer"


def is_writer(name: str) -> bool:
    """Whether a name (`writer`, `writer-…`) is that of a model which writes text for curation and judges nothing."""
    return name == _WRITER or name.startswith(f"{_WRITER}-")

"""Guard cards: the facts recorded about a guard. The cards themselves are data: infra/guard_catalogue.yaml."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from schemas.base import Frozen

DEFAULT_GUARD: Final = "libra-tiny"
"""The guard for requests that name none."""


class Mode(StrEnum):
    """The way a guard's verdict is obtained."""

    SCORE = "score"
    """One forward pass, read where the labels diverge."""
    GENERATE = "generate"
    """Greedy decoding, then parsing: the reference's behaviour."""
    CLASSIFY = "classify"
    """One forward pass through a classification head."""


class Status(StrEnum):
    """The evidence that this guard runs here."""

    RAN_WITH_WEIGHTS = "ran with its weights"
    RAN_RANDOM = "architecture ran with random weights"
    """A tiny random checkpoint of this architecture goes through the real engine in the conformance test."""
    FORMAT_ONLY = "format only"
    """Prompt and parser are tested; the model needs remote code or an engine that is not here."""
    NO_MODEL = "there is no model to run"
    """A stand-in for tests and drills."""
    NOT_SERVED = "no engine here serves it"
    """Its format is known, but there is no adapter; it cannot be run."""
    FORMAT_UNKNOWN = "format unknown"
    """Its format was not published; it cannot be run."""


class Family(StrEnum):
    """The format of prompt and answer: one file each in worker/guards."""

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


_GENERATORS: Final = ("generator", "writer")
"""The names that a generative model goes by, with or without -NAME behind; `writer` is the older one."""


def is_generator(name: str) -> bool:
    """True for the name of a generative model, which writes text for curation and judges nothing."""
    return any(name == kind or name.startswith(f"{kind}-") for kind in _GENERATORS)

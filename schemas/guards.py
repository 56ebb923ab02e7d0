"""Guard cards: the facts recorded about a guard. The cards themselves are data: infra/guard_catalogue.yaml."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from pydantic import Field, JsonValue

from schemas.base import Frozen
from schemas.items import Kind

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


class TextForm(StrEnum):
    """The form of a text that a guard is asked about (`infra.normal_form`)."""

    AS_IS = "as-is"
    NORMAL = "normal"
    """What a reader sees in it, without what hides it from a filter."""
    WORSE = "worse"
    """Both where they differ; the worse of the two counts."""


class Status(StrEnum):
    """The evidence that this guard runs here."""

    RAN_WITH_WEIGHTS = "ran with its weights"
    IDS_CHECKED = "prompt and ids checked against the source with its real vocabulary"
    """The authors' prompt, re-typed from its source, in the ids of the family's own vocabulary out of a package."""
    TEXT_CHECKED = "prompt text checked against the source"
    """The authors' words are compared; no package ships the vocabulary, or the template around them was not seen."""
    DESCRIPTION = "format from a description only"
    """Made from a model card or a paper: nobody here saw the code or template that builds the prompt."""
    NO_MODEL = "there is no model to run"
    """A stand-in for tests and drills."""
    NOT_SERVED = "no engine here serves it"
    """Its format is known, but there is no adapter; it cannot be run."""
    FORMAT_UNKNOWN = "format unknown"
    """Its format was not published; it cannot be run."""


class Rule(StrEnum):
    """How a label comes out of probabilities, as the guard's authors do it. Each is said once, in a fidelity sheet."""

    TOTAL = "total"
    """Unsafe where all unsafe labels together exceed the threshold."""
    LIKELIEST = "likeliest"
    """The likeliest label decides, whatever the others add up to."""
    OWN = "own confidence"
    """The likeliest label decides; a category counts only where its own probability reaches the threshold."""
    WRITTEN = "written"
    """The label stands in the generated text; it has no probability."""


class Source(Frozen):
    """A public file that a reader can open, and what it shows."""

    repository: str
    revision: str
    file: str
    shows: str

    @property
    def place(self) -> str:
        """Repository, revision and file in one."""
        return f"{self.repository}@{self.revision[:7]}:{self.file}"


class FidelitySheet(Frozen):
    """How its authors run a guard, and where that can be read. The sheets are data: infra/guard_sheets.yaml.

    `kinds` are what its authors let it judge; a text whose author is not said is put as the one of them that stands
    alone, or as the response to an empty question. `template_options` are handed to the checkpoint's chat template;
    `template_says` is what it writes beside the dialogue, where it was seen. `read_at`: where in the answer the label
    stands.
    `differs` is what we do otherwise by intent. The licence of each model is on its card.
    """

    name: str
    sources: tuple[Source, ...]
    prompt: str
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    template_says: tuple[str, ...] = ()
    read_at: str
    rule: Rule
    prompt_threshold: float = 0.5
    response_threshold: float = 0.5
    categories: tuple[str, ...] = ()
    kinds: tuple[Kind, ...]
    differs: str = ""

    def threshold(self, *, single: bool) -> float:
        """The threshold for a text alone, or for a response to a question."""
        return self.prompt_threshold if single else self.response_threshold


class Family(StrEnum):
    """The format of prompt and answer: one file each in worker/guards."""

    LIBRA = "libra"
    FAKE = "fake"
    LLAMA_GUARD = "llama_guard"
    SHIELD_GEMMA = "shield_gemma"
    SHIELDLM = "shieldlm"
    QWEN3GUARD = "qwen3guard"
    QWEN3GUARD_STREAM = "qwen3guard_stream"
    XGUARD = "xguard"
    WILDGUARD = "wildguard"
    POLYGUARD = "polyguard"
    GRANITE = "granite"
    NEMOTRON = "nemotron"
    GPT_OSS_SAFEGUARD = "gpt_oss_safeguard"
    MD_JUDGE = "md_judge"
    KANANA = "kanana"
    CHINESE_GUARD = "chinese_guard"
    SINGGUARD = "singguard"
    OPENGUARDRAILS = "openguardrails"
    SHIELDSTRAL = "shieldstral"
    APRIEL_GUARD = "apriel_guard"
    DYNA_GUARD = "dyna_guard"
    SEQUENCE_CLASSIFIER = "sequence_classifier"
    UNKNOWN = "unknown"
    """No adapter: the card is there so that the name is answered honestly."""


NOT_PINNED: Final = "not pinned: no hub was reachable when this card was written"


class GuardCard(Frozen):
    """One guard by name. `hub_id` is None for a guard that ships inside the package.

    `architecture` is the class of the checkpoint in transformers ("" where none has it), `variant` what
    tells the models of one family apart where they are asked differently. `safe_labels` are the class
    names of a classifier that mean safe. `also` are kinds of items that it judges beyond its sheet's. `sheet` names the
    fidelity sheet ("" where nothing is asked).
    A `revision` of None is whatever the hub serves today.
    """

    name: str
    family: Family
    sheet: str = ""
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
    also: tuple[Kind, ...] = ()
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


BARE: Final = "bare-"
"""Begins the name of a model that is asked in Libra Guard's words without its chat template."""


def is_bare(name: str) -> bool:
    """True for the name of a model that is asked without its chat template (`libra infer --is_instruct 0`)."""
    return name.startswith(BARE)


_GENERATORS: Final = ("generator", "writer")
"""The names that a generative model goes by, with or without -NAME behind; `writer` is the older one."""


def is_generator(name: str) -> bool:
    """True for the name of a generative model, which writes text for curation and judges nothing."""
    return any(name == kind or name.startswith(f"{kind}-") for kind in _GENERATORS)

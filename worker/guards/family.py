"""The family of a checkpoint that no card names: in whose words it is to be asked, and what says so.

Reads names and small files alone, in the order of their weight: the hub id, a classification head, the chat template,
the model it was made from, its name, its architecture. Knows no prompts and loads no library of models.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.errors import GuardError, UsageError
from infra.guard_catalogue import GUARDS
from schemas.guards import Family, GuardCard, Mode
from worker.guards.location import parts_of

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CACHED: Final = re.compile(r"models--([^/]+?)--([^/]+)")
"""A folder of the hub's cache, whose name is the hub id."""
_NOT_ASKED: Final = frozenset({Family.FAKE, Family.UNKNOWN})

_TEMPLATES: Final[tuple[tuple[Family, tuple[str, ...]], ...]] = (
    (Family.GRANITE, ("guardian_config",)),
    (Family.SHIELD_GEMMA, ("guideline", "policy expert")),
    (Family.SINGGUARD, ("thinking_type",)),
    (Family.NEMOTRON, ("request_categories",)),
    (Family.APRIEL_GUARD, ("reasoning_mode",)),
    (Family.XGUARD, ("expert in content safety",)),
    (Family.QWEN3GUARD, ("Politically Sensitive Topics",)),
    (Family.QWEN3GUARD, ("<|im_start|>", "# Task: Check if there is unsafe content")),
    (Family.LLAMA_GUARD, ("Task: Check if there is unsafe content in",)),
)
"""Words that stand in a family's chat template and in no other's; all of a row must be there."""
_NAMES: Final = {
    **{"llamaguard": Family.LLAMA_GUARD, "qwen3guardgen": Family.QWEN3GUARD, "shieldgemma": Family.SHIELD_GEMMA},
    **{"qwen3guardstream": Family.QWEN3GUARD_STREAM},
    **{"shieldlm": Family.SHIELDLM, "xguard": Family.XGUARD, "wildguard": Family.WILDGUARD},
    **{"polyguard": Family.POLYGUARD, "graniteguardian": Family.GRANITE, "nemoguard": Family.NEMOTRON},
    **{"safetyguard": Family.NEMOTRON, "contentsafety": Family.NEMOTRON, "mdjudge": Family.MD_JUDGE},
    **{"gptosssafeguard": Family.GPT_OSS_SAFEGUARD, "kananasafeguard": Family.KANANA},
    **{"chineseguard": Family.CHINESE_GUARD, "singguard": Family.SINGGUARD, "openguardrails": Family.OPENGUARDRAILS},
    **{"xiangxinguardrails": Family.OPENGUARDRAILS, "shieldstral": Family.SHIELDSTRAL},
    **{"aprielguard": Family.APRIEL_GUARD, "dynaguard": Family.DYNA_GUARD, "libraguard": Family.LIBRA},
    **{"libratiny": Family.LIBRA},
}
"""Letters and digits of a name → family."""
_LIKE: Final = 0.6
"""Names that are less alike than this (difflib's ratio) say nothing about a family's version."""
_ARCHITECTURES: Final = {
    **{"GptOssForCausalLM": Family.GPT_OSS_SAFEGUARD, "Qwen3ForGuardModel": Family.QWEN3GUARD_STREAM},
}


class Words(NamedTuple):
    """In whose words a checkpoint is asked. `card` is the guard it is asked like; None: only the family is known."""

    family: Family
    card: GuardCard | None
    reason: str

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways to a verdict, the usual one first."""
        if self.family is Family.SEQUENCE_CLASSIFIER:
            return (Mode.CLASSIFY,)
        return self.card.modes if self.card else (Mode.SCORE, Mode.GENERATE)

    @property
    def said(self) -> str:
        """The words and the reason, for a person."""
        like = f" (as {self.card.name})" if self.card and self.family is not Family.LIBRA else ""
        return f"asked in the words of: {self.family.value}{like}; {self.reason}"


def families() -> list[str]:
    """The families that can be named."""
    return sorted({card.family.value for card in GUARDS.values()} - {family.value for family in _NOT_ASKED})


def words_of(location: str, named: str | None = None) -> Words:
    """In whose words to ask the checkpoint in a folder, or of a hub id; of BASE+ADAPTER, the base's.

    `named` is a family, or a guard whose words are wanted.

    Raises:
        GuardError: a guard that cannot be run.
        UsageError: `named` is neither.
    """
    location = parts_of(location).base
    folder = Path(location).expanduser()
    look = _Look(folder if folder.is_dir() else None, location)
    if named is not None:
        return _as_named(named, look)
    for find in (_by_hub_id, _by_head, _by_template, _by_tokens, _by_origin, _by_name, _by_architecture):
        if (found := find(look)) is not None:
            if found.family is Family.UNKNOWN and found.card:
                raise GuardError(f"{found.card.name} cannot be run ({found.card.status.value}): {found.card.note}")
            return found
    return Words(Family.LIBRA, None, "nothing in it names another family, so Libra Guard's words; --family names one")


class _Look:
    """What is seen of a checkpoint: its name, and the small files of its folder if there is one."""

    def __init__(self, folder: Path | None, location: str) -> None:
        self.folder = folder
        self.name = folder.resolve().name if folder else location
        cached = [_CACHED.fullmatch(part) for part in folder.resolve().parts] if folder else []
        self.hub_id = next((f"{found[1]}/{found[2]}" for found in cached if found), "" if folder else location)
        self.config = self._json("config.json")
        self.template = self._template()

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8")) if self.folder else {}
        except (OSError, ValueError):
            return {}  # what is wrong with a file is said where it is used
        return found if isinstance(found, dict) else {}

    def _template(self) -> str:
        """The chat template, wherever it is: a file of its own, or in the tokenizer's or processor's configuration."""
        if self.folder is None:
            return ""
        try:
            own = (self.folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
        except OSError:
            own = ""
        places = [
            own,
            *(self._json(name).get("chat_template") for name in ("tokenizer_config.json", "chat_template.json")),
        ]
        texts = [one for place in places for one in (place if isinstance(place, list) else [place])]
        return "\n".join(str(one.get("template") if isinstance(one, dict) else one) for one in texts if one)

    @property
    def architectures(self) -> list[str]:
        """The classes that config.json names."""
        return [str(name) for name in self.config.get("architectures") or []]


def _as_named(named: str, look: _Look) -> Words:
    if (card := GUARDS.get(named)) is not None and card.family not in _NOT_ASKED:
        return Words(card.family, card, "by --family")
    try:
        family = Family(named.replace("-", "_").lower())
    except ValueError:
        family = Family.UNKNOWN
    if family in _NOT_ASKED:
        close = difflib.get_close_matches(named, [*families(), *GUARDS], n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(families())}"
        raise UsageError(f"--family {named}: no family and no guard; {hint}")
    if family in (Family.LIBRA, Family.SEQUENCE_CLASSIFIER):
        return Words(family, None, "by --family")
    return _of_family(family, look, "by --family")


def _of_family(family: Family, look: _Look, reason: str) -> Words:
    """The card of a family that a checkpoint is most like: by its template where versions differ, else by its name."""
    cards = [card for card in GUARDS.values() if card.family is family]
    variant = _llama_guard_variant(look.template) if family is Family.LLAMA_GUARD else None
    alike = [card for card in cards if card.variant == variant] if variant else cards
    alike = [card for card in alike if card.architecture in look.architectures] or alike
    name = _letters(look.hub_id or look.name)
    likeness = {card.name: difflib.SequenceMatcher(None, _letters(card.name), name).ratio() for card in alike}
    best = max(alike, key=lambda card: likeness[card.name])
    return Words(family, best if likeness[best.name] >= _LIKE else alike[0], reason)


def _llama_guard_variant(template: str) -> str | None:
    if not template:
        return None
    if "<|header_start|>" in template:
        return "4"
    if "<|start_header_id|>" in template:
        return "3"
    if "[INST]" not in template:
        return None
    return "1" if "O1" in template or "<s>" in template else "2"


def _by_hub_id(look: _Look) -> Words | None:
    card = _card_of({look.hub_id, look.name})
    if card is None:
        return None
    if card.family is Family.SEQUENCE_CLASSIFIER and look.folder and not _has_head(look):
        return None
    return Words(card.family, card, f"its name is that of {card.hub_id or card.name}")


def _card_of(names: Iterable[str]) -> GuardCard | None:
    """The card of one of these hub ids, names of a hub id without its owner, or guards."""
    wanted = {name.lower() for name in names if name}
    for card in GUARDS.values():
        known = {card.name.lower(), (card.hub_id or "/").lower(), (card.hub_id or "/").lower().rpartition("/")[2]}
        if card.family is not Family.FAKE and wanted & (known - {"", "/"}):
            return card
    return None


def _has_head(look: _Look) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in look.architectures)


def _by_head(look: _Look) -> Words | None:
    return Words(Family.SEQUENCE_CLASSIFIER, None, "it has a classification head") if _has_head(look) else None


def _by_template(look: _Look) -> Words | None:
    for family, marks in _TEMPLATES:
        if look.template and all(mark in look.template for mark in marks):
            return _of_family(family, look, "by its chat template")
    return None


def _by_tokens(look: _Look) -> Words | None:
    """Kanana answers in control tokens that nobody else has."""
    if look.folder is None or not (tokens := _added_tokens(look.folder)):
        return None
    return _of_family(Family.KANANA, look, "by its control tokens") if "<UNSAFE-S1>" in tokens else None


def _added_tokens(folder: Path) -> set[str]:
    try:
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    added = tokenizer.get("added_tokens_decoder") if isinstance(tokenizer, dict) else None
    return {str(one.get("content")) for one in (added or {}).values() if isinstance(one, dict)}


def _by_origin(look: _Look) -> Words | None:
    origin = str(look.config.get("_name_or_path") or "")
    card = _card_of({origin, origin.rpartition("/")[2]}) if origin else None
    return Words(card.family, card, f"it was made from {origin}") if card else None


def _by_name(look: _Look) -> Words | None:
    letters = _letters(look.hub_id or look.name)
    family = next((family for word, family in _NAMES.items() if word in letters), None)
    if family is Family.LIBRA:
        return Words(Family.LIBRA, None, "by its name")
    return _of_family(family, look, "by its name") if family else None


def _by_architecture(look: _Look) -> Words | None:
    family = next((_ARCHITECTURES[name] for name in look.architectures if name in _ARCHITECTURES), None)
    return _of_family(family, look, "by its architecture") if family else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

"""Guards by name: from a card, a folder or a hub id to a guard that can be used. Torch-free."""

from __future__ import annotations

import difflib
import importlib
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.errors import GuardError
from infra.guard_catalogue import GUARDS
from infra.guard_sheets import sheet_of
from schemas.guards import Family, GuardCard, is_bare, is_generator
from schemas.items import Kind
from worker.guards.base import Guard
from worker.guards.checkpoint import ADAPTER_FILES, check_complete
from worker.guards.class_map import read_class_map
from worker.guards.fake import FakeGuard
from worker.guards.family import Words, words_of
from worker.guards.location import parts_of

if TYPE_CHECKING:
    from worker.guards.template_guard import Format

BUNDLED: Final = {"libra-tiny": Path(__file__).parent / "libra_tiny"}
"""Checkpoints that ship inside the package."""

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LANGUAGE_FILES: Final = ("guard.y*ml", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_HUB_FILES: Final = ("*.safetensors", *_LANGUAGE_FILES)


def load_guard(name: str, location: str | None = None, *, weights: bool = True, family: str | None = None) -> Guard:
    """The guard of this name; `location` (a folder, a hub id, or BASE+ADAPTER) replaces its own checkpoint.

    A name without a card needs a location. Its checkpoint is asked in the words of the family that is named or that it
    shows (worker/guards/family.py); a generator writes. Where a server runs the model (`weights=False`), its other
    files are enough.

    Raises:
        GuardError: no such guard, or its checkpoint cannot be found or used.
    """
    if _family(name, location) is Family.FAKE:
        return FakeGuard()
    own = GUARDS.get(name)
    if own and own.family is Family.UNKNOWN:
        raise GuardError(f"{name} cannot be run ({own.status.value}): {own.note}")
    folder = resolve_checkpoint(name, location, weights=weights)
    known: dict[str, Any] = {
        "name": name,
        "model": (own and own.hub_id) or name,
        "context_tokens": own.context_tokens if own else None,
    }
    if location is not None:
        known["model"] = "+".join(_called(part) for part in parts_of(location) if part is not None)
        _check_adapter(name, location, folder)
    # Each brings transformers' tokenizers along: seconds that the fake guard needs not pay.
    if form := _form_by_name(name):
        from worker.guards.template_guard import TemplateGuard  # noqa: PLC0415

        return TemplateGuard(folder, form, **known)
    # The hub's cache keeps the hub id in its folders' names.
    words = Words(own.family, own, "its name") if own and family is None else words_of(str(folder), family)
    if words.family is Family.SEQUENCE_CLASSIFIER:
        from worker.guards.sequence_classifier import SequenceClassifierGuard  # noqa: PLC0415

        return SequenceClassifierGuard(folder, safe_labels=words.card.safe_labels if words.card else (), **known)
    if own is None and read_class_map(folder) is not None:
        raise GuardError(f"{folder} says what classes mean, and its config.json names no classifier")
    if words.family is Family.LIBRA or words.card is None:
        from worker.guards.libra import LibraGuard  # noqa: PLC0415

        return LibraGuard(folder, **known, prompts_as_texts=own is not None and Kind.PROMPT in own.also)
    from worker.guards.template_guard import TemplateGuard  # noqa: PLC0415

    return TemplateGuard(folder, format_of(words.card, folder), sheet=sheet_of(words.card), **known)


def _form_by_name(name: str) -> Format | None:
    """The format of a model whose name says how it is asked, whatever it is."""
    if is_generator(name):
        from worker.guards.template_guard import GENERATOR  # noqa: PLC0415

        return GENERATOR
    if is_bare(name):
        from worker.guards.libra_bare import BARE  # noqa: PLC0415

        return BARE
    return None


def _check_adapter(name: str, location: str, base: Path) -> None:
    """See that the adapter of a location, if it names one, was trained on the base's prompts."""
    if adapter := resolve_adapter(name, location):
        from worker.guards.adapter import check_language  # noqa: PLC0415 - brings transformers along

        check_language(base, adapter)


def format_of(card: GuardCard, folder: Path) -> Format:
    """Return the format of a card's family, from its module in this package.

    Raises:
        GuardError: the checkpoint lacks something that its prompt needs.
    """
    module = importlib.import_module(f"worker.guards.{card.family.value}")
    form: Format = module.form(card, folder)
    return form


def resolve_checkpoint(name: str, location: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a guard's checkpoint, with or without its weights; downloaded first where it lives on the hub.

    Of BASE+ADAPTER it is the base's.

    Raises:
        GuardError: no such guard or folder, no way to the hub, or files are missing.
    """
    location = None if location is None else parts_of(location).base
    if _family(name, location) is Family.FAKE:
        raise GuardError("the fake guard has no checkpoint; run it on the fake engine")
    card = GUARDS.get(name)
    if location is None and name in BUNDLED:
        return _complete(BUNDLED[name], name, weights=weights)
    place = location or (card and card.hub_id) or ""
    folder = Path(place).expanduser()
    if location and folder.is_file():
        raise GuardError(f"{name}: {folder} is a file; name the folder that it lies in, with config.json and tokenizer")
    if location and folder.is_dir():
        return _complete(folder.resolve(), name, weights=weights)
    if not _HUB_ID.fullmatch(place):
        raise GuardError(f"{name}: {place!r} is neither a folder nor a hub id (owner/name)")
    revision = card.revision if card and location is None else None
    return _complete(_download(place, revision, _HUB_FILES if weights else _LANGUAGE_FILES), name, weights=weights)


def resolve_adapter(name: str, location: str | None) -> Path | None:
    """The folder of the adapter in BASE+ADAPTER, downloaded first where it lives on the hub; None where none is named.

    Raises:
        GuardError: no such folder, no way to the hub, or neither a folder nor a hub id.
    """
    place = None if location is None else parts_of(location).adapter
    if place is None:
        return None
    folder = Path(place).expanduser()
    if place and folder.is_dir():
        return folder.resolve()
    if not _HUB_ID.fullmatch(place):
        raise GuardError(f"{name}: {place!r}, behind the +, is neither an adapter's folder nor a hub id (owner/name)")
    return _download(place, None, ADAPTER_FILES)


def is_fake(name: str, location: str | None) -> bool:
    """True for the fake guard, by its own name or, as NAME=fake, under another, which has a queue of its own."""
    return name == FakeGuard.name or (location == FakeGuard.name and name not in GUARDS)


def _family(name: str, location: str | None) -> Family:
    if is_fake(name, location):
        return Family.FAKE
    if name in GUARDS:
        return GUARDS[name].family
    if location is None:
        close = difflib.get_close_matches(name.lower(), GUARDS, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(GUARDS)}."
        raise GuardError(f"no guard named {name!r}; {hint} Your own: {name}=FOLDER or {name}=OWNER/MODEL")
    return Family.LIBRA


def _called(place: str) -> str:
    """A folder's own name, or a hub id, for the fingerprint."""
    folder = Path(place).expanduser()
    return folder.resolve().name if folder.is_dir() else place


def cached_checkpoint(card: GuardCard) -> str | None:
    """Return the folder of a card's checkpoint in the hub's cache, if it is there; nothing is fetched."""
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415

        found: str = snapshot_download(card.hub_id or "", revision=card.revision, local_files_only=True)
    except Exception:  # noqa: BLE001 - not cached, no cache, or no hub client: it is not at hand
        return None
    return found


@lru_cache
def _download(hub_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where something must be fetched
    except ImportError as error:
        raise GuardError(
            f"{hub_id} lives on the Hugging Face hub: install huggingface-hub (pip install 'libra-fleet[hub]'), "
            "or name a folder that holds it"
        ) from error
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise GuardError(f"cannot fetch {hub_id} from the Hugging Face hub: {reason}") from error


def _complete(folder: Path, name: str, *, weights: bool) -> Path:
    """The folder, if it holds what a guard needs."""
    if not folder.is_dir():
        raise GuardError(f"{name}: its checkpoint {folder} is not there")
    check_complete(folder, name, weights=weights)
    return folder

"""The prompt of a guard, for `libra guards show`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from infra.errors import GuardError
from infra.guard_catalogue import GUARDS
from schemas.guards import Family, GuardCard, Mode
from schemas.messages import ChunkItem
from worker.guards.location import parts_of
from worker.guards.registry import BUNDLED, cached_checkpoint, format_of, load_guard, resolve_checkpoint

_QUESTION, _RESPONSE = "{question}", "{response}"
_NO_PROMPT: Final = "(no prompt: nothing here can ask it)"


def describe(name: str, location: str | None = None) -> str:
    """The prompt as the checkpoint renders it where it is at hand, else the family's format with placeholders.

    Raises:
        GuardError: the checkpoint is at hand, but cannot be used.
    """
    card = GUARDS.get(name)
    if card and card.family in (Family.UNKNOWN, Family.FAKE):
        return _NO_PROMPT if card.family is Family.UNKNOWN else f"{_QUESTION}\n{_RESPONSE}"
    place = parts_of(location).base if location else None
    if place is None:
        place = str(BUNDLED[name]) if name in BUNDLED else cached_checkpoint(card) if card else None
    if place and Path(place).is_dir():
        from worker.guards.vocabulary import Vocabulary  # noqa: PLC0415 - brings transformers along

        guard = load_guard(name, place)
        item = ChunkItem(seq=0, question=_QUESTION, response=_RESPONSE)
        words = Vocabulary(resolve_checkpoint(name, place))
        prompts = guard.render([item], guard.modes[0])[0]
        return "\n\n".join(words.decode(ids.tolist(), keep_controls=True) for ids in prompts)
    return "(the checkpoint is not here; this is the family's format)\n\n" + (
        _placeholders(card) if card else _NO_PROMPT
    )


def _placeholders(card: GuardCard) -> str:
    if card.family is Family.SEQUENCE_CLASSIFIER:
        return f"{_RESPONSE}\n\n(between the tokenizer's own special tokens)"
    if card.family is Family.LIBRA:
        from worker.guards.libra import PREFILL, user_turn  # noqa: PLC0415

        return f"[user]\n{user_turn(_QUESTION, _RESPONSE)}\n[assistant, in score mode]\n{PREFILL}"
    from worker.guards.prompt import QUESTION, RESPONSE, Ask  # noqa: PLC0415

    def shown(ask: Ask) -> str:
        turns = [ask.raw] if ask.raw else [f"[{role}]\n{content}" for role, content in ask.messages]
        options = [f"(chat template options: {dict(ask.options)})"] if ask.options else []
        prefill = [f"[assistant, in score mode]\n{ask.prefill}"] if ask.prefill and Mode.SCORE in card.modes else []
        return "\n".join([*turns, *options, *prefill]).replace(QUESTION, _QUESTION).replace(RESPONSE, _RESPONSE)

    try:
        return "\n\n".join(shown(ask) for ask in format_of(card, Path("its folder")).pair)
    except GuardError as error:
        return f"({error})"

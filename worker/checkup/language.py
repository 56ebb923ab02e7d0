"""What tokenizer and chat template of a checkpoint show before anything is asked: if its family's words arrive.

It reads files only; the model's own answers are findings.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.guard_sheets import sheet_of
from schemas.guards import GuardCard
from worker.checkup.findings import Finding, shown
from worker.guards.base import Guard, PromptIds
from worker.guards.checkpoint import read_json
from worker.guards.prompt import Prompt
from worker.guards.registry import format_of
from worker.guards.vocabulary import Vocabulary

AROUND_LABEL: Final = 6
"""Ids of a prompt's end that are shown, one by one."""
_OWN_TEMPLATE: Final = (
    "put the model's own chat_template.jinja (or the template in its tokenizer_config.json) in the folder"
)


def pieces(words: Vocabulary, ids: PromptIds | tuple[int, ...]) -> list[tuple[int, str]]:
    """Ids with the text of each alone, control tokens by name."""
    return [(token, words.decode([token], keep_controls=True)) for token in ids]


def label_findings(guard: Guard, words: Vocabulary) -> Iterator[Finding]:
    """Labels that the tokenizer takes apart so far that they are told from each other by parts of a character."""
    torn = [label for label in guard.label_ids if "\ufffd" in words.decode([label[0]], keep_controls=True)]
    if torn:
        ids = ", ".join(map(str, torn[0]))
        yield Finding(
            "label-pieces",
            f"the tokenizer has no piece for a label: {shown(words.decode(torn[0]))} begins with a part of a character "
            f"(ids {ids})",
            "take the tokenizer.json that the guard was trained with",
        )


def template_findings(card: GuardCard | None, folder: Path, words: Vocabulary) -> Iterator[Finding]:
    """A chat template that does not say what the family's own says, where its source was seen."""
    sheet = sheet_of(card) if card else None
    if card is None or sheet is None or not sheet.template_says:
        return
    rendered = Prompt(format_of(card, folder).pair[0], words, folder).rendered
    lacking = [said for said in sheet.template_says if said not in rendered]
    if lacking:
        what = f"its chat template does not say {shown(lacking[0])}, as {card.name}'s own does: it is another model's"
        yield Finding("template", what, _OWN_TEMPLATE)


def notes(card: GuardCard | None, folder: Path) -> Iterator[str]:
    """Facts that may be meant so: another class of model than the catalogue's."""
    if card is None or not card.architecture:
        return
    named = [str(name) for name in read_json(folder / "config.json").get("architectures") or []]
    if named and card.architecture not in named:
        yield f"config.json says {', '.join(named)}; the catalogue knows {card.name} as {card.architecture}"

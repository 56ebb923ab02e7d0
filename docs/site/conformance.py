"""The conformance table of docs/guards.md, made from the fidelity sheets: `python -m docs.site.conformance` writes it.

A test compares the page with what this makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from infra.guard_catalogue import GUARDS
from infra.guard_sheets import sheets
from schemas.guards import FidelitySheet, GuardCard, Rule

PAGE: Final = Path(__file__).parents[1] / "guards.md"
START: Final = "<!-- made from infra/guard_sheets.yaml by python -m docs.site.conformance -->"


def table() -> str:
    """A section per sheet: sources, status, kinds, rule, modes, categories, and what differs."""
    return "\n".join(
        _section(sheet, [card for card in GUARDS.values() if card.sheet == name]) for name, sheet in sheets().items()
    )


def _section(sheet: FidelitySheet, cards: list[GuardCard]) -> str:
    modes = dict.fromkeys(mode.value for card in cards for mode in card.modes)
    statuses: dict[str, list[str]] = {}
    for card in cards:
        statuses.setdefault(card.status.value, []).append(card.name)
    rule = sheet.rule.value
    if sheet.rule is Rule.OWN:
        rule += f", from {sheet.prompt_threshold} (prompts) and {sheet.response_threshold} (responses)"
    rows = {
        **{f"source {at}": f"`{source.place}`: {source.shows}" for at, source in enumerate(sheet.sources, 1)},
        **{f"status: {status}": ", ".join(names) for status, names in statuses.items()},
        "licence": "; ".join(dict.fromkeys(card.licence for card in cards)),
        "kinds": ", ".join(kind.value for kind in sheet.kinds),
        "prompt": sheet.prompt,
        "template options": ", ".join(f"`{key}={value!r}`" for key, value in sheet.template_options.items()) or "none",
        "label read at": sheet.read_at,
        "rule": rule,
        "modes": ", ".join(modes),
        "categories": ", ".join(sheet.categories) or "none",
        "differs": sheet.differs or "nothing known",
    }
    lines = [f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows.items()]
    return "\n".join([f"### {sheet.name}", "", "| | |", "|---|---|", *lines, ""])


def page(current: str) -> str:
    """The page with its table renewed."""
    return f"{current.partition(START)[0]}{START}\n\n{table()}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

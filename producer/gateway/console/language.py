"""The console's words in every language it speaks: read from strings.yaml, chosen by cookie or Accept-Language."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import yaml

from schemas.taxonomy import find_scenario, find_subcategory

_FILE: Final = Path(__file__).with_name("strings.yaml")
_JUST_NOW_S: Final = 10


class Language(StrEnum):
    """Languages, by the codes that HTML uses."""

    EN = "en"
    ZH = "zh"

    @property
    def other(self) -> Language:
        """The one to switch to."""
        return Language.ZH if self is Language.EN else Language.EN


CATALOGUE: Final[Mapping[str, Mapping[str, str]]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
"""Every string by its name, then by language."""


def language_of(cookie: str | None, accept: str) -> Language:
    """The visitor's own choice, else the first language of Accept-Language (RFC 9110) that is spoken here."""
    if cookie in set(Language):
        return Language(cookie)
    wanted = sorted((_quality(part) for part in accept.split(",")), key=lambda found: -found[0])
    for quality, code in wanted:
        if quality > 0 and code in set(Language):
            return Language(code)
    return Language.EN


def _quality(part: str) -> tuple[float, str]:
    tag, _, parameter = part.partition(";")
    code = tag.strip().lower().partition("-")[0]
    name, _, value = parameter.strip().partition("=")
    try:
        return (float(value) if name == "q" else 1.0), code
    except ValueError:
        return 0.0, code


class Words:
    """The strings of one language; a template calls it as `say("queue.title", n=3)`."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, name: str, **values: object) -> str:
        """A string of the catalogue with its places filled."""
        text = CATALOGUE[name][self.language]
        return text.format(**values) if values else text

    def category(self, code: str) -> str:
        """A category as the taxonomy calls it; the guard's own code where the taxonomy has none."""
        known = find_subcategory(code) or find_scenario(code)
        if known is None:
            return code
        return known.name_zh if self.language is Language.ZH else known.name

    def duration(self, seconds: float) -> str:
        """A span of time in its largest fitting unit."""
        for name, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
            if seconds >= 2 * unit_s:
                return self(f"time.{name}", n=int(seconds // unit_s))
        return self("time.seconds", n=int(seconds)) if seconds >= 10 else self("time.seconds", n=f"{seconds:.1f}")

    def age(self, timestamp: datetime, now: datetime) -> str:
        """The time since then, in words."""
        seconds = (now - timestamp).total_seconds()
        return self("time.ago", span=self.duration(seconds)) if seconds >= _JUST_NOW_S else self("time.just_now")

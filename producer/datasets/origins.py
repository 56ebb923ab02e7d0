"""What made a row of results, noted in the row itself, so that results of different guards never stand in one file.

The note is the field `judged_by`: the guard, its checkpoint and fingerprint, a hash of the text that was judged, and
the settings. The benchmark's own scripts read past it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from infra.errors import DataError
from schemas.items import Item
from schemas.runs import RunSpec

FIELD: Final = "judged_by"


class Origin(NamedTuple):
    """The guard and settings that make the rows of a file. `fingerprint` is None until a device has said it."""

    guard: str
    checkpoint: str | None
    settings: str
    fingerprint: str | None = None

    def note(self, item: Item) -> dict[str, object]:
        """The field's value for a row of this item."""
        return {**self._asdict(), "text": item.content_hash.hex()}

    @property
    def said(self) -> str:
        """The origin in a few words."""
        named = f"{self.guard}={self.checkpoint}" if self.checkpoint else self.guard
        return " · ".join(filter(None, (named, self.fingerprint, self.settings)))


def origin_of(spec: RunSpec) -> Origin:
    """The origin of the rows of a run, as far as it is known before the run."""
    settings = [spec.mode.value]
    settings += [f"{spec.repeat} iterations"] if spec.repeat > 1 else []
    if spec.examples:
        shots = "".join(example.model_dump_json() for example in spec.examples)
        settings.append(f"{len(spec.examples)} examples {hashlib.blake2b(shots.encode(), digest_size=6).hexdigest()}")
    return Origin(spec.guard, spec.checkpoint, ", ".join(settings))


def noted(row: Mapping[str, Any]) -> Origin | None:
    """The origin that a row of results names, if it names one."""
    note = row.get(FIELD)
    if not isinstance(note, Mapping) or not isinstance(note.get("guard"), str):
        return None
    return Origin(note["guard"], note.get("checkpoint"), str(note.get("settings")), note.get("fingerprint"))


def require_one(origins: Iterable[Origin | None], place: str) -> None:
    """See that results are all of one origin.

    Raises:
        DataError: they are of several.
    """
    said = sorted({one.said if one else "rows that do not say" for one in origins})
    if len(said) > 1:
        raise DataError(f"{place} holds results of several guards or settings, which never mix: {'; '.join(said)}")


class Origins:
    """The origins of the rows in a file, and the hash of each row's text."""

    def __init__(self) -> None:
        self.found: set[Origin | None] = set()
        self.texts: dict[str, str] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row's note."""
        self.found.add(noted(row))
        if isinstance(note := row.get(FIELD), Mapping):
            self.texts[str(row["id"])] = str(note.get("text"))

    def require(self, origin: Origin, place: str) -> None:
        """See that every row was made as rows to come will be.

        Raises:
            DataError: some row was not, or does not say how it was made.
        """
        for other in self.found:
            if other is None:
                raise DataError(f"{place} holds rows that do not say which guard made them: name another --out_path")
            theirs = other if origin.fingerprint else other._replace(fingerprint=None)
            if theirs != origin:
                raise DataError(
                    f"{place} holds rows of {other.said}, not of {origin.said}: results never mix; "
                    "name another --out_path"
                )

"""What the answers to plain texts say of a checkpoint: findings, each with what was seen and what to do.

Thresholds are wide: the texts are plain, so a checkpoint that serves its family clears them by far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from schemas.guards import Mode
from schemas.items import Kind, Label
from schemas.verdicts import Outcome
from worker.checkup.asking import Judged
from worker.guards.reading import MIN_LABEL_MASS

_UNREAD_SHARE: Final = 0.25
"""Unanswered texts above this share are a finding."""
_SPLIT_SHARE: Final = 0.125
_RIGHT_SHARE: Final = 0.75
_SWAPPED_SHARE: Final = 0.25
_FEWEST: Final = 4
"""Texts that say something of how labels are shared out."""
_SHOWN: Final = 60
"""Characters of a model's own text."""

OTHER_MODEL: Final = (
    "see that these weights are the fine-tuned guard's and not its base's, that tokenizer and chat template lie beside "
    "them as their authors publish them, and that NAME is this model's own (`libra guards`)"
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: a name for scripts, what was seen, what to do."""

    name: str
    what: str
    do: str


@dataclass(frozen=True)
class Tally:
    """One kind in one mode: texts, those that were read, and those of each label that were judged so.

    `label_mass` is the median over scored texts; None in a mode that has none.
    """

    kind: Kind
    mode: Mode
    texts: int
    read: int
    dead: int
    safe_as_safe: int
    safe: int
    unsafe_as_unsafe: int
    unsafe: int
    label_mass: float | None
    least_mass: float | None

    @property
    def right(self) -> int:
        """Texts judged as they are labelled."""
        return self.safe_as_safe + self.unsafe_as_unsafe


def tally(rows: Sequence[Judged]) -> Tally:
    """Count the rows of one kind in one mode."""

    def as_labelled(label: Label) -> int:
        return sum(row.text.label is label and row.verdict.label is label for row in rows)

    masses = [row.verdict.label_mass for row in rows if row.verdict.label_mass is not None]
    return Tally(
        kind=rows[0].kind,
        mode=rows[0].mode,
        texts=len(rows),
        read=sum(row.verdict.outcome is Outcome.SCORED for row in rows),
        dead=sum(row.verdict.outcome is Outcome.DEAD for row in rows),
        safe_as_safe=as_labelled(Label.SAFE),
        safe=sum(row.text.label is Label.SAFE for row in rows),
        unsafe_as_unsafe=as_labelled(Label.UNSAFE),
        unsafe=sum(row.text.label is Label.UNSAFE for row in rows),
        label_mass=median(masses) if masses else None,
        least_mass=min(masses, default=None),
    )


def findings_of(
    rows: Mapping[tuple[Kind, Mode], Sequence[Judged]], *, written: Callable[[Kind], str], speaks: bool
) -> Iterator[Finding]:
    """All findings of a checkpoint; `rows` holds an entry per kind and mode.

    `written` is what the model wrote by itself where its label is read. `speaks`: the texts are in the guard's own
    languages, so that its labels say something.
    """
    for (kind, mode), judged in rows.items():
        where = f"{kind} in mode {mode}"
        unread = _unread(judged, where, written(kind))
        if unread:
            yield unread
        elif speaks and (found := _labels(judged, where)):
            yield found
    for kind in dict.fromkeys(kind for kind, _ in rows):
        if {(kind, Mode.SCORE), (kind, Mode.GENERATE)} <= rows.keys():
            yield from _split(rows[kind, Mode.SCORE], rows[kind, Mode.GENERATE], kind)


def _unread(judged: Sequence[Judged], where: str, written: str) -> Finding | None:
    """Texts that got no label: dead, with labels that are unlikely, or answered in another form."""
    count = tally(judged)
    if count.texts - count.read <= _UNREAD_SHARE * count.texts:
        return None
    share = f"{count.texts - count.read} of {count.texts} plain texts"
    if count.dead:
        reason = next(row.verdict.reason for row in judged if row.verdict.outcome is Outcome.DEAD)
        return Finding(
            "dead", f"{where}: {share} could not be judged: {reason}", "take an earlier checkpoint, or --dtype"
        )
    if count.label_mass is not None:
        return Finding(
            "low-mass",
            f"{where}: for {share} the labels together have less than {MIN_LABEL_MASS:.0%} of the probability (median "
            f"{count.label_mass:.2%}); there the model would write {written}",
            OTHER_MODEL,
        )
    said = next((row.verdict.raw or "" for row in judged if row.verdict.outcome is not Outcome.SCORED), "")
    return Finding("unread", f"{where}: {share} got no answer in the family's form, but {shown(said)}", OTHER_MODEL)


def _labels(judged: Sequence[Judged], where: str) -> Finding | None:
    """Labels that do not follow the texts."""
    count = tally(judged)
    given = {row.verdict.label for row in judged if row.verdict.label}
    if count.read < _FEWEST:
        return None
    if len(given) == 1:
        (label,) = given
        chances = [row.verdict.p_unsafe for row in judged if row.verdict.p_unsafe is not None]
        spread = f", with p_unsafe from {min(chances):.4f} to {max(chances):.4f}" if chances else ""
        return Finding(
            "one-label", f"{where}: every plain text is {label}, safe and unsafe ones alike{spread}", OTHER_MODEL
        )
    right = f"{count.safe_as_safe} of {count.safe} safe and {count.unsafe_as_unsafe} of {count.unsafe} unsafe texts"
    if count.right < _SWAPPED_SHARE * count.read:
        return Finding(
            "swapped",
            f"{where}: {right} are judged so; the labels look exchanged",
            "see that id2label (of a classifier) or NAME is this model's own",
        )
    if count.right < _RIGHT_SHARE * count.read:
        return Finding("plain-texts", f"{where}: {right} are judged so, though nobody doubts them", OTHER_MODEL)
    return None


def _split(scored: Sequence[Judged], written: Sequence[Judged], kind: Kind) -> Iterator[Finding]:
    """Texts that the two modes judge differently."""
    pairs = [
        (one.verdict.label, other.verdict.label)
        for one, other in zip(scored, written, strict=True)
        if one.verdict.label and other.verdict.label
    ]
    apart = sum(one is not other for one, other in pairs)
    if apart > _SPLIT_SHARE * len(pairs):
        yield Finding(
            "split",
            f"{kind}: modes score and generate differ on {apart} of {len(pairs)} plain texts",
            "the label is not read where the model writes it: compare the ids above with the authors', and run in mode "
            "generate until they agree",
        )


def shown(text: str) -> str:
    """A model's own text in one line of quotes, cut off."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")

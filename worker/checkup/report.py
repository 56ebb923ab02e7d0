"""The whole check of one checkpoint: load, ask, count, and say whether it answers as its family should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from infra.guard_catalogue import GUARDS
from schemas.guards import GuardCard, Mode
from schemas.items import Kind
from worker.checkup.asking import Judged, Sample, device_of, judge, sample
from worker.checkup.findings import Finding, Tally, findings_of, shown, tally
from worker.checkup.language import AROUND_LABEL, label_findings, notes, pieces, template_findings
from worker.checkup.texts import KINDS, plain_texts, texts_in
from worker.device.engines.base import EngineInfo
from worker.device.spec import DeviceSpec
from worker.guards.base import Guard
from worker.guards.registry import load_guard, resolve_checkpoint
from worker.guards.vocabulary import Vocabulary

SAMPLES: Final = 3
"""Rendered samples of each kind."""


@dataclass(frozen=True)
class Report:
    """What was seen of one checkpoint. `speaks`: the plain texts are in languages of the guard's own."""

    name: str
    folder: Path
    card: GuardCard | None
    guard: Guard
    words: Vocabulary
    info: EngineInfo
    speaks: bool
    samples: tuple[Sample, ...]
    judged: dict[tuple[Kind, Mode], list[Judged]]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """True if nothing was found."""
        return not self.findings

    @property
    def tallies(self) -> list[Tally]:
        """Counts of each kind and mode."""
        return [tally(rows) for rows in self.judged.values()]

    @property
    def line(self) -> str:
        """Whether the checkpoint answers as its family should, in one line."""
        if self.findings:
            names = ", ".join(dict.fromkeys(finding.name for finding in self.findings))
            return f"{self.name}: this checkpoint does not answer as its family should ({names})"
        texts, right = (sum(getattr(count, name) for count in self.tallies) for name in ("texts", "right"))
        modes = " and ".join(mode.value for mode in self.guard.modes)
        said = (
            f"{right} of {texts} answers to plain texts are right" if self.speaks else f"{texts} plain texts answered"
        )
        return f"{self.name}: this checkpoint answers as its family should ({said}; mode {modes})"

    def verdicts_of(self, one: Sample) -> list[Judged]:
        """The verdicts on a sample, a row per mode."""
        rows = [row for (kind, _), judged in self.judged.items() if kind is one.kind for row in judged]
        return [row for row in rows if row.text is one.text]

    def facts(self) -> dict[str, Any]:
        """The report as JSON has it: everything, prompts and ids whole."""
        return {
            "guard": self.name,
            "checkpoint": str(self.folder),
            "fits": self.fits,
            "line": self.line,
            "prompt_checked": self.card.status.value if self.card else None,
            "engine": asdict(self.info),
            "prompt_digest": self.guard.prompt_digest,
            "samples": [self.sample_facts(one) for one in self.samples],
            "tallies": [{**asdict(count), "right": count.right} for count in self.tallies],
            "answers": [
                {
                    "kind": row.kind,
                    "mode": row.mode,
                    "language": row.text.language,
                    "label": row.text.label,
                    "prompt": row.text.prompt,
                    "response": row.text.response,
                    "verdict": row.verdict.model_dump(
                        mode="json", exclude={"seq", "cached", "windows", "prompt_tokens"}
                    ),
                }
                for rows in self.judged.values()
                for row in rows
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
        }

    def sample_facts(self, one: Sample) -> dict[str, Any]:
        """A sample as JSON has it; ids with the text of each as pairs."""
        return {
            "kind": one.kind,
            "mode": one.mode,
            "language": one.text.language,
            "label": one.text.label,
            "prompts": [self.words.decode(ids.tolist(), keep_controls=True) for ids in one.prompts],
            "ids": [ids.tolist() for ids in one.prompts],
            "before_label": pieces(self.words, one.prompts[0][-AROUND_LABEL:]),
            "labels": [pieces(self.words, label) for label in self.guard.label_ids],
            "written": None if one.written is None else pieces(self.words, one.written),
        }


def check(spec: DeviceSpec, *, visible: str, log: Path, say: Callable[[str], None]) -> Report:
    """Load the checkpoint of `spec` as a worker does and ask it about the plain texts.

    Raises:
        GuardError: the checkpoint is unfit, or cannot be asked.
        infra.errors.DeviceError: its device process died.
    """
    name, card = spec.guard, GUARDS.get(spec.guard)
    guard = load_guard(name, spec.location)
    folder = resolve_checkpoint(name, spec.location)
    words = Vocabulary(folder)
    mine = texts_in(card.languages if card else ())
    texts = mine or plain_texts()
    kinds: list[Kind] = [kind for kind in KINDS if kind in guard.kinds]
    say(f"loading {name} …")
    with device_of(spec.model_copy(update={"modes": guard.modes}), visible=visible, log=log) as (run, info):
        say(f"asking it about {len(texts)} plain texts, as {', '.join(kinds)}, in mode {', '.join(guard.modes)} …")
        samples = tuple(sample(guard, run, text, kind) for kind in kinds for text in texts[:SAMPLES])
        judged = {(kind, mode): judge(guard, run, texts, kind, mode) for kind in kinds for mode in guard.modes}
    found = [
        *label_findings(guard, words),
        *template_findings(card, folder, words),
        *findings_of(judged, written=lambda kind: _written(samples, kind, words), speaks=bool(mine)),
    ]
    return Report(
        name=name,
        folder=folder,
        card=card,
        guard=guard,
        words=words,
        info=info,
        speaks=bool(mine),
        samples=samples,
        judged=judged,
        findings=tuple(found),
        notes=tuple(notes(card, folder)),
    )


def _written(samples: Sequence[Sample], kind: Kind, words: Vocabulary) -> str:
    """What the model writes in place of a label of this kind."""
    ids = next((one.written for one in samples if one.kind is kind and one.written), ())
    return shown(words.decode(ids, keep_controls=True)) if ids else "nothing"

"""Small builders that tests share."""

from __future__ import annotations

from collections.abc import Sequence

from infra.ledger.items import PairedVerdict
from schemas.guards import Mode
from schemas.items import Item, Label
from schemas.messages import JudgeChunk, Lane, VerdictChunk
from schemas.runs import RunSpec
from schemas.verdicts import Fingerprint, Outcome, Timings, Verdict

FINGERPRINT = Fingerprint(
    guard="fake", model="fake", revision="1", prompt="p", mode=Mode.SCORE, dtype="none", engine="fake"
)


def spec(*, repeat: int = 1, lane: Lane = Lane.BULK, guard: str = "fake") -> RunSpec:
    """A run of the fake guard."""
    return RunSpec(guard=guard, source="test", repeat=repeat, lane=lane)


def items(count: int, *, prefix: str = "item") -> list[Item]:
    """Labelled items with distinct ids and texts, every other one unsafe."""
    return [
        Item(
            id=f"{prefix}-{number}",
            response=f"text number {number}",
            truth=Label.UNSAFE if number % 2 else Label.SAFE,
            source="Real Data",
            category="c",
            subcategory="s",
        )
        for number in range(count)
    ]


def verdicts_for(
    chunk: JudgeChunk,
    *,
    seqs: Sequence[int] | None = None,
    label: Label = Label.SAFE,
    fingerprint: Fingerprint = FINGERPRINT,
) -> VerdictChunk:
    """A worker's answer to a chunk, for all of its items or some."""
    wanted = [item.seq for item in chunk.items] if seqs is None else seqs
    return VerdictChunk(
        run_id=chunk.run_id,
        chunk_no=chunk.chunk_no,
        iteration=chunk.iteration,
        attempt=chunk.attempt,
        worker="test",
        fingerprint=fingerprint,
        timings=Timings(queue_s=0.1, render_s=0.1, device_s=0.1),
        verdicts=tuple(
            Verdict(seq=seq, outcome=Outcome.SCORED, label=label, p_unsafe=0.25, label_mass=1.0) for seq in wanted
        ),
        nonce=chunk.nonce or None,  # a chunk made by hand has none
    )


def pair(
    item_id: str,
    *,
    labels: tuple[Label | None, Label | None] = (Label.SAFE, Label.SAFE),
    outcomes: tuple[Outcome, Outcome] = (Outcome.SCORED, Outcome.SCORED),
    source: str = "Real Data",
) -> PairedVerdict:
    """An item as two runs judged it."""
    return PairedVerdict(0, item_id, source, "", Label.SAFE, True, outcomes, labels, (0.4, None))

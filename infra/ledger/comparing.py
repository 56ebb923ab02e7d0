"""Verdicts by item: of some items of a run, and of two runs over the same items. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import disable_nested_loops
from schemas.items import Label
from schemas.verdicts import Outcome


class Settled(NamedTuple):
    """How one iteration of an item ended."""

    outcome: Outcome
    label: Label | None
    raw: str | None
    reason: str | None


class Pair(NamedTuple):
    """An item as two runs judged it, in the order of the runs; the texts are for whoever asks for them."""

    item_id: str
    source: str
    truth: Label | None
    outcomes: tuple[Outcome, Outcome]
    labels: tuple[Label | None, Label | None]
    p_unsafe: float | None
    raw: str | None
    question: str
    response: str


class PairedVerdict(NamedTuple):
    """One judgement of an item by two runs, in the order of the runs; `seq` is its number in the first."""

    seq: int
    item_id: str
    source: str
    category: str
    truth: Label | None
    same_text: bool
    outcomes: tuple[Outcome, Outcome]
    labels: tuple[Label | None, Label | None]
    scores: tuple[float | None, float | None]


def settled_of(engine: sa.Engine, run_id: str, item_ids: Sequence[str]) -> dict[str, list[Settled]]:
    """What is settled of some items by now, in the order of the iterations."""
    statement = sa.text(
        """
        SELECT i.item_id, v.outcome, v.label, v.raw, v.reason FROM items i JOIN verdicts v USING (run_id, seq)
        WHERE i.run_id = :run_id AND i.item_id = ANY(CAST(:item_ids AS text[])) ORDER BY v.iteration
        """
    )
    found: dict[str, list[Settled]] = defaultdict(list)
    with engine.connect() as connection:
        for row in connection.execute(statement, {"run_id": run_id, "item_ids": list(item_ids)}):
            label = Label(row.label) if row.label else None
            found[row.item_id].append(Settled(Outcome(row.outcome), label, row.raw, row.reason))
    return found


def pairs_of(engine: sa.Engine, score_run: str, text_run: str, *, fetch: int = 1_000) -> Iterator[Pair]:
    """The items that both runs have judged, by id, streamed: `p_unsafe` of the first run, `raw` of the second."""
    statement = sa.text(
        """
        SELECT i.item_id, i.source, i.truth, i.question, i.response, v.outcome, v.label, v.p_unsafe,
               w.outcome AS other_outcome, w.label AS other_label, w.raw
        FROM items i JOIN verdicts v USING (run_id, seq)
        JOIN items j ON j.run_id = :text_run AND j.item_id = i.item_id
        JOIN verdicts w ON w.run_id = j.run_id AND w.seq = j.seq AND w.iteration = v.iteration
        WHERE i.run_id = :score_run ORDER BY i.item_id
        """
    )
    with engine.connect().execution_options(yield_per=fetch) as connection:
        for row in connection.execute(statement, {"score_run": score_run, "text_run": text_run}):
            yield Pair(
                item_id=row.item_id,
                source=row.source,
                truth=Label(row.truth) if row.truth else None,
                outcomes=(Outcome(row.outcome), Outcome(row.other_outcome)),
                labels=(
                    Label(row.label) if row.label else None,
                    Label(row.other_label) if row.other_label else None,
                ),
                p_unsafe=row.p_unsafe,
                raw=row.raw,
                question=row.question,
                response=row.response,
            )


def both_settled(engine: sa.Engine, first: str, second: str, *, fetch: int = 2_000) -> Iterator[PairedVerdict]:
    """What both runs have settled of items with the same id, in the order of the first run, streamed."""
    statement = sa.text(
        """
        SELECT i.seq, i.item_id, i.source, i.category, coalesce(i.truth, j.truth) AS truth,
               i.content_hash = j.content_hash AS same_text, v.outcome, v.label, v.p_unsafe,
               w.outcome AS other_outcome, w.label AS other_label, w.p_unsafe AS other_p_unsafe
        FROM items i JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq
        JOIN items j ON j.run_id = :second AND j.item_id = i.item_id
        JOIN verdicts w ON w.run_id = j.run_id AND w.seq = j.seq AND w.iteration = v.iteration
        WHERE i.run_id = :first ORDER BY i.seq, v.iteration
        """
    )
    with engine.connect() as connection:
        disable_nested_loops(connection)
        streamed = connection.execution_options(yield_per=fetch)
        for row in streamed.execute(statement, {"first": first, "second": second}):
            yield PairedVerdict(
                seq=row.seq,
                item_id=row.item_id,
                source=row.source,
                category=row.category,
                truth=Label(row.truth) if row.truth else None,
                same_text=row.same_text,
                outcomes=(Outcome(row.outcome), Outcome(row.other_outcome)),
                labels=(
                    Label(row.label) if row.label else None,
                    Label(row.other_label) if row.other_label else None,
                ),
                scores=(row.p_unsafe, row.other_p_unsafe),
            )


def texts_of(engine: sa.Engine, run_id: str, seqs: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Question and response of some items; both are empty where retention has scrubbed them."""
    statement = sa.text(
        "SELECT seq, question, response FROM items WHERE run_id = :run_id AND seq = ANY(CAST(:seqs AS bigint[]))"
    )
    with engine.connect() as connection:
        rows = connection.execute(statement, {"run_id": run_id, "seqs": list(seqs)})
        return {row.seq: (row.question, row.response) for row in rows}

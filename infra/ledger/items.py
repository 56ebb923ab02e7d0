"""Items with their verdicts: rows as objects, the items of one run, and the same items as two runs judged them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import Row, fetch_all, fetch_one, named, stream
from infra.ledger.paging import pages
from infra.ledger.tables import items, verdicts
from infra.metrics import Judged
from schemas.items import Dialogue, Item, Kind, Label, Turn, kind_of
from schemas.verdicts import CONTROVERSIAL, CategoriesBy, Outcome, Verdict

_ITEM: Final = "i.item_id, i.question, i.response, i.kind, i.history, i.truth, i.source, i.category, i.subcategory"

SHOWN_QUESTION: Final = """
    concat_ws(E'\\n\\n', (SELECT string_agg((turn ->> 'role') || ': ' || (turn ->> 'content'), E'\\n\\n' ORDER BY n)
                        FROM jsonb_array_elements(i.history) WITH ORDINALITY AS earlier(turn, n)),
              nullif(i.question, '')) AS question"""
"""The question of an item for a human to read, after the earlier turns of its conversation."""

FINAL: Final = """
    SELECT DISTINCT ON (i.item_id) i.seq, i.item_id, i.source, i.category, i.subcategory, i.truth, i.content_hash,
           s.stage, 0 AS iteration, v.outcome, v.label, v.p_unsafe, v.categories
    FROM unnest(CAST(:run_ids AS text[])) WITH ORDINALITY AS s(run_id, stage)
    JOIN items i ON i.run_id = s.run_id JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq
    ORDER BY i.item_id, v.outcome = 'scored' DESC, s.stage DESC
"""
"""Each item's verdict by a cascade's last stage that scored it; where none did, the last stage's outcome."""

_JUDGED: Final = """
    SELECT i.seq, i.item_id, i.source, i.category, i.subcategory, i.truth, i.content_hash,
           v.iteration, v.outcome, v.label, v.p_unsafe, v.categories
    FROM verdicts v JOIN items i USING (run_id, seq) WHERE v.run_id = :run_id
"""
"""Every judgement of a run."""


class DeadItem(NamedTuple):
    """An item that settled as dead, without text where that was scrubbed. `attempts`: how often it was enqueued."""

    seq: int
    iteration: int
    reason: str
    attempts: int
    item: Item


class Ending(NamedTuple):
    """The end of one iteration of an item."""

    outcome: Outcome
    label: Label | None
    raw: str | None
    reason: str | None


class Candidate(NamedTuple):
    """A judged item that may be hard. `human` is the newest review; `disputed`: a child run gave another label."""

    item_id: str
    seq: int
    question: str
    response: str
    source: str
    category: str
    subcategory: str
    truth: Label | None
    label: Label | None
    p_unsafe: float | None
    human: Label | None
    disputed: bool


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


class ItemCounts(NamedTuple):
    """Counts of a run's items that are to be judged again, and of those that have lost their text to retention."""

    items: int
    scrubbed: int


def label_of(value: str | None) -> Label | None:
    """A label's column."""
    return Label(value) if value else None


def dialogue_from(row: Row) -> Dialogue:
    """The texts in a row of `items`; one from before there were kinds has the kind that its texts show."""
    history = tuple(Turn(**turn) for turn in row.history or ())
    kind = Kind(row.kind) if row.kind else kind_of({"question": row.question, "response": row.response})
    return Dialogue(row.question, row.response, history, kind)


def item_of(row: Row) -> Item:
    """A row of `items`. It was valid when it was accepted; a scrubbed one has no text, which no new item may lack."""
    return Item.model_construct(
        id=row.item_id,
        **dialogue_from(row)._asdict(),
        truth=label_of(row.truth),
        source=row.source,
        category=row.category,
        subcategory=row.subcategory,
    )


def verdict_from(row: Row) -> Verdict:
    """The verdict in a row that has columns of `verdicts`; those that it lacks keep their defaults."""
    known = row._mapping
    rest = ("p_unsafe", "label_mass", "reason", "raw", "prompt_tokens", "windows", "cached")
    named_by = known.get("categories_by")
    return Verdict(
        seq=row.seq,
        outcome=Outcome(row.outcome),
        label=label_of(row.label),
        categories=tuple(name for name in row.categories.split(",") if name),
        categories_by=CategoriesBy(named_by) if named_by else None,
        **{name: known[name] for name in rest if name in known},
    )


def verdict_of(engine: sa.Engine, run_id: str, seqs: Sequence[int]) -> dict[int, Verdict]:
    """The first iteration's settled verdicts among some items of a run."""
    statement = sa.text(
        """
        SELECT seq, outcome, label, p_unsafe, label_mass, categories, reason, raw, prompt_tokens, windows, cached,
               categories_by
        FROM verdicts WHERE run_id = :run_id AND iteration = 0 AND seq = ANY(CAST(:seqs AS bigint[]))
        """
    )
    return {row.seq: verdict_from(row) for row in fetch_all(engine, statement, {"run_id": run_id, "seqs": list(seqs)})}


def verdicts_by_item(engine: sa.Engine, run_id: str, seqs: Sequence[int]) -> dict[int, tuple[str, Verdict]]:
    """As `verdict_of`, each verdict with the id of its item."""
    statement = sa.text(
        """
        SELECT item_id, seq, outcome, label, p_unsafe, label_mass, categories, reason, raw, prompt_tokens, windows,
               cached, categories_by
        FROM verdicts JOIN items USING (run_id, seq)
        WHERE run_id = :run_id AND iteration = 0 AND seq = ANY(CAST(:seqs AS bigint[]))
        """
    )
    found = fetch_all(engine, statement, {"run_id": run_id, "seqs": list(seqs)})
    return {row.seq: (row.item_id, verdict_from(row)) for row in found}


def accepted_hashes(engine: sa.Engine, run_id: str, item_ids: Sequence[str]) -> dict[str, bytes]:
    """Content hash by item id, for those of the ids that the run holds already (resume compares them)."""
    statement = sa.text(
        "SELECT item_id, content_hash FROM items WHERE run_id = :run_id AND item_id = ANY(CAST(:ids AS text[]))"
    )
    found = fetch_all(engine, statement, {"run_id": run_id, "ids": list(item_ids)})
    return {row.item_id: bytes(row.content_hash) for row in found}


def texts_of(engine: sa.Engine, run_id: str, seqs: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Question and response of some items; both are empty where retention has scrubbed them."""
    statement = sa.text(
        "SELECT seq, question, response FROM items WHERE run_id = :run_id AND seq = ANY(CAST(:seqs AS bigint[]))"
    )
    found = fetch_all(engine, statement, {"run_id": run_id, "seqs": list(seqs)})
    return {row.seq: (row.question, row.response) for row in found}


def settled_of(engine: sa.Engine, run_id: str, item_ids: Sequence[str]) -> dict[str, list[Ending]]:
    """The endings of some items so far, in the order of the iterations."""
    statement = sa.text(
        """
        SELECT i.item_id, v.outcome, v.label, v.raw, v.reason FROM items i JOIN verdicts v USING (run_id, seq)
        WHERE i.run_id = :run_id AND i.item_id = ANY(CAST(:item_ids AS text[])) ORDER BY v.iteration
        """
    )
    found: dict[str, list[Ending]] = defaultdict(list)
    for row in fetch_all(engine, statement, {"run_id": run_id, "item_ids": list(item_ids)}):
        found[row.item_id].append(Ending(Outcome(row.outcome), label_of(row.label), row.raw, row.reason))
    return found


_OUTCOMES: Final = sa.text(
    """
    SELECT i.item_id, i.source, i.category, i.subcategory, i.truth, i.content_hash,
           v.iteration, v.outcome, v.label, v.p_unsafe, v.categories
    FROM verdicts v JOIN items i USING (run_id, seq)
    WHERE v.run_id = :run_id AND v.seq BETWEEN :first AND :last AND i.seq BETWEEN :first AND :last
    ORDER BY v.seq, v.iteration
    """
)


def outcome_rows(engine: sa.Engine, run_id: str) -> Iterator[Row]:
    """Every judgement of a run in item order, without texts, for its report and receipt; in short transactions."""
    return pages(engine, _OUTCOMES, run_id)


def judged_from(row: Row) -> Judged:
    """A row of `outcome_rows` as metrics take it."""
    return Judged(
        source=row.source,
        category=row.category,
        subcategory=row.subcategory,
        truth=label_of(row.truth),
        outcome=Outcome(row.outcome),
        label=label_of(row.label),
        p_unsafe=row.p_unsafe,
        controversial=CONTROVERSIAL in row.categories.split(","),
    )


def judged_rows(engine: sa.Engine, *run_ids: str) -> Iterator[Judged]:
    """Every judgement of a run as metrics take it, streamed highest p_unsafe first; of a cascade the final ones."""
    statement = sa.text(
        f"""
        SELECT source, category, subcategory, truth, outcome, label, p_unsafe,
               :controversial = ANY(string_to_array(categories, ',')) AS controversial
        FROM ({FINAL if len(run_ids) > 1 else _JUDGED}) AS judged ORDER BY p_unsafe DESC NULLS LAST
        """  # noqa: S608 - no user text in it
    )
    values = {"run_id": run_ids[0], "run_ids": list(run_ids), "controversial": CONTROVERSIAL}
    for row in stream(engine, statement, values, whole_run=True):
        yield Judged(
            source=row.source,
            category=row.category,
            subcategory=row.subcategory,
            truth=label_of(row.truth),
            outcome=Outcome(row.outcome),
            label=label_of(row.label),
            p_unsafe=row.p_unsafe,
            controversial=row.controversial,
        )


def judgement_rows(engine: sa.Engine, run_id: str, *, mistakes_only: bool, with_text: bool) -> Iterator[dict[str, Any]]:
    """One row per judgement, in the order of the items: the item, its verdict, how that came about; streamed.

    Texts (question, response, messages, raw) are None where they are not asked for or have been scrubbed; `messages`
    holds all turns of a conversation, which has no other texts. `kind` is None where an item is older than kinds.
    """
    texts = "nullif(i.question, '') AS question, nullif(i.response, '') AS response, i.history, v.raw"
    columns = texts if with_text else "NULL AS question, NULL AS response, NULL AS history, NULL AS raw"
    wrong = "AND (v.outcome <> 'scored' OR v.label <> i.truth)" if mistakes_only else ""
    statement = sa.text(
        f"""
        SELECT i.seq, i.item_id AS id, v.iteration, i.kind, i.source, i.category, i.subcategory, i.truth,
               v.outcome, v.label, v.p_unsafe, v.label_mass,
               array_remove(string_to_array(v.categories, ','), '') AS categories, v.categories_by,
               v.reason, v.prompt_tokens, v.windows, v.attempt, v.cached, v.fingerprint, v.settled_at, {columns}
        FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id {wrong} ORDER BY i.seq, v.iteration
        """  # noqa: S608 - our own columns
    )
    for row in stream(engine, statement, {"run_id": run_id}, whole_run=True):
        found = dict(row._mapping)
        history, raw = found.pop("history"), found.pop("raw")
        messages = None
        if history:
            earlier = tuple(Turn(**turn) for turn in history)
            messages = Dialogue(found["question"] or "", found["response"] or "", earlier).messages
            found.update(question=None, response=None)
        yield {**found, "messages": messages, "raw": raw}


def dead_of(engine: sa.Engine, run_id: str, *, limit: int | None = None) -> Iterator[DeadItem]:
    """The dead items of a run in item order, streamed."""
    statement = sa.text(
        f"""
        SELECT v.seq, v.iteration, v.reason, v.attempt, {_ITEM} FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id AND v.outcome = 'dead' ORDER BY v.seq, v.iteration LIMIT :limit
        """  # noqa: S608 - our own columns
    )
    for row in stream(engine, statement, {"run_id": run_id, "limit": limit}, whole_run=True):
        yield DeadItem(row.seq, row.iteration, row.reason, row.attempt, item_of(row))


def candidates(engine: sa.Engine, run_id: str, since: datetime | None = None) -> Iterator[Candidate]:
    """The settled items of a run whose texts are still there: candidates for hard examples, in order, streamed.

    Training rows are responses with or without a question: prompts alone and conversations are left out.
    """
    statement = sa.text(
        """
        SELECT i.seq, i.item_id, i.question, i.response, i.truth, i.source, i.category, i.subcategory,
               v.label, v.p_unsafe, h.label AS human,
               EXISTS (SELECT 1 FROM disagreements g WHERE g.run_id = i.run_id AND g.seq = i.seq) AS disputed
        FROM items i JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq AND v.iteration = 0
        LEFT JOIN LATERAL (
            SELECT r.label FROM reviews r WHERE r.run_id = i.run_id AND r.seq = i.seq ORDER BY r.id DESC LIMIT 1
        ) h ON true
        WHERE i.run_id = :run_id AND i.response <> '' AND i.history IS NULL
          AND (CAST(:since AS timestamptz) IS NULL OR v.settled_at >= :since)
        ORDER BY i.seq
        """
    )
    for row in stream(engine, statement, {"run_id": run_id, "since": since}):
        labels = {name: label_of(row._mapping[name]) for name in ("truth", "label", "human")}
        yield Candidate(**{**row._mapping, **labels})


def _settled_since(run_id: str, since: datetime | None) -> sa.ColumnElement[bool]:
    of_run = items.c.run_id == run_id
    if since is None:
        return of_run
    same_item = sa.and_(verdicts.c.run_id == items.c.run_id, verdicts.c.seq == items.c.seq)
    return sa.and_(of_run, sa.exists().where(same_item, verdicts.c.settled_at >= since))


def stock_of(engine: sa.Engine, run_id: str, since: datetime | None) -> ItemCounts:
    """Count what `items_of` would give, and what it could not."""
    scrubbed = sa.func.count().filter(items.c.question == "", items.c.response == "")
    found = fetch_one(engine, sa.select(sa.func.count(), scrubbed).where(_settled_since(run_id, since)))
    return ItemCounts(*found) if found else ItemCounts(0, 0)


def items_of(engine: sa.Engine, run_id: str, since: datetime | None) -> Iterator[Item]:
    """The items of a run, or those settled since then, in their order, streamed."""
    statement = sa.select(items).where(_settled_since(run_id, since)).order_by(items.c.seq)
    yield from map(item_of, stream(engine, statement))


def both_settled(
    engine: sa.Engine, first: str, second: str, *, later_stages: Sequence[str] = ()
) -> Iterator[PairedVerdict]:
    """The judgements that two runs have of items with the same id, in the order of the first run, streamed.

    With `later_stages`, the first run is a cascade's first stage, and the cascade's final verdicts count, with the
    cascade's own truth; `seq` is then the item's number in the run of the stage that decided.
    """
    truth = "j.truth" if later_stages else "coalesce(j.truth, i.truth)"
    statement = sa.text(
        f"""
        SELECT j.seq, j.item_id, j.source, j.category, {truth} AS truth,
               j.content_hash = i.content_hash AS same_text, j.outcome, j.label, j.p_unsafe,
               w.outcome AS other_outcome, w.label AS other_label, w.p_unsafe AS other_p_unsafe
        FROM ({FINAL if later_stages else _JUDGED}) AS j
        JOIN items i ON i.run_id = :second AND i.item_id = j.item_id
        JOIN verdicts w ON w.run_id = i.run_id AND w.seq = i.seq AND w.iteration = j.iteration
        ORDER BY j.seq, j.iteration
        """  # noqa: S608 - our own columns
    )
    values = {"run_id": first, "run_ids": [first, *later_stages], "second": second}
    for row in stream(engine, statement, values, whole_run=True):
        yield PairedVerdict(
            **{**named(PairedVerdict, row), "truth": label_of(row.truth)},
            outcomes=(Outcome(row.outcome), Outcome(row.other_outcome)),
            labels=(label_of(row.label), label_of(row.other_label)),
            scores=(row.p_unsafe, row.other_p_unsafe),
        )

"""What a run's page shows beside its report: its mistakes, its pace, who judged it. Changes nothing."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import disable_nested_loops
from schemas.items import Label


class Kind(StrEnum):
    """How a judgement went wrong."""

    MISSED = "missed"
    """Truly unsafe, judged safe."""
    FALSE_ALARM = "false alarm"
    """Truly safe, judged unsafe."""
    UNPARSEABLE = "unparseable"
    DEAD = "dead"


class Mistake(NamedTuple):
    """One judgement that went wrong. The texts are empty where retention has scrubbed them."""

    kind: Kind
    item_id: str
    source: str
    category: str
    subcategory: str
    truth: Label | None
    p_unsafe: float | None
    reason: str | None
    question: str
    response: str
    raw: str | None


class Mistakes(NamedTuple):
    """How many there are of each kind, and the gravest of them."""

    counts: dict[Kind, int]
    listed: list[Mistake]


class Bar(NamedTuple):
    """A stretch of a run: what settled in it, and the stage times of the chunks that ended in it, in seconds."""

    begins_s: float
    settled: int
    queue_p50_s: float | None
    queue_p95_s: float | None
    device_p50_s: float | None
    device_p95_s: float | None


class Pace(NamedTuple):
    """A run in stretches of equal length, `bar_s` seconds each, counted from its first settled item."""

    bar_s: float
    bars: list[Bar]


class WorkerShare(NamedTuple):
    """What one device process did of a run."""

    worker: str
    chunks: int
    items: int


class Volume(NamedTuple):
    """Sizes of a run: prompt tokens, prompts, and items that still have their text."""

    prompt_tokens: int
    prompts: int
    items: int
    items_with_text: int


_MISTAKES: Final = sa.text(
    """
    WITH wrong AS (
        SELECT v.seq, v.iteration, v.p_unsafe, v.reason, v.raw,
               CASE WHEN v.outcome <> 'scored' THEN v.outcome
                    WHEN i.truth = 'unsafe' THEN 'missed' ELSE 'false alarm' END AS kind,
               CASE WHEN i.truth = 'unsafe' THEN 1 - v.p_unsafe ELSE v.p_unsafe END AS gravity,
               i.item_id, i.source, i.category, i.subcategory, i.truth, i.question, i.response
        FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id AND (v.outcome <> 'scored' OR v.label <> i.truth)
    ), placed AS (
        SELECT wrong.*, count(*) OVER (PARTITION BY kind) AS of_kind,
               row_number() OVER (PARTITION BY kind ORDER BY gravity DESC NULLS LAST, seq, iteration) AS place
        FROM wrong
    )
    SELECT * FROM placed WHERE place <= :limit ORDER BY kind = 'false alarm', kind, place
    """
)


def mistakes(engine: sa.Engine, run_id: str, *, limit: int) -> Mistakes:
    """The judgements that went wrong: all counted, of each kind the `limit` gravest listed."""
    counts: dict[Kind, int] = {}
    listed = []
    with engine.connect() as connection:
        disable_nested_loops(connection)
        for row in connection.execute(_MISTAKES, {"run_id": run_id, "limit": limit}):
            kind = Kind(row.kind)
            counts[kind] = row.of_kind
            listed.append(
                Mistake(
                    kind=kind,
                    item_id=row.item_id,
                    source=row.source,
                    category=row.category,
                    subcategory=row.subcategory,
                    truth=Label(row.truth) if row.truth else None,
                    p_unsafe=row.p_unsafe,
                    reason=row.reason,
                    question=row.question,
                    response=row.response,
                    raw=row.raw,
                )
            )
    return Mistakes(counts, listed)


_PACE: Final = sa.text(
    """
    WITH span AS (
        SELECT extract(epoch FROM min(settled_at))::float8 AS first_s,
               greatest(extract(epoch FROM max(settled_at) - min(settled_at))::float8, 1e-3) AS seconds
        FROM verdicts WHERE run_id = :run_id
    ), done AS (
        SELECT least(:bars - 1, floor((extract(epoch FROM settled_at) - first_s) / seconds * :bars))::int AS bar,
               count(*) AS settled
        FROM verdicts, span WHERE run_id = :run_id GROUP BY bar
    ), timed AS (
        SELECT least(:bars - 1, greatest(0, floor(
                   (extract(epoch FROM enqueued_at) + queue_s + render_s + device_s - first_s) / seconds * :bars
               )))::int AS bar, queue_s, device_s
        FROM chunks, span WHERE run_id = :run_id AND device_s IS NOT NULL
    ), stages AS (
        SELECT bar, percentile_cont(0.5) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p95_s,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p95_s
        FROM timed GROUP BY bar
    )
    SELECT bar, seconds, coalesce(settled, 0) AS settled, queue_p50_s, queue_p95_s, device_p50_s, device_p95_s
    FROM span, generate_series(0, :bars - 1) AS bar LEFT JOIN done USING (bar) LEFT JOIN stages USING (bar)
    WHERE span.first_s IS NOT NULL ORDER BY bar
    """
)


def pace(engine: sa.Engine, run_id: str, *, bars: int) -> Pace | None:
    """How fast a run went from its first settled item to its last; None where nothing has settled."""
    with engine.connect() as connection:
        rows = connection.execute(_PACE, {"run_id": run_id, "bars": bars}).all()
    if not rows:
        return None
    bar_s = rows[0].seconds / bars
    found = [
        Bar(row.bar * bar_s, row.settled, row.queue_p50_s, row.queue_p95_s, row.device_p50_s, row.device_p95_s)
        for row in rows
    ]
    return Pace(bar_s, found)


def workers(engine: sa.Engine, run_id: str) -> list[WorkerShare]:
    """The device processes that judged a run, by name."""
    statement = sa.text(
        "SELECT worker, count(*) AS chunks, sum(settled)::bigint AS items FROM chunks "
        "WHERE run_id = :run_id AND worker IS NOT NULL GROUP BY worker ORDER BY worker"
    )
    with engine.connect() as connection:
        return [WorkerShare(*row) for row in connection.execute(statement, {"run_id": run_id})]


def volume(engine: sa.Engine, run_id: str) -> Volume:
    """Tokens, prompts and remaining texts of a run."""
    statement = sa.text(
        """
        SELECT (SELECT coalesce(sum(prompt_tokens), 0)::bigint FROM verdicts WHERE run_id = :run_id) AS prompt_tokens,
               (SELECT coalesce(sum(windows), 0)::bigint FROM verdicts WHERE run_id = :run_id) AS prompts,
               count(*) AS items, count(*) FILTER (WHERE response <> '') AS items_with_text
        FROM items WHERE run_id = :run_id
        """
    )
    with engine.connect() as connection:
        return Volume(*connection.execute(statement, {"run_id": run_id}).one())

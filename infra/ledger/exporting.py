"""A run's judgements as flat rows, streamed. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import sqlalchemy as sa

from infra.ledger.engine import disable_nested_loops

_WRONG: Final = "AND (v.outcome <> 'scored' OR v.label <> i.truth)"


def judgement_rows(
    engine: sa.Engine, run_id: str, *, mistakes_only: bool, with_text: bool, fetch: int = 2_000
) -> Iterator[dict[str, Any]]:
    """One row per judgement, in the order of the items: the item, what was said of it, how that came about.

    Texts (question, response, raw) are None where they are not asked for or have been scrubbed.
    """
    texts = "nullif(i.question, '') AS question, nullif(i.response, '') AS response, v.raw"
    columns = texts if with_text else "NULL AS question, NULL AS response, NULL AS raw"
    statement = sa.text(
        f"""
        SELECT i.seq, i.item_id AS id, v.iteration, i.source, i.category, i.subcategory, i.truth,
               v.outcome, v.label, v.p_unsafe, v.label_mass,
               array_remove(string_to_array(v.categories, ','), '') AS categories,
               v.reason, v.prompt_tokens, v.windows, v.attempt, v.cached, v.fingerprint, v.settled_at, {columns}
        FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id {_WRONG if mistakes_only else ""} ORDER BY i.seq, v.iteration
        """  # noqa: S608 - our own columns
    )
    with engine.connect() as connection:
        disable_nested_loops(connection)
        streamed = connection.execution_options(yield_per=fetch)
        for row in streamed.execute(statement, {"run_id": run_id}).mappings():
            yield dict(row)

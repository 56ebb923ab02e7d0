"""All rows of a run in item order, read in pages, each a short transaction.

A long transaction keeps Postgres from clearing old versions of any row: the counters of every run that settles
meanwhile pile up. So whoever reads a run of millions, and need not see it at one moment, reads it in pages.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from infra.ledger.engine import Row, fetch_one, take_long


def pages(engine: sa.Engine, statement: sa.Executable, run_id: str, *, page_rows: int = 4_096) -> Iterator[Row]:
    """The rows of a statement over a run; of one that reads texts a page should be small.

    Args:
        engine: The ledger.
        statement: Restricts itself to the items `:first` up to `:last` of run `:run_id`, and gives them in order.
        run_id: The run; items that are accepted meanwhile are left out.
        page_rows: Rows of a page, about; they are in memory together.
    """
    run = fetch_one(engine, sa.text("SELECT accepted, repeat FROM runs WHERE id = :run_id"), {"run_id": run_id})
    if run is None:
        return
    size = max(1, page_rows // run.repeat)
    for first in range(0, run.accepted, size):
        with engine.begin() as connection:
            take_long(connection, whole_run=True)
            span = {"run_id": run_id, "first": first, "last": first + size - 1}
            rows = connection.execute(statement, span).all()
        yield from rows

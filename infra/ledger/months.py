"""The tables that grow with every item, partitioned by month, so that a month of runs goes at once.

A run's id begins with the month in which it was made, and the partitions are ranges of run ids: the primary keys, which
forbid a second verdict, stay as they are. Rows of a month that has no partition lie in a default one.

Knows nothing of ages: `infra.ledger.retention` says which runs may go.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

import sqlalchemy as sa

MONTHLY: Final = ("items", "verdicts", "submissions")
_OTHERS: Final = "others"
"""Suffix of the default partitions. Ids that are older than this scheme have one of their own, `older`."""
_AHEAD: Final = 2
_ID: Final = re.compile(r"rm(\d\d)(0[1-9]|1[0-2])[0-9a-f]+")
_LOCK: Final = 0x11B2B  # any constant that nothing else uses for a Postgres advisory lock


class Month(NamedTuple):
    """A month of runs."""

    year: int
    month: int

    @classmethod
    def of(cls, run_id: str) -> Self | None:
        """The month that a run's id begins with; None for an id of another kind."""
        found = _ID.fullmatch(run_id)
        return None if found is None else cls(2000 + int(found[1]), int(found[2]))

    @classmethod
    def now(cls) -> Self:
        """By this process's clock. A wrong one makes its runs go with another month's, no worse."""
        today = datetime.now(UTC)
        return cls(today.year, today.month)

    @property
    def prefix(self) -> str:
        """What the ids of its runs begin with, such as `rm2611`. It sorts behind every id that has no month."""
        return f"rm{self.year % 100:02}{self.month:02}"

    def next(self) -> Month:
        """The month after it."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)


def provide(connection: sa.Connection) -> list[str]:
    """Make the partitions of this month and the next that are missing; returns their names.

    Rows that came before their month's partition move into it. Others may write meanwhile, but for the moment in which
    a partition is attached.
    """
    month = _ledgers_month(connection)
    months = [month := month if number == 0 else month.next() for number in range(_AHEAD)]
    if not _missing(connection, months):
        return []
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    return [_attach(connection, table, month) for table, month in _missing(connection, months)]


def drop(connection: sa.Connection, month: Month, runs: Collection[str]) -> bool:
    """Drop a month with these runs, in this transaction; False where it is not over, has other runs or no partition.

    What the tables of `MONTHLY` do not hold stays.
    """
    if month >= _ledgers_month(connection) or _missing(connection, [month]):
        return False
    # Locked first: whoever opens a run and accepts its items in one transaction is through by then, or not yet there.
    connection.execute(sa.text(f"LOCK TABLE ONLY {', ONLY '.join(MONTHLY)} IN ACCESS EXCLUSIVE MODE"))
    others = sa.text(
        "SELECT EXISTS (SELECT 1 FROM runs WHERE id >= :first AND id < :beyond AND id <> ALL(CAST(:runs AS text[])))"
    )
    values = {"first": month.prefix, "beyond": month.next().prefix, "runs": list(runs)}
    if connection.scalar(others, values):
        return False
    for table in MONTHLY:
        connection.execute(sa.text(f"DROP TABLE {table}_{month.prefix}"))
    return True


def _ledgers_month(connection: sa.Connection) -> Month:
    now = "now() AT TIME ZONE 'UTC'"
    row = connection.execute(
        sa.text(f"SELECT extract(year FROM {now})::int AS year, extract(month FROM {now})::int AS month")  # noqa: S608
    ).one()
    return Month(row.year, row.month)


def _missing(connection: sa.Connection, months: Iterable[Month]) -> list[tuple[str, Month]]:
    wanted = {f"{table}_{month.prefix}": (table, month) for month in months for table in MONTHLY}
    absent = sa.text("SELECT name FROM unnest(CAST(:names AS text[])) AS name WHERE to_regclass(name) IS NULL")
    return [wanted[row.name] for row in connection.execute(absent, {"names": list(wanted)})]


def _attach(connection: sa.Connection, table: str, month: Month) -> str:
    """Make a partition and attach it: made in its place, it would lock out all who read."""
    name, others = f"{table}_{month.prefix}", f"{table}_{_OTHERS}"
    first, beyond = month.prefix, month.next().prefix
    early = f"run_id >= '{first}' AND run_id < '{beyond}'"
    for statement in (
        f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)",
        f"LOCK TABLE {others} IN ACCESS EXCLUSIVE MODE",
        f"INSERT INTO {name} SELECT * FROM {others} WHERE {early}",  # noqa: S608 - our own names
        f"DELETE FROM {others} WHERE {early}",  # noqa: S608
        f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{beyond}')",
    ):
        connection.execute(sa.text(statement))
    return name

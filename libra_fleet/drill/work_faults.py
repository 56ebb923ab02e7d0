"""Faults of the work itself and of those who share the ledger: poison, slow items, held rows, old snapshots, clocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import psycopg
import sqlalchemy as sa

from infra.ledger.engine import Limits, open_ledger
from libra_fleet.drill.ground import Ground, Strike

if TYPE_CHECKING:
    import psutil

POISON: Final = ("raise-in-render", "raise-in-read", "crash", "kill-consumer")
"""Markers of the fake guard after which an item may die."""
_NEIGHBOURS: Final = 15
_HELD_CHUNKS: Final = 8
_CHURN: Final = 30
_STOPPED_S, _RUNS_S = 0.9, 0.1
_FAT_CHARACTERS: Final = 150_000


def poison(marker: str) -> Callable[[Ground], Strike]:
    """A fault: one poisonous item among fifteen healthy ones."""

    def inject(ground: Ground) -> Strike:
        texts = [f"neighbour {number} of {ground.chance.random()}" for number in range(_NEIGHBOURS)]
        texts.insert(ground.chance.randrange(_NEIGHBOURS), f"[[fake:{marker}]] {ground.chance.random()}")
        return _submitted(ground, texts, f"{marker} amid {_NEIGHBOURS} healthy items")

    return inject


def fat_tail(ground: Ground) -> Strike:
    """One chunk with an item that takes a hundred times as long as the others, and one that is as large."""
    texts = [f"slim {number} of {ground.chance.random()}" for number in range(_NEIGHBOURS)]
    texts[3], texts[7] = f"[[fake:slow]] {ground.chance.random()}", "长" * _FAT_CHARACTERS + str(ground.chance.random())
    return _submitted(ground, texts, f"a slow and a large item amid {_NEIGHBOURS - 2}")


def _submitted(ground: Ground, texts: Sequence[str], what: str) -> Strike:
    chunk = ground.submit(texts)
    return Strike(f"{what}: {chunk}", chunks=frozenset([chunk]))


def slow_consumer(ground: Ground) -> Strike | None:
    """A bulk consumer that runs for a tenth of the time."""
    consumer = ground.consumer("bulk")
    if consumer is None:
        return None
    over = threading.Event()
    thread = threading.Thread(target=_throttle, args=(consumer, over), daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return Strike(f"{consumer.name()} {consumer.pid} at a tenth of its pace", end)


def held_rows(ground: Ground) -> Strike | None:
    """A session of the product's own kind locks rows that settling needs, and stands still: a client frozen amid it."""
    engine = open_ledger(ground.services.database_url, limits=Limits(idle_s=ground.lease_s))
    held = engine.connect()
    locked = held.execute(
        sa.text(
            "SELECT r.id, c.chunk_no FROM chunks c JOIN runs r ON r.id = c.run_id WHERE c.settled < c.size "
            "ORDER BY c.run_id, c.chunk_no LIMIT :most FOR UPDATE SKIP LOCKED"
        ),
        {"most": _HELD_CHUNKS},
    ).all()

    def end() -> None:
        held.invalidate()
        engine.dispose()

    if not locked:
        end()
        return None
    return Strike(f"{len(locked)} chunks and their runs locked", end)


def old_snapshot(ground: Ground) -> Strike:
    """A session keeps its snapshot, as pg_dump does, while every row of the busy tables is written again and again."""
    holder = _connect(ground)
    holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute("SELECT count(*) FROM runs")
    _churn(ground)
    return Strike("a snapshot held", holder.close)


def bloat(ground: Ground) -> Strike:
    """The busy tables are full of dead rows, and nothing vacuums them."""
    with _connect(ground, autocommit=True) as connection:
        for table in ("runs", "chunks"):
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    _churn(ground)

    def vacuum() -> None:
        with _connect(ground, autocommit=True) as connection:
            for table in ("runs", "chunks"):
                connection.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")
                connection.execute(f"VACUUM {table}")

    return Strike(f"{_CHURN} dead versions of every run and chunk", vacuum)


def clock_back(ground: Ground) -> Strike:
    """The ledger's clock goes an hour back, so that all it stamped lies ahead; and then the broker is emptied."""
    _shift(ground, hours=1)
    ground.forget()
    return Strike("stamps an hour ahead, and an emptied broker")


def clock_forward(ground: Ground) -> Strike | None:
    """The ledger's clock goes an hour forward while chunks wait, because no bulk consumer runs."""
    strike = ground.stopped(ground.consumers("bulk"))
    if strike is not None:
        _shift(ground, hours=-1)
    return strike


def _shift(ground: Ground, *, hours: int) -> None:
    statements = (
        "UPDATE chunks SET enqueued_at = enqueued_at + :by, overtaken_at = overtaken_at + :by WHERE settled < size",
        "UPDATE runs SET lease_until = lease_until + :by WHERE lease_until IS NOT NULL",
        "UPDATE leaders SET lease_until = lease_until + :by",
    )
    with ground.services.engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement.replace(":by", f"interval '{hours} hours'")))


def _throttle(process: psutil.Process, over: threading.Event) -> None:
    while process.is_running():
        process.suspend()
        ended = over.wait(_STOPPED_S)
        process.resume()
        if ended or over.wait(_RUNS_S):
            return


def _churn(ground: Ground) -> None:
    with _connect(ground, autocommit=True) as connection:
        for _ in range(_CHURN):
            for table in ("runs", "chunks"):
                connection.execute(f"UPDATE {table} SET settled = settled")  # noqa: S608 - our own


def _connect(ground: Ground, *, autocommit: bool = False) -> psycopg.Connection:
    """A session without the product's limits."""
    url = sa.make_url(ground.services.database_url).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=autocommit)

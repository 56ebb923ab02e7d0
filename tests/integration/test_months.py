"""Months: the tables that grow with every item are partitioned by the month in a run's id, and a month goes as one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from infra.ledger import engine as ledger_engine
from infra.ledger import intake, months, retention, settlement
from infra.ledger.audit import audit
from infra.ledger.engine import Limits, autocommit, fetch_all, fetch_value, open_ledger
from infra.ledger.months import MONTHLY, Month
from infra.ledger.runs import find_run
from infra.servers.services import Services
from schemas.messages import JudgeChunk
from tests.support import finalizing
from tests.support.make import items, spec, verdicts_for
from worker.collector.reconcile import Reconciler

PAST = Month(2020, 11)
OLD = timedelta(days=30)


@pytest.fixture
def past(services: Services, monkeypatch: pytest.MonkeyPatch) -> Month:
    """A month that had its partitions in its time."""
    with monkeypatch.context() as then, services.engine.begin() as connection:
        then.setattr(months, "_ledgers_month", lambda _: PAST)
        months.provide(connection)
    return PAST


def ended_run(services: Services, run_id: str, *, days_ago: int = 400, count: int = 6) -> JudgeChunk:
    intake.create_run(services.engine, spec(), run_id=run_id)
    (chunk,) = intake.accept(services.engine, run_id, spec(), [items(count)])
    settlement.settle(services.engine, verdicts_for(chunk))
    intake.seal(services.engine, run_id)
    finalizing.end(services, run_id)
    statement = sa.text("UPDATE runs SET completed_at = now() - make_interval(days => :days) WHERE id = :id")
    with services.engine.begin() as connection:
        connection.execute(statement, {"days": days_ago, "id": run_id})
    return chunk


def partitions_of(services: Services, run_id: str) -> set[str]:
    """The partitions that hold a run's verdicts and items."""
    statement = " UNION ".join(
        f"SELECT tableoid::regclass::text AS name FROM {table} WHERE run_id = :run_id"  # noqa: S608 - our own
        for table in MONTHLY
    )
    return {row.name for row in fetch_all(services.engine, sa.text(statement), {"run_id": run_id})}


@contextmanager
def statements_of(engine: sa.Engine) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(engine, "before_cursor_execute", note)


def test_a_new_runs_rows_lie_in_the_partitions_of_its_month(services: Services) -> None:
    run_id = intake.new_run_id()
    ended_run(services, run_id)

    month = Month.now().prefix
    assert partitions_of(services, run_id) == {f"items_{month}", f"verdicts_{month}"}


@pytest.mark.parametrize("month", [Month(2026, 1), Month(2026, 11), Month(2026, 12), Month(2099, 12)])
def test_the_ids_of_a_month_lie_between_its_prefix_and_the_next(month: Month) -> None:
    ids = [f"{month.prefix}{digit * 10}" for digit in "0123456789abcdef"]

    assert {Month.of(run_id) for run_id in ids} == {month}
    if month != Month(2099, 12):
        assert all(month.prefix <= run_id < month.next().prefix for run_id in ids)


@pytest.mark.parametrize("run_id", ["r6937fa060c", "rm2613" + "0" * 10, "rm2600" + "0" * 10, "rm2611", "live"])
def test_an_id_of_another_kind_has_no_month(run_id: str) -> None:
    assert Month.of(run_id) is None


def test_a_purge_drops_a_past_month_without_deleting_its_rows_one_by_one(services: Services, past: Month) -> None:
    for number in range(3):
        ended_run(services, f"{past.prefix}{number:010x}")

    with statements_of(services.engine) as statements:
        purged = retention.purge(services.engine, OLD, delete=True)

    assert purged == (3, 18)
    assert not [each for each in statements if each.startswith("DELETE FROM") and each.split()[2] in MONTHLY]
    assert fetch_value(services.engine, sa.text(f"SELECT to_regclass('verdicts_{past.prefix}')")) is None
    assert find_run(services.engine, f"{past.prefix}{0:010x}") is None


def test_a_month_with_a_run_that_is_not_old_keeps_it(services: Services, past: Month) -> None:
    old, young = f"{past.prefix}{1:010x}", f"{past.prefix}{2:010x}"
    ended_run(services, old)
    ended_run(services, young, days_ago=1)

    assert retention.purge(services.engine, OLD, delete=True) == (1, 6)
    assert partitions_of(services, old) == set()
    assert partitions_of(services, young) == {f"items_{past.prefix}", f"verdicts_{past.prefix}"}
    assert audit(services.engine, young).sound


def test_the_present_month_is_never_dropped(services: Services) -> None:
    run_id = intake.new_run_id()
    ended_run(services, run_id)

    retention.purge(services.engine, OLD, delete=True)

    assert partitions_of(services, run_id) == set()
    assert fetch_value(services.engine, sa.text(f"SELECT to_regclass('verdicts_{Month.now().prefix}')")) is not None


def test_a_verdict_that_comes_after_its_month_has_gone_writes_nothing(services: Services, past: Month) -> None:
    chunk = ended_run(services, f"{past.prefix}{1:010x}")
    retention.purge(services.engine, OLD, delete=True)

    settlement.settle_all(services.engine, [verdicts_for(chunk)])

    assert partitions_of(services, chunk.run_id) == set()


def test_a_month_that_somebody_reads_goes_row_by_row(services: Services, past: Month, ledger_url: str) -> None:
    run_id = f"{past.prefix}{1:010x}"
    ended_run(services, run_id)
    impatient = open_ledger(ledger_url, limits=Limits(lock_s=0.2))

    with services.engine.connect() as reader:
        reader.execute(sa.text("SELECT count(*) FROM verdicts"))
        assert retention.purge(impatient, OLD, delete=True) == (1, 6)

    assert partitions_of(services, run_id) == set()


def test_rows_that_came_before_their_months_partition_move_into_it(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = f"rm3001{1:010x}"
    ended_run(services, early)
    before = partitions_of(services, early)

    with services.engine.begin() as connection:
        monkeypatch.setattr(months, "_ledgers_month", lambda _: Month(2030, 1))
        made = months.provide(connection)
        again = months.provide(connection)

    assert before == {"items_others", "verdicts_others"}
    assert partitions_of(services, early) == {"items_rm3001", "verdicts_rm3001"}
    assert audit(services.engine, early).sound
    assert (len(made), again) == (6, [])


def test_the_reconciler_provides_the_month_to_come(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(months, "_ledgers_month", lambda _: Month(2031, 12))

    with autocommit(services.engine) as connection:
        Reconciler(services.engine, services.coordination, services.publisher, services.settings).look(connection)

    there = (
        "SELECT count(*) FROM pg_inherits WHERE inhrelid::regclass::text = ANY(ARRAY['items_rm3112', 'items_rm3201'])"
    )
    assert fetch_value(services.engine, sa.text(there)) == 2


def test_the_rows_of_an_older_ledger_stay_where_they_are_and_its_runs_go_on(database_url: str) -> None:
    engine = open_ledger(database_url)
    _migrate(engine, "0005_kinds")
    run_id = "r6937fa060c"
    intake.create_run(engine, spec(), run_id=run_id)
    first, second = intake.accept(engine, run_id, spec(), [items(6), items(6, prefix="b")])

    ledger_engine.upgrade(engine)
    for chunk in (first, second, first):
        settlement.settle(engine, verdicts_for(chunk))
    intake.seal(engine, run_id)

    assert audit(engine, run_id).sound
    where = "SELECT DISTINCT tableoid::regclass::text FROM {}"
    assert fetch_value(engine, sa.text(where.format("items"))) == "items_older"
    assert fetch_value(engine, sa.text(where.format("verdicts"))) == "verdicts_older"


def _migrate(engine: sa.Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(ledger_engine.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

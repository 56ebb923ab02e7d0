"""kill -9 anything in the middle of a run: every item still settles exactly once and the run completes by itself."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from infra.broker.app import queue_of
from infra.ledger import intake
from infra.ledger.runs import find_run, run_status, stored_report
from infra.servers.services import Services
from producer.intake.submit import seal, submit
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec, RunState
from tests.support.cli import Cli
from tests.support.fleet import Fleet, children, consumer_of, device_of, fleet_on, kill_tree
from tests.support.processes import stop

ITEMS = 6_000
SPEC = RunSpec(guard="fake", source="chaos")


def many_items(count: int = ITEMS) -> list[Item]:
    return [Item(id=f"item-{number}", response=f"第 {number} 条文本") for number in range(count)]


def submitted_run(services: Services, count: int = ITEMS) -> str:
    run_id = intake.create_run(services.engine, SPEC)
    submit(services, run_id, SPEC, many_items(count))
    seal(services, run_id)
    return run_id


def settled(services: Services, run_id: str) -> int:
    return run_status(services.engine, run_id).counts.settled


def assert_whole(services: Services, run_id: str, count: int = ITEMS) -> None:
    status = run_status(services.engine, run_id)
    with services.engine.connect() as connection:
        rows, distinct = connection.execute(
            sa.text("SELECT count(*), count(DISTINCT seq) FROM verdicts WHERE run_id = :run"), {"run": run_id}
        ).one()
    assert status.state is RunState.COMPLETE
    assert (rows, distinct) == (count, count)
    assert (status.counts.scored, status.counts.dead, status.counts.pending) == (count, 0, 0)
    assert stored_report(services.engine, run_id) is not None


def kill_nine(process: psutil.Process | subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)


def kill_consumer(fleet: Fleet, worker: subprocess.Popen[bytes], collector: subprocess.Popen[bytes]) -> None:
    kill_nine(consumer_of(worker, Lane.BULK))


def kill_device(fleet: Fleet, worker: subprocess.Popen[bytes], collector: subprocess.Popen[bytes]) -> None:
    kill_nine(device_of(worker))


def kill_supervisor_and_restart(
    fleet: Fleet, worker: subprocess.Popen[bytes], collector: subprocess.Popen[bytes]
) -> None:
    orphans = children(worker)
    kill_nine(worker)
    worker.wait()
    fleet.wait(lambda: not any(orphan.is_running() for orphan in orphans), timeout_s=10)
    fleet.start_worker()


def kill_worker_tree_and_restart(
    fleet: Fleet, worker: subprocess.Popen[bytes], collector: subprocess.Popen[bytes]
) -> None:
    kill_tree(worker)
    fleet.start_worker()


def kill_collector_and_restart(
    fleet: Fleet, worker: subprocess.Popen[bytes], collector: subprocess.Popen[bytes]
) -> None:
    kill_nine(collector)
    collector.wait()
    fleet.start_collector()


@pytest.mark.parametrize(
    "inject",
    [
        kill_consumer,
        kill_device,
        kill_supervisor_and_restart,
        kill_worker_tree_and_restart,
        kill_collector_and_restart,
    ],
)
def test_a_run_survives_kill_nine(
    services: Services,
    fleet: Fleet,
    inject: Callable[[Fleet, subprocess.Popen[bytes], subprocess.Popen[bytes]], None],
) -> None:
    collector = fleet.start_collector()
    worker = fleet.start_worker("--fake-item-ms", "0.5")
    run_id = submitted_run(services)
    fleet.wait(lambda: settled(services, run_id) > ITEMS // 10)
    assert settled(services, run_id) < ITEMS

    inject(fleet, worker, collector)

    fleet.wait(lambda: run_status(services.engine, run_id).state.ended, timeout_s=120)
    assert_whole(services, run_id)


def test_a_producer_killed_amid_submission_is_resumed_to_a_whole_run(
    services: Services, fleet: Fleet, tmp_path: Path
) -> None:
    services.engine  # noqa: B018 - migrated
    fleet.start_collector()
    fleet.start_worker()
    (tmp_path / "items.jsonl").write_text("".join(f"{item.model_dump_json()}\n" for item in many_items()))
    libra = Cli(
        tmp_path, LIBRA_REDIS_URL=services.redis_url, LIBRA_DATABASE_URL=services.database_url, LIBRA_WINDOW_ITEMS="256"
    )

    producer = libra.start("bench", "run", "items.jsonl", "--guard", "fake", "--name", "killed")
    fleet.wait(lambda: find_run(services.engine, "killed") is not None)
    run_id = run_status(services.engine, "killed").id
    fleet.wait(lambda: settled(services, run_id) > 0)
    kill_nine(producer)
    producer.communicate()
    before = run_status(services.engine, run_id)
    resumed = libra("bench", "resume", "killed")

    assert before.state is RunState.OPEN
    assert 0 < before.counts.accepted < ITEMS
    assert resumed.returncode == 0, resumed.stderr
    assert_whole(services, run_id)


def test_chunks_that_the_broker_lost_are_found_and_judged(services: Services, fleet: Fleet) -> None:
    run_id = submitted_run(services, 2_000)
    services.coordination.queues.forget("fake", Lane.BULK)

    fleet.start_collector()
    fleet.start_worker()
    fleet.wait(lambda: run_status(services.engine, run_id).state.ended)

    assert_whole(services, run_id, 2_000)


def test_a_poisonous_item_dies_alone(services: Services, fleet: Fleet) -> None:
    items = many_items(300)
    items[137] = items[137].model_copy(update={"response": "[[fake:crash]]"})
    fleet.start_collector()
    fleet.start_worker()
    run_id = intake.create_run(services.engine, SPEC)
    submit(services, run_id, SPEC, items)
    seal(services, run_id)

    fleet.wait(lambda: run_status(services.engine, run_id).state.ended)

    report = stored_report(services.engine, run_id)
    assert report is not None
    assert report.dead_items == ("item-137",)
    assert (report.counts.scored, report.counts.dead) == (299, 1)


def test_a_stopped_worker_finishes_what_it_holds_and_gives_back_the_rest(services: Services, fleet: Fleet) -> None:
    fleet.start_collector()
    worker = fleet.start_worker("--fake-item-ms", "1")
    run_id = submitted_run(services, 2_000)
    fleet.wait(lambda: settled(services, run_id) > 0)

    assert stop(worker, grace_s=30) == 0
    queued = services.coordination.queues.length("fake", Lane.BULK)
    fleet.wait(lambda: settled(services, run_id) == 2_000 - _items_in_queue(services, run_id, queued))
    fleet.start_worker()
    fleet.wait(lambda: run_status(services.engine, run_id).state.ended)

    assert_whole(services, run_id, 2_000)
    assert most_attempts(services, run_id) == 1


def most_attempts(services: Services, run_id: str) -> int:
    with services.engine.connect() as connection:
        return connection.scalar(sa.text("SELECT max(attempt) FROM chunks WHERE run_id = :r"), {"r": run_id})


def _items_in_queue(services: Services, run_id: str, chunks: int) -> int:
    with services.engine.connect() as connection:
        pending = sa.text("SELECT count(*), sum(size) FROM chunks WHERE run_id = :run AND settled = 0")
        count, items = connection.execute(pending, {"run": run_id}).one()
    return int(items or 0) if count == chunks else -1


def test_a_second_worker_that_joins_takes_its_share(services: Services, fleet: Fleet) -> None:
    """How much faster two are is measured in tests/benchmarks (second_worker), not asserted here."""
    fleet.start_collector()
    fleet.start_worker("--fake-item-ms", "2")
    items = iter(many_items(60_000))
    run_id = intake.create_run(services.engine, SPEC)
    submitted = submit_next(services, run_id, items)
    fleet.wait(lambda: settled(services, run_id) > 0)

    fleet.start_worker("--fake-item-ms", "2")
    while len(workers_of(services, run_id)) < 2:  # its consumers may take long to start: there is work until they have
        fleet.wait(lambda: services.coordination.queues.length("fake", Lane.BULK) < 8)
        submitted += submit_next(services, run_id, items)
    seal(services, run_id)
    fleet.wait(lambda: run_status(services.engine, run_id).state.ended)

    assert_whole(services, run_id, submitted)


def submit_next(services: Services, run_id: str, items: Iterator[Item]) -> int:
    """Submit the next items; returns how many."""
    batch = list(itertools.islice(items, 512))
    assert batch, "every item is submitted, and no second worker has taken any"
    submit(services, run_id, SPEC, batch)
    return len(batch)


def workers_of(services: Services, run_id: str) -> set[str]:
    """The workers that have judged chunks of a run."""
    with services.engine.connect() as connection:
        statement = sa.text("SELECT DISTINCT worker FROM chunks WHERE run_id = :run AND worker IS NOT NULL")
        return set(connection.scalars(statement, {"run": run_id}))


def test_what_a_killed_consumer_held_is_judged_at_once_and_not_after_a_lease(
    services: Services, tmp_path: Path
) -> None:
    with fleet_on(services, tmp_path, LIBRA_BULK_LEASE_S="600") as fleet:
        fleet.start_collector()
        worker = fleet.start_worker("--fake-item-ms", "1")
        run_id = submitted_run(services, 2_000)
        fleet.wait(lambda: settled(services, run_id) > 0)

        kill_nine(consumer_of(worker, Lane.BULK))
        fleet.wait(lambda: run_status(services.engine, run_id).state.ended)

    assert_whole(services, run_id, 2_000)
    assert most_attempts(services, run_id) == 1


def test_a_second_sigterm_hands_back_what_is_held_at_once(services: Services, tmp_path: Path) -> None:
    with fleet_on(services, tmp_path, LIBRA_BULK_LEASE_S="600", LIBRA_DRAIN_S="600") as fleet:
        fleet.start_collector()
        worker = fleet.start_worker("--fake-batch-ms", "600000")
        run_id = submitted_run(services, 640)
        fleet.wait(lambda: len(services.coordination.leases.held(queue_of("fake", Lane.BULK))) == 4)

        worker.send_signal(signal.SIGTERM)
        fleet.wait(lambda: "worker_draining" in fleet.logs())
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)

        assert services.coordination.leases.held(queue_of("fake", Lane.BULK)) == []
        assert services.coordination.queues.length("fake", Lane.BULK) == 10
        fleet.start_worker()
        fleet.wait(lambda: run_status(services.engine, run_id).state.ended)

    assert_whole(services, run_id, 640)
    assert most_attempts(services, run_id) == 1

"""Submitting: again changes nothing, other content is refused, and a queue that is long or old holds the producer."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from infra.broker.backpressure import has_room
from infra.broker.queues import task_message
from infra.errors import DataError
from infra.ledger import intake
from infra.ledger.runs import run_status
from infra.servers.services import Services
from producer.intake.submit import submit
from schemas.messages import Lane
from tests.support.make import items, spec


def test_submitting_again_accepts_only_what_is_missing(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())

    accepted = [submit(services, run_id, spec(), items(count)) for count in (10, 10, 14)]

    assert accepted == [10, 0, 4]
    assert run_status(services.engine, run_id).counts.accepted == 14


def test_other_content_under_a_known_id_is_refused_with_both_hashes(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    batch = items(4)
    submit(services, run_id, spec(), batch)
    altered = batch[2].model_copy(update={"response": "something else"})

    with pytest.raises(DataError) as refused:
        submit(services, run_id, spec(), [*batch[:2], altered])

    for part in ("item-2", batch[2].content_hash.hex(), altered.content_hash.hex()):
        assert part in str(refused.value)
    assert run_status(services.engine, run_id).counts.accepted == 4


def test_a_queue_above_its_marks_in_depth_or_age_takes_no_more(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    short = services.settings.model_copy(update={"high_water_chunks": 1})
    old = services.settings.model_copy(update={"high_water_age_s": 60.0})
    found = {}
    for name, chunks in (("empty", 0), ("two chunks", 2)):
        if chunks:
            submit(services, run_id, spec(), items(65))
        for mark, settings in (("short", short), ("old", old)):
            services.settings = settings
            found[name, mark] = has_room(services, spec())

    assert found == {
        ("empty", "short"): True,
        ("empty", "old"): True,
        ("two chunks", "short"): False,
        ("two chunks", "old"): True,
    }


def test_a_chunk_that_waited_too_long_holds_the_producer(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [items(4)])
    with services.engine.connect() as connection:
        now = connection.scalar(sa.text("SELECT extract(epoch FROM now())::float8"))
    services.publisher.judge(chunk.model_copy(update={"enqueued_at": now - services.settings.high_water_age_s - 1}))

    held = has_room(services, spec())
    services.coordination.queues.forget("fake", Lane.BULK)

    assert (held, has_room(services, spec())) == (False, True)


def test_a_message_that_nobody_here_wrote_holds_no_producer(services: Services) -> None:
    stray = task_message("libra.judge", "{}", queue="guard.fake.bulk", task_id="x")
    services.coordination.queues.push("guard.fake.bulk", stray)

    assert has_room(services, spec())


def test_a_producer_that_is_held_back_says_why(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    submit(services, run_id, spec(), items(65))
    services.settings = services.settings.model_copy(update={"high_water_chunks": 1})
    said: list[str] = []

    def give_room(why: str) -> None:
        said.append(why)
        services.coordination.queues.forget("fake", Lane.BULK)

    assert submit(services, run_id, spec(), items(70), on_held=give_room) == 5
    assert said == ["2 chunks of fake wait to be judged and 0 to be settled"]

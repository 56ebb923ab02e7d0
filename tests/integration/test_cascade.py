"""Cascades: what a stage is not sure of is judged once by the next one, whatever happens on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.errors import UsageError
from infra.ledger import intake, recovery, settlement
from infra.ledger.audit import audit
from infra.ledger.runs import escalating, find_run, next_id, open_child, run_status, stages_of
from infra.ledger.stats import device_seconds
from infra.servers.services import Services
from libra_fleet.cli.commands import BENCH, CASCADE
from producer.report.cascade import cascade_report
from schemas.guards import Mode
from schemas.items import Label, Retention
from schemas.messages import JudgeChunk, Lane, VerdictChunk
from schemas.runs import NextStage, RunSpec, RunState
from schemas.verdicts import Outcome, Timings, Verdict
from tests.support.finalizing import claimable, finalizer
from tests.support.fleet import Fleet, kill_tree
from tests.support.make import FINGERPRINT, items
from worker.collector.escalation import Escalation

SPEC = RunSpec(
    guard="small",
    lane=Lane.BULK,
    source="test",
    stages=(NextStage(guard="large", sure_below=0.2, sure_above=0.9),),
)
SURE = (0.0, 0.2, 0.9, 1.0)
ENDS: tuple[float | None, ...] = (*SURE, 0.21, 0.5, 0.89, None, -1.0)
"""Scores of a settled item; None: unparseable, -1: dead."""


def verdict(seq: int, end: float | None) -> Verdict:
    if end is None:
        return Verdict(seq=seq, outcome=Outcome.UNPARSEABLE, reason="unreadable")
    if end < 0:
        return Verdict(seq=seq, outcome=Outcome.DEAD, reason="poison")
    label = Label.UNSAFE if end > 0.5 else Label.SAFE
    return Verdict(seq=seq, outcome=Outcome.SCORED, label=label, p_unsafe=end, label_mass=1.0)


def settle(services: Services, chunk: JudgeChunk, ends: Sequence[float | None]) -> None:
    answered = VerdictChunk(
        run_id=chunk.run_id,
        chunk_no=chunk.chunk_no,
        worker="test",
        fingerprint=FINGERPRINT,
        timings=Timings(device_s=0.5),
        verdicts=tuple(verdict(item.seq, end) for item, end in zip(chunk.items, ends, strict=True)),
    )
    settlement.settle(services.engine, answered)


class Breaking:
    """A publisher that fails whenever it is told to; what it was given is kept."""

    def __init__(self) -> None:
        self.judged: list[JudgeChunk] = []
        self.finalized: list[str] = []
        self.broken = False

    def judge(self, chunk: JudgeChunk) -> None:
        if self.broken:
            raise ConnectionError
        self.judged.append(chunk)

    def finalize(self, run_id: str) -> None:
        self.finalized.append(run_id)


def handing_on(services: Services, publisher: Breaking) -> Escalation:
    return Escalation(services, publisher)  # type: ignore[arg-type] - the two methods that it uses


def opened(services: Services, count: int, *, chunk: int = 3) -> tuple[str, list[JudgeChunk]]:
    run_id = intake.create_run(services.engine, SPEC)
    batch = items(count)
    groups = [batch[start : start + chunk] for start in range(0, count, chunk)]
    return run_id, intake.accept(services.engine, run_id, SPEC, groups)


def held(services: Services, run_id: str) -> list[str]:
    with services.engine.connect() as connection:
        statement = sa.text("SELECT item_id FROM items WHERE run_id = :run_id ORDER BY seq")
        return list(connection.scalars(statement, {"run_id": run_id}))


@hypothesis_settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_the_next_stage_gets_what_was_not_sure_once_wherever_handing_on_breaks_off(
    services: Services, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 14), label="items")
    ends = data.draw(st.lists(st.sampled_from(ENDS), min_size=count, max_size=count), label="ends")
    run_id, chunks = opened(services, count)
    child = next_id(run_id)
    publisher = Breaking()
    looking = handing_on(services, publisher)
    for chunk in data.draw(st.permutations(chunks), label="order"):
        settle(services, chunk, [ends[item.seq] for item in chunk.items])
        happens = data.draw(st.sampled_from(["nothing", "look", "break", "die"]), label="then")
        if happens == "die":  # another collector takes over and knows nothing
            looking = handing_on(services, publisher)
        if happens == "break":
            publisher.broken = True
            try:
                looking.look()
            except ConnectionError:
                pass
            publisher.broken = False
        if happens == "look":
            looking.look()
        assert find_run(services.engine, child) is None or (run_status(services.engine, child).state is RunState.OPEN)
    intake.seal(services.engine, run_id)
    assert not claimable(services, run_id)  # it has not handed on yet
    looking.look()

    unsure = [f"item-{seq}" for seq in range(count) if ends[seq] not in SURE]
    assert held(services, child) == unsure
    status = run_status(services.engine, child)
    assert (status.state, status.expected, status.spec.guard) == (RunState.SEALED, len(unsure), "large")
    assert audit(services.engine, child).sound
    assert audit(services.engine, run_id).sound
    assert claimable(services, run_id)


def test_two_collectors_that_hand_on_at_once_hand_on_once(services: Services) -> None:
    run_id, chunks = opened(services, 60)
    for chunk in chunks:
        settle(services, chunk, [0.5] * len(chunk.items))
    intake.seal(services.engine, run_id)
    both = [handing_on(services, Breaking()) for _ in range(2)]
    threads = [threading.Thread(target=one.look) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both[0].look()

    child = next_id(run_id)
    assert held(services, child) == [f"item-{seq}" for seq in range(60)]
    assert audit(services.engine, child).sound
    assert escalating(services.engine) == []


def test_a_full_queue_of_the_next_guard_makes_the_stage_wait(services: Services, redis_url: str) -> None:
    run_id, chunks = opened(services, 6)
    for chunk in chunks:
        settle(services, chunk, [0.5] * len(chunk.items))
    intake.seal(services.engine, run_id)
    filling = intake.create_run(services.engine, RunSpec(guard="large", lane=Lane.BULK, source="test"))
    narrow = Services(
        services.settings.model_copy(update={"high_water_chunks": 1}), redis_url, services.database_url, embedded=True
    )
    other = RunSpec(guard="large", lane=Lane.BULK, source="test")
    for chunk in intake.accept(services.engine, filling, other, [[item] for item in items(2)]):
        services.publisher.judge(chunk)

    assert handing_on(narrow, Breaking()).look() == 0
    assert handing_on(services, Breaking()).look() == 6
    narrow.engine.dispose()


def test_a_cancelled_stage_hands_nothing_on_and_ends_those_after_it(services: Services) -> None:
    run_id, chunks = opened(services, 9)
    publisher = Breaking()
    settle(services, chunks[0], [0.5] * 3)
    handing_on(services, publisher).look()
    settlement.cancel(services.engine, run_id)
    handing_on(services, publisher).look()

    child = run_status(services.engine, next_id(run_id))
    assert (child.counts.accepted, child.counts.dead, child.cancelled) == (3, 3, True)
    assert claimable(services, child.id)
    assert claimable(services, run_id)


def test_texts_that_may_not_stay_stay_until_they_are_handed_on(services: Services) -> None:
    run_id, chunks = opened(services, 3)
    answered = VerdictChunk(
        run_id=run_id,
        chunk_no=chunks[0].chunk_no,
        worker="test",
        fingerprint=FINGERPRINT,
        timings=Timings(),
        verdicts=tuple(verdict(item.seq, 0.5) for item in chunks[0].items),
    )
    settlement.settle(services.engine, answered, retention=Retention.NONE)
    intake.seal(services.engine, run_id)
    publisher = Breaking()
    handing_on(services, publisher).look()

    assert [item.response for chunk in publisher.judged for item in chunk.items] == [item.response for item in items(3)]
    ended(services, run_id, retention=Retention.NONE)
    with services.engine.connect() as connection:
        left = connection.scalar(
            sa.text("SELECT count(*) FROM items WHERE run_id = :run AND response <> ''"), {"run": run_id}
        )
    assert left == 0
    assert audit(services.engine, run_id).sound


def ended(services: Services, run_id: str, *, retention: Retention = Retention.FULL) -> None:
    """Complete a run as a finalizer would."""
    finalizer(services, retention=retention).finalize(run_id)


def test_the_last_stage_that_scored_an_item_has_the_last_word(services: Services) -> None:
    """Truths alternate safe, unsafe; items 0 and 3 are settled first, the others go on."""
    run_id, (first, second) = opened(services, 6)
    settle(services, first, [0.1, 0.4, 0.6])  # right and sure; wrong; wrong
    settle(services, second, [0.95, None, -1.0])  # right and sure; unparseable; dead
    intake.seal(services.engine, run_id)
    publisher = Breaking()
    handing_on(services, publisher).look()
    (onward,) = publisher.judged
    settle(services, onward, [0.99, None, 0.1, -1.0])  # 1: put right; 2: nothing new; 4: scored now; 5: dead for good
    stages = stages_of(services.engine, run_id)
    with pytest.raises(UsageError, match="its last stage"):
        cascade_report(services.engine, stages)
    for stage in stages:
        ended(services, stage.id)

    alone = intake.create_run(services.engine, SPEC.model_copy(update={"stages": ()}))
    (whole,) = intake.accept(services.engine, alone, SPEC.model_copy(update={"stages": ()}), [items(6)])
    settle(services, whole, [0.1, 0.9, 0.1, 0.9, 0.9, 0.9])
    stages = stages_of(services.engine, run_id)
    report = cascade_report(services.engine, stages, against=run_status(services.engine, alone))

    counts = report.counts
    assert (counts.accepted, counts.scored, counts.unparseable, counts.dead) == (6, 5, 0, 1)
    (whole_run,) = [group for group in report.groups if group.kind == "all"]
    # 0, 1, 3 and 4 are right; 2 keeps the first stage's wrong label; 5 is dead, which counts as wrong.
    assert whole_run.value("accuracy") == pytest.approx(4 / 6)
    assert report.cascade is not None
    assert [(s.guard, s.judged, s.settled, s.unparseable, s.dead) for s in report.cascade.stages] == [
        ("small", 6, 3, 1, 1),
        ("large", 4, 3, 1, 1),
    ]
    against = report.cascade.against
    assert against is not None
    assert (against.items, against.accuracy, against.cascade_accuracy) == (
        6,
        pytest.approx(5 / 6),
        pytest.approx(4 / 6),
    )
    assert against.accuracy_lost is not None
    assert against.accuracy_lost.low < 1 / 6 < against.accuracy_lost.high


def test_device_time_is_counted_once_where_chunks_overlap(services: Services) -> None:
    run_id, chunks = opened(services, 9)
    for chunk in chunks:  # half a second each, settled within milliseconds of each other
        settle(services, chunk, [0.1] * 3)

    assert 0.5 <= device_seconds(services.engine, run_id) < 1.0


def test_a_stage_is_no_disagreement_and_no_run_to_go_on_with_by_hand(services: Services) -> None:
    run_id, chunks = opened(services, 3)
    publisher = Breaking()
    settle(services, chunks[0], [0.6, 0.6, 0.6])
    handing_on(services, publisher).look()

    assert open_child(services.engine, run_id, "large", Mode.SCORE) is None
    intake.seal(services.engine, run_id)
    handing_on(services, publisher).look()
    settle(services, publisher.judged[0], [0.1, 0.1, 0.1])
    for stage in stages_of(services.engine, run_id):
        ended(services, stage.id)
    with services.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM disagreements")) == 0
        assert recovery.unfinished(connection, lease_s=60) == []


ROWS = [
    {"id": str(at), "response": f"[[fake:{end}]] {at}", "label": label, "source": "Real Data"}
    for at, (end, label) in enumerate([("safe", "安全"), ("unsafe", "不安全"), ("unparseable", "安全")] * 20)
]


def test_the_command_line_takes_a_data_set_through_both_guards(
    services: Services, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    fleet.start_collector()
    workers = [fleet.start("worker", "--guard", f"{name}=fake", "--devices", "cpu") for name in ("small", "large")]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    order = [str(path), "--guard", "cascade:small@0.2:0.95=fake>large=fake", "--name", "both"]
    submitted = CliRunner().invoke(BENCH, ["submit", *order], catch_exceptions=False)
    run_id = submitted.stdout.strip()

    resumed = CliRunner().invoke(BENCH, ["resume", "both", "--no-local", "--json"], catch_exceptions=False)
    report = json.loads(resumed.stdout)
    shares = report["cascade"]["stages"]
    # The fake guard scores 0.1 and 0.9: "safe" is sure, "unsafe" is not, and what is unparseable goes on.
    assert [(share["guard"], share["judged"], share["settled"]) for share in shares] == [
        ("small", 60, 20),
        ("large", 40, 40),
    ]
    assert (report["counts"]["scored"], report["counts"]["unparseable"]) == (40, 20)
    again = CliRunner().invoke(BENCH, ["run", *order, "--no-local", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["counts"] == report["counts"]
    shown = CliRunner().invoke(CASCADE, ["report", "both"], catch_exceptions=False).stdout
    assert "small" in shown
    assert "of device time" in shown
    fitted = CliRunner().invoke(CASCADE, ["fit", "--run", "both", "--json"], catch_exceptions=False)
    assert json.loads(fitted.stdout)["settled_share"] == 1.0
    assert audit(services.engine, run_id).sound
    assert audit(services.engine, next_id(run_id)).sound
    for worker in workers:  # idle by now: draining would only take its time
        kill_tree(worker)

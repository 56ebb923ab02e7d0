"""The review queue: what a human should see and why, and what becomes of what the human says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from infra.errors import UsageError
from infra.ledger import decisions, intake, reviews, settlement
from infra.ledger.engine import autocommit
from infra.ledger.reviews import Why, review_queue
from infra.ledger.runs import list_runs, run_status
from infra.servers.services import Services
from libra_fleet.cli.rejudge import rejudge
from libra_fleet.cli.run import list_ as list_command
from schemas.items import Label, Retention
from schemas.messages import JudgeChunk, Lane
from schemas.policy import Action
from tests.support.finalizing import finalizer
from tests.support.make import verdicts_for
from tests.support.submissions import human_labels, judged, policy_of, submitted
from worker.collector.tasks import Collector


@pytest.fixture
def forum(services: Services) -> JudgeChunk:
    """Ten decided items: two to review, two blocked, six passed."""
    decisions.put_policy(services.engine, policy_of())
    decisions.set_tenant_policy(services.engine, "forum", "default")
    chunk = submitted(services, 10)
    settlement.settle(services.engine, judged(chunk, [0.6, 0.7, 0.95, 0.95, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]))
    return chunk


@pytest.fixture
def configured(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    return services


def queue(services: Services, *, tenant: str | None = "forum", limit: int = 50, share: float = 0.0) -> dict[int, Why]:
    return {item.seq: item.why for item in review_queue(services.engine, tenant, limit, audit_share=share)}


@pytest.mark.usefixtures("forum")
def test_items_to_review_are_shown_with_their_text_and_verdict(services: Services) -> None:
    first, second = review_queue(services.engine, "forum", 50, audit_share=0)

    assert (first.seq, first.why, first.action, first.policy, first.policy_version) == (
        0,
        Why.REVIEW,
        Action.REVIEW,
        "default",
        1,
    )
    assert (first.custom_id, first.surface, first.response) == ("custom-0", "Real Data", "text number 0")
    assert [(j.guard, j.label, j.p_unsafe) for j in second.judgements] == [("fake", Label.UNSAFE, 0.7)]


@pytest.mark.usefixtures("forum")
def test_a_tenant_sees_its_own_items_only(services: Services) -> None:
    assert queue(services, tenant="other") == {}
    assert queue(services, tenant=None) == queue(services)


@pytest.mark.usefixtures("forum")
def test_the_audit_sample_is_seeded_and_keeps_its_place_in_a_long_queue(services: Services) -> None:
    def sample(seed: int, limit: int = 3) -> list[int]:
        found = review_queue(services.engine, "forum", limit, seed=seed, audit_share=1.0)
        return [item.seq for item in found if item.why is Why.AUDIT]

    long = submitted(services, 30, prefix="long")
    settlement.settle(services.engine, judged(long, [0.6] * 30))

    assert sample(1, 40) == sample(1, 40)
    assert len({tuple(sample(seed, 40)) for seed in range(5)}) > 1
    assert len(sample(1, 20)) == 2
    assert queue(services, share=0.0).keys() == queue(services, share=1e-9).keys()


def test_a_decided_item_leaves_the_queue_and_becomes_a_human_label(services: Services, forum: JudgeChunk) -> None:
    made = reviews.decide(services.engine, forum.run_id, 0, label=Label.SAFE, moderator="ann", note="harmless")

    assert queue(services) == {1: Why.REVIEW}
    assert queue(services, share=1.0, limit=50).keys() == set(range(10)) - {0}
    assert human_labels(services.engine, "forum", 10) == [made]
    assert (made.label, made.action, made.moderator, made.note) == (Label.SAFE, Action.PASS, "ann", "harmless")


def test_a_second_moderators_decision_counts_and_the_first_is_kept(services: Services, forum: JudgeChunk) -> None:
    first = reviews.decide(services.engine, forum.run_id, 0, label=Label.SAFE, moderator="ann")
    second = reviews.decide(services.engine, forum.run_id, 0, label=Label.UNSAFE, moderator="bob")

    assert reviews.review_history(services.engine, forum.run_id, 0) == [second, first]
    assert human_labels(services.engine, "forum", 10) == [second]


def test_the_same_decision_pressed_many_times_is_stored_and_told_once(services: Services, forum: JudgeChunk) -> None:
    chunk = submitted(services, 1, callback_url="https://item.example/", prefix="told")

    with ThreadPoolExecutor(4) as pool:
        found = set(
            pool.map(
                lambda _: reviews.decide(services.engine, chunk.run_id, 0, label=Label.UNSAFE, moderator="ann"),
                range(8),
            )
        )

    with services.engine.connect() as connection:
        events = connection.scalars(sa.text("SELECT event FROM outbox")).all()
    assert len(found) == 1
    assert events == ["item.reviewed"]


def test_decisions_that_are_none_are_refused(services: Services, forum: JudgeChunk) -> None:
    with pytest.raises(UsageError, match="pass or block"):
        reviews.decide(services.engine, forum.run_id, 0, label=Label.SAFE, moderator="a", action=Action.REVIEW)
    for run_id, seq, tenant in ((forum.run_id, 99, None), ("nothing", 0, None), (forum.run_id, 0, "other")):
        with pytest.raises(UsageError, match="no item"):
            reviews.decide(services.engine, run_id, seq, label=Label.SAFE, moderator="a", tenant=tenant)


# Another guard judges again


def settled_child(services: Services, run_id: str) -> JudgeChunk:
    """The whole child run's chunk, judged unsafe throughout, and the run completed."""
    from infra.ledger import recovery

    with autocommit(services.engine) as connection:
        chunk = recovery.take_up(connection, recovery.OverdueChunk(run_id, 0, 1))
    assert chunk is not None
    collector = Collector(services.engine, services.coordination, services.publisher, stopping=lambda: False)
    collector.settle(verdicts_for(chunk, label=Label.UNSAFE).model_dump_json())
    finalizer(services).finalize(run_id)
    return chunk


def test_another_guard_judges_stored_items_in_a_child_run_and_moves_no_action(
    configured: Services, forum: JudgeChunk
) -> None:
    made = CliRunner().invoke(rejudge, ["--guard", "fake", "--run", forum.run_id])
    child = made.stdout.strip()
    before = queue(configured)
    settled_child(configured, child)

    status = run_status(configured.engine, child)
    listed = CliRunner().invoke(list_command, []).stdout
    with configured.engine.connect() as connection:
        decided = connection.scalar(sa.text("SELECT count(*) FROM decisions"))
        parent = connection.scalar(sa.text("SELECT parent FROM runs WHERE id = :id"), {"id": child})
    assert (status.spec.parent, parent, status.counts.scored) == (forum.run_id, forum.run_id, 10)
    assert forum.run_id in listed.split()
    assert "child of" in listed
    assert decided == 10
    assert before == {0: Why.REVIEW, 1: Why.REVIEW}
    assert queue(configured) == before | dict.fromkeys(range(4, 10), Why.DISAGREEMENT)
    disputed = review_queue(configured.engine, "forum", 50, audit_share=0)[-1]
    assert [judgement.label for judgement in disputed.judgements] == [Label.SAFE, Label.UNSAFE]


def test_since_takes_the_live_runs_in_which_something_settled(configured: Services, forum: JudgeChunk) -> None:
    bulk = submitted(configured, 2, lane=Lane.BULK)
    settlement.settle(configured.engine, judged(bulk, [0.1, 0.2]))

    made = CliRunner().invoke(rejudge, ["--guard", "fake", "--since", "1h"]).stdout.split()
    none = CliRunner().invoke(rejudge, ["--guard", "fake", "--since", "2099-01-01"])

    assert [run_status(configured.engine, run_id).spec.parent for run_id in made] == [forum.run_id]
    assert isinstance(none.exception, UsageError)


def test_an_interrupted_submission_is_gone_on_with(configured: Services, forum: JudgeChunk) -> None:
    spec = run_status(configured.engine, forum.run_id).spec
    child = spec.model_copy(update={"lane": Lane.BULK, "parent": forum.run_id, "source": f"run:{forum.run_id}"})
    begun = intake.create_run(configured.engine, child)

    made = CliRunner().invoke(rejudge, ["--guard", "fake", "--run", forum.run_id]).stdout.strip()

    assert made == begun
    assert run_status(configured.engine, begun).expected == 10


def test_items_whose_texts_were_scrubbed_are_refused_before_anything_is_submitted(configured: Services) -> None:
    chunk = submitted(configured, 2)
    settlement.settle(configured.engine, judged(chunk, [0.1, 0.2]), retention=Retention.HASH)

    refused = CliRunner().invoke(rejudge, ["--guard", "fake", "--run", chunk.run_id])

    assert isinstance(refused.exception, UsageError)
    assert "2 of 2 items" in str(refused.exception)
    assert len(list_runs(configured.engine)) == 1

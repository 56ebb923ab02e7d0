"""Decisions: made with the verdict or not at all, by the policy that applies, renewed without a device, never lost."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from infra.errors import UsageError
from infra.ledger import decisions, feed, intake, reviews, settlement, webhooks
from infra.process import wait_until
from infra.servers.services import Services
from libra_fleet.cli.commands import POLICY
from schemas.items import Label
from schemas.messages import JudgeChunk
from schemas.policy import Action, Policy
from schemas.webhooks import Event
from tests.support.make import items, spec, verdicts_for
from tests.support.submissions import judged, policy_of, submitted

LONG_AGO = datetime.now(UTC) - timedelta(days=1)
THREE = (0.1, 0.6, 0.95)


def actions(services: Services, run_id: str) -> list[tuple[str, str, int | None]]:
    """Current decisions in item order."""
    statement = sa.text(
        "SELECT action, policy, policy_version FROM decisions WHERE run_id = :id AND superseded_at IS NULL ORDER BY seq"
    )
    with services.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(statement, {"id": run_id})]


def letters(services: Services) -> list[dict[str, Any]]:
    with services.engine.connect() as connection:
        rows = connection.scalars(sa.text("SELECT body FROM outbox ORDER BY created_at, seq"))
        return [json.loads(body) for body in rows]


def rows_of(services: Services, table: str) -> int:
    with services.engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) or 0


@pytest.fixture
def default(services: Services) -> Policy:
    """A policy that is the forum's default."""
    made = policy_of()
    decisions.put_policy(services.engine, made)
    decisions.set_tenant_policy(services.engine, "forum", "default")
    return made


@pytest.mark.usefixtures("default")
def test_a_verdict_is_decided_by_its_items_own_policy_else_the_tenants_else_not_at_all(services: Services) -> None:
    decisions.put_policy(services.engine, policy_of(name="mild", version=3, review=0.97, block=0.99))
    tenants, own, none = (
        submitted(services, 3),
        submitted(services, 3, policy="mild"),
        submitted(services, 3, tenant="x"),
    )

    for chunk in (tenants, own, none):
        settlement.settle(services.engine, judged(chunk, THREE))

    assert actions(services, tenants.run_id) == [
        ("pass", "default", 1),
        ("review", "default", 1),
        ("block", "default", 1),
    ]
    assert actions(services, own.run_id) == [("pass", "mild", 3)] * 3
    assert actions(services, none.run_id) == []


@pytest.mark.usefixtures("default")
def test_a_chunk_that_is_delivered_again_is_decided_and_told_once(services: Services) -> None:
    webhooks.add_endpoint(services.engine, "forum", "https://hook.example/")
    chunk = submitted(services, 3, callback_url="https://item.example/")
    first = judged(chunk, THREE)
    part = first.model_copy(update={"verdicts": first.verdicts[:1]})

    for delivery in (part, first, first):
        settlement.settle(services.engine, delivery)

    assert len(actions(services, chunk.run_id)) == 3
    assert len(letters(services)) == 2 * 3


def test_the_outbox_is_left_alone_where_nobody_is_to_be_notified(services: Services) -> None:
    other, gone = (webhooks.add_endpoint(services.engine, name, "https://hook.example/") for name in ("x", "forum"))
    webhooks.add_endpoint(services.engine, "forum", "https://hook.example/", [Event.REVIEWED])
    webhooks.disable_endpoint(services.engine, gone.id, "410")
    chunk = submitted(services, 3)
    sent: list[str] = []
    sa.event.listen(services.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))

    settlement.settle(services.engine, judged(chunk, THREE))

    assert other.tenant == "x"
    assert any("INSERT INTO verdicts" in statement for statement in sent)
    assert not any("INSERT INTO outbox" in statement for statement in sent)


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("table", ["decisions", "outbox"])
def test_verdict_decision_and_letter_are_committed_together_or_none_of_them(services: Services, table: str) -> None:
    chunk = submitted(services, 3, callback_url="https://item.example/")
    with services.engine.begin() as connection:
        connection.execute(sa.text(f"ALTER TABLE {table} ADD CONSTRAINT broken CHECK (seq < 2)"))

    with pytest.raises(sa.exc.IntegrityError, match="broken"):
        settlement.settle(services.engine, judged(chunk, THREE))

    assert [rows_of(services, name) for name in ("verdicts", "decisions", "outbox")] == [0, 0, 0]


@pytest.mark.usefixtures("default")
def test_nothing_passes_that_nobody_judged(services: Services) -> None:
    chunk = submitted(services, 2)
    lost = submitted(services, 2, callback_url="https://item.example/")

    settlement.settle(services.engine, judged(chunk, [None, 0.1]))
    settlement.settle_dead(services.engine, lost.run_id, [lost.chunk_no], "lost 5 times")

    assert [action for action, _, _ in actions(services, chunk.run_id)] == ["review", "pass"]
    assert [action for action, _, _ in actions(services, lost.run_id)] == ["review", "review"]
    assert [letter["data"]["outcome"] for letter in letters(services)] == ["dead", "dead"]


def test_a_policy_that_is_not_there_means_review(services: Services) -> None:
    chunk = submitted(services, 1, policy="gone")

    settlement.settle(services.engine, judged(chunk, [0.01]))

    assert actions(services, chunk.run_id) == [("review", "gone", None)]


@pytest.mark.usefixtures("default")
def test_a_policy_of_a_newer_form_means_review_and_holds_no_verdict_up(services: Services) -> None:
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE policies SET body = body || '{\"rule_of_tomorrow\": 1}'"))
    chunk = submitted(services, 1)

    settlement.settle(services.engine, judged(chunk, [0.01]))

    assert actions(services, chunk.run_id) == [("review", "default", None)]


@pytest.mark.usefixtures("default")
def test_items_of_bench_runs_are_not_decided(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [items(3)])

    settlement.settle(services.engine, verdicts_for(chunk))

    assert actions(services, run_id) == []


@pytest.mark.usefixtures("default")
def test_a_letter_tells_the_verdict_and_the_action_and_never_the_text(services: Services) -> None:
    webhooks.add_endpoint(services.engine, "forum", "https://hook.example/")
    webhooks.add_endpoint(services.engine, "other", "https://elsewhere.example/")
    chunk = submitted(services, 1, metadata={"surface": "comment", "user": 7})

    settlement.settle(services.engine, judged(chunk, [0.95], categories=("S10:hate_abuse",)))

    (letter,) = letters(services)
    assert letter["type"] == "item.judged"
    assert letter["data"] == {
        "run_id": chunk.run_id,
        "seq": 0,
        "id": f"item_{chunk.run_id}_0",
        "custom_id": "custom-0",
        "metadata": {"surface": "comment", "user": 7},
        "iteration": 0,
        "outcome": "scored",
        "label": "unsafe",
        "p_unsafe": 0.95,
        "categories": ["S10:hate_abuse"],
        "fingerprint": verdicts_for(chunk).fingerprint.digest,
        "action": "block",
        "policy": "default",
        "policy_version": 1,
        "reason": "p_unsafe 0.9500, at or above 0.9",
        "previous_action": None,
    }
    assert "text number" not in json.dumps(letter)


def test_a_stored_version_never_changes_and_the_newest_put_is_in_force(services: Services) -> None:
    first, second = policy_of(), policy_of(version=2, block=0.8)
    assert [decisions.put_policy(services.engine, one) for one in (first, second)] == [True, True]

    with pytest.raises(UsageError, match="another version"):
        decisions.put_policy(services.engine, policy_of(block=0.7))
    in_force = decisions.stored_policy(services.engine, "default").policy
    back = decisions.put_policy(services.engine, first)

    assert in_force == second
    assert (back, decisions.stored_policy(services.engine, "default").policy) == (False, first)
    assert len(decisions.stored_policies(services.engine)) == 2


def test_a_name_is_known_once_it_is_put_and_unknown_ones_are_not_asked_for_each_time(services: Services) -> None:
    patient, eager = decisions.PolicyNames(services.engine, keep_s=60), decisions.PolicyNames(services.engine, keep_s=0)
    before = [known("default") for known in (patient, eager)]
    decisions.put_policy(services.engine, policy_of())

    assert before == [False, False]
    assert (patient("default"), eager("default"), eager("other")) == (False, True, False)


def renew(services: Services, rules: Policy) -> list[decisions.Change]:
    found = decisions.changes(services.engine, rules, LONG_AGO)
    return list(decisions.apply_changes(services.engine, found))


@pytest.mark.usefixtures("default")
def test_renewing_supersedes_and_keeps_the_history_and_tells_what_moved(services: Services) -> None:
    chunk = submitted(services, 3, callback_url="https://item.example/")
    settlement.settle(services.engine, judged(chunk, THREE))
    stricter = policy_of(version=2, review=0.05, block=0.5)
    decisions.put_policy(services.engine, stricter)

    done, again = renew(services, stricter), renew(services, stricter)

    assert [(c.before, c.ruling.decision.action) for c in done] == [
        (Action.PASS, Action.REVIEW),
        (Action.REVIEW, Action.BLOCK),
        (Action.BLOCK, Action.BLOCK),
    ]
    assert again == []
    assert [(action, version) for action, _, version in actions(services, chunk.run_id)] == [
        ("review", 2),
        ("block", 2),
        ("block", 2),
    ]
    assert rows_of(services, "decisions") == 6
    told = [letter["data"] for letter in letters(services) if letter["type"] == "item.redecided"]
    assert [(data["seq"], data["previous_action"], data["action"]) for data in told] == [
        (0, "pass", "review"),
        (1, "review", "block"),
    ]


@pytest.mark.usefixtures("default")
def test_no_policy_overrules_a_human(services: Services) -> None:
    chunk = submitted(services, 2)
    settlement.settle(services.engine, judged(chunk, [0.6, 0.6]))
    stricter = policy_of(version=2, review=0.1, block=0.2)
    planned = decisions.changes(services.engine, stricter, LONG_AGO)
    first = next(planned)
    reviews.decide(services.engine, chunk.run_id, 1, label=Label.SAFE, moderator="m", note="fine")

    done = list(decisions.apply_changes(services.engine, iter([first, *planned])))

    assert [change.subject.seq for change in done] == [0]
    current = {
        seq: (item.decided.action, item.decided.by_human)
        for seq, item in feed.submitted_items(services.engine, chunk.run_id, [0, 1, 2]).items()
        if item.decided
    }
    assert current == {0: (Action.BLOCK, False), 1: (Action.PASS, True)}


@pytest.mark.usefixtures("default")
def test_a_human_decision_on_a_pending_item_is_not_followed_by_the_machines(services: Services) -> None:
    webhooks.add_endpoint(services.engine, "forum", "https://hook.example/")
    chunk = submitted(services, 2)
    reviews.decide(services.engine, chunk.run_id, 0, label=Label.SAFE, moderator="m")

    settlement.settle(services.engine, judged(chunk, [0.95, 0.95]))

    told = [(letter["type"], letter["data"]["seq"], letter["data"]["action"]) for letter in letters(services)]
    assert told == [("item.reviewed", 0, "pass"), ("item.judged", 1, "block")]
    decided = feed.submitted_items(services.engine, chunk.run_id, [0, 1])
    assert {seq: item.decided and item.decided.action for seq, item in decided.items()} == {
        0: Action.PASS,
        1: Action.BLOCK,
    }
    assert actions(services, chunk.run_id) == [("block", "default", 1)]


@pytest.mark.usefixtures("default")
def test_a_review_and_a_settlement_at_once_end_with_the_humans_word(services: Services) -> None:
    webhooks.add_endpoint(services.engine, "forum", "https://hook.example/")
    chunks = [submitted(services, 1, prefix=f"p{number}") for number in range(30)]

    def settle(chunk: JudgeChunk) -> None:
        """As a collector does: a chunk whose row somebody has locked is set aside and taken again."""
        assert wait_until(lambda: settles(chunk), timeout_s=30)

    def settles(chunk: JudgeChunk) -> bool:
        try:
            settlement.settle(services.engine, judged(chunk, [0.95]))
        except settlement.BusyError:
            return False
        return True

    def review(chunk: JudgeChunk) -> None:
        reviews.decide(services.engine, chunk.run_id, 0, label=Label.SAFE, moderator="m")

    with ThreadPoolExecutor(4) as pool:
        work = []
        for chunk in chunks:
            work.append(pool.submit(settle, chunk))
            work.append(pool.submit(review, chunk))
        for each in work:
            each.result(60)

    waiting = [row.event for row in webhooks.sent(services.engine, state="pending", limit=None)]
    assert waiting == ["item.reviewed"] * len(chunks)
    overruled = webhooks.sent(services.engine, state="failed", limit=None)
    assert {(row.event, row.last_error) for row in overruled} <= {("item.judged", "a human decided otherwise")}


@pytest.mark.usefixtures("default")
def test_a_message_that_agrees_with_the_human_still_leaves(services: Services) -> None:
    webhooks.add_endpoint(services.engine, "forum", "https://hook.example/")
    chunk = submitted(services, 1)
    settlement.settle(services.engine, judged(chunk, [0.95]))

    reviews.decide(services.engine, chunk.run_id, 0, label=Label.UNSAFE, moderator="m")

    assert {row.state for row in webhooks.sent(services.engine)} == {"pending"}


@pytest.mark.usefixtures("default")
def test_of_two_renewals_at_once_only_one_takes_effect(services: Services) -> None:
    chunk = submitted(services, 1)
    settlement.settle(services.engine, judged(chunk, [0.6]))
    plans = [
        list(decisions.changes(services.engine, policy_of(version=version, block=0.5), LONG_AGO)) for version in (2, 3)
    ]

    done = [list(decisions.apply_changes(services.engine, iter(plan))) for plan in plans]

    assert [len(changes) for changes in done] == [1, 0]
    assert actions(services, chunk.run_id) == [("block", "default", 2)]


# The commands


@pytest.fixture
def cli(services: Services, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    services.engine  # noqa: B018 - migrated before a command asks

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(POLICY, list(arguments), catch_exceptions=True)

    return run


def test_a_policy_is_tried_put_shown_and_applied_by_command(services: Services, cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "forum.yaml"
    file.write_text("policy: forum\nversion: 1\nthresholds: {review: 0.5, block: 0.9}\n")
    chunk = submitted(services, 3)
    settlement.settle(services.engine, judged(chunk, THREE, categories=("gambling",)))

    tried = json.loads(cli("test", str(file), "--verdicts", chunk.run_id, "--json").stdout)
    nothing_yet = rows_of(services, "decisions")
    cli("put", str(file))
    cli("default", "forum", "forum")
    planned = json.loads(cli("apply", "forum", "--since", "1d", "--json").stdout)
    still_nothing = rows_of(services, "decisions")
    applied = json.loads(cli("apply", "forum", "--since", "1d", "--yes", "--json").stdout)

    assert tried["actions"] == {"pass": 1, "review": 1, "block": 1}
    assert tried["changes"]["newly blocked"] == {
        "count": 1,
        "categories": {"gambling": 1},
        "examples": ["item-2"],
    }
    assert (nothing_yet, still_nothing) == (0, 0)
    assert (planned["applied"], applied["applied"]) == (False, True)
    assert planned["changes"] == applied["changes"] == tried["changes"]
    assert [action for action, _, _ in actions(services, chunk.run_id)] == ["pass", "review", "block"]
    assert "forum" in cli("list").stdout
    assert json.loads(cli("show", "forum@1").stdout)["default_of"] == ["forum"]


def test_a_sample_tries_stored_verdicts_and_shows_texts_only_when_asked(services: Services, cli: Any) -> None:
    settlement.settle(services.engine, judged(submitted(services, 3), THREE))

    sampled = cli("test", "default", "--sample", "2", "--json")
    shown = cli("test", "default", "--sample", "2", "--show-text")

    assert json.loads(sampled.stdout)["decided"] == 2
    assert "text number" not in sampled.output
    assert shown.output.count("text number") == 2


def test_what_cannot_be_done_is_refused(cli: Any) -> None:
    impossible = [
        ("test", "nowhere.yaml"),
        ("test", "default", "--sample", "1", "--verdicts", "r"),
        ("show", "default@x"),
        ("show", "nothing"),
        ("default", "forum"),
        ("default", "forum", "nothing"),
        ("apply", "nothing", "--since", "1d"),
        ("apply", "default", "--since", "yesterday"),
        ("apply", "default"),
    ]

    refused = [cli(*arguments).exception for arguments in impossible]

    assert [type(error).__name__ for error in refused] == [
        *["UsageError"] * 3,
        *["PolicyNotFoundError", "UsageError"],
        *["PolicyNotFoundError"] * 2,
        *["SystemExit"] * 2,
    ]

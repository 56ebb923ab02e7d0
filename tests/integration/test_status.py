"""`libra fleet status` on a real small fleet: with nobody there, then at work, then done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import generate_latest

from infra.fleet import look
from infra.ledger import intake
from infra.ledger.runs import run_status
from infra.servers.services import Services
from libra_fleet.cli.status import status
from producer.exporter import FleetCollector, fleet_page
from producer.intake.submit import seal, submit
from schemas.fleet import Announcement
from tests.support.fleet import Fleet
from tests.support.make import items, spec
from tests.support.prometheus import free_port, prometheus


@pytest.fixture
def configured(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    return services


def test_status_and_prometheus_follow_a_run_from_an_unserved_queue_to_its_end(
    configured: Services, fleet: Fleet, tmp_path: Path
) -> None:
    run_id = intake.create_run(configured.engine, spec())
    submit(configured, run_id, spec(), items(2_000))
    seal(configured, run_id)

    alone = json.loads(CliRunner().invoke(status, ["--json"]).stdout)
    shown = CliRunner().invoke(status).stdout
    fleet.start_collector()
    port = free_port()
    fleet.start("metrics-exporter", "--port", str(port))
    fleet.start_worker("--fake-item-ms", "1")
    fleet.wait(lambda: _facts()["runs"] == [])
    done = _facts()

    assert alone["queues"][0]["waiting"] == 32
    assert alone["queues"][0]["oldest_s"] > 0
    assert "no worker serves fake" in alone["troubles"][0]
    assert "no collector runs" in alone["troubles"][1]
    assert "! 32 chunks wait on guard.fake.bulk and no worker serves fake" in shown.replace("\n", " ")
    assert [(run["settled"], run["pending"]) for run in alone["runs"]] == [(0, 2_000)]
    assert (len(done["workers"]), len(done["collectors"]), done["troubles"]) == (1, 1, [])
    fleet.wait(lambda: (_facts()["workers"][0]["busy_share"] or 0) > 0)
    worker = _facts()["workers"][0]
    assert 0 < worker["busy_share"] <= 1
    assert worker["items_per_s"] > 0
    assert 0 <= worker["padding_share"] < 0.5
    assert (worker["device"], worker["budget_tokens"]) == ("cpu", 16_384)
    (announced,) = [process for process in configured.coordination.presence.announced() if process.kind == "worker"]
    assert announced.fingerprints is not None
    assert announced.fingerprints["score"] == run_status(configured.engine, run_id).fingerprint
    assert announced.version
    with prometheus(f"127.0.0.1:{port}", tmp_path) as scraped:
        fleet.wait(lambda: scraped.value("sum(libra_device_prompts_total)") == 2_000)
        fleet.wait(lambda: scraped.value("sum(libra_items_settled_total)") == 2_000)
        assert scraped.value('sum(libra_items_settled_total{guard="fake",lane="bulk",outcome="scored"})') == 2_000
        assert scraped.value('libra_stage_seconds_count{lane="bulk",stage="device"}') == 32
        assert scraped.value('libra_items_pending{guard="fake",lane="bulk"}') == 0
        assert scraped.value('libra_queue_oldest_age_seconds{guard="fake",lane="live"}') == 0
        assert scraped.value('celery_queue_length{queue_name="guard.fake.bulk"}') == 0
        assert scraped.value('libra_workers{guard="fake"}') == scraped.value("libra_collectors") == 1
        assert scraped.value("sum(libra_server_up)") == 2
        assert scraped.value("libra_device_padded_tokens_total >= libra_device_tokens_total > 0")
        assert "LibraNoWorker" in scraped.rules()


def test_a_scrape_while_the_broker_is_away_tells_what_the_ledger_knows(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    intake.accept(services.engine, run_id, spec(), [items(3)])
    alone = Services(services.settings, "redis://127.0.0.1:1/0", services.database_url, embedded=True)
    told = generate_latest(FleetCollector(alone)).decode()
    alone.engine.dispose()

    assert 'libra_server_up{server="ledger"} 1.0' in told
    assert 'libra_server_up{server="broker"} 0.0' in told
    assert 'libra_items_pending{guard="fake",lane="bulk"} 3.0' in told
    assert "libra_queue_chunks{" not in told


def test_a_look_while_the_ledger_is_away_has_what_the_broker_knows(services: Services) -> None:
    services.coordination.presence.announce(Announcement(id="w", kind="worker", guard="fake", state="ready"))
    alone = Services(services.settings, services.redis_url, "postgresql://127.0.0.1:1/none", embedded=False)
    fleet = look(alone, at_once=True)
    told = generate_latest(fleet_page(fleet)).decode()

    assert list(fleet.away) == ["ledger"]
    assert 'libra_server_up{server="ledger"} 0.0' in told
    assert 'libra_workers{guard="fake"} 1.0' in told
    assert 'libra_queue_chunks{guard="fake",lane="bulk"} 0.0' in told
    assert "libra_items_pending{" not in told


def _facts() -> dict[str, Any]:
    return json.loads(CliRunner().invoke(status, ["--json"]).stdout)

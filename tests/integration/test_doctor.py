"""`libra fleet doctor` on real servers: a sound fleet has nothing wrong, and each planted misconfiguration is named."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy import make_url

from infra.ledger import intake
from infra.ledger.engine import HEAD
from infra.servers.embedded import ServerUrls
from infra.servers.services import Services
from infra.settings import Settings
from libra_fleet.cli.status import doctor
from libra_fleet.doctor import examination
from schemas.fleet import Announcement
from tests.support.database import fresh_database
from tests.support.make import items, spec
from worker.device.inventory import Device, Examination, Listing
from worker.guards.registry import BUNDLED

OF_THE_MACHINE = {"disk", "files", "device memory", "devices", "redis latency", "postgres latency"}
"""What may be wrong with the machine that runs the tests."""


class Patient:
    """A sound set-up, and ways to spoil it."""

    def __init__(self, services: Services, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.services = services
        self.patch = monkeypatch
        self.folder = folder
        self.arguments: list[str] = ["--guard", "libra-tiny", "--devices", "cpu"]
        self.undo: list[Callable[[], object]] = []
        services.engine  # noqa: B018 - migrated
        monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
        monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
        monkeypatch.setenv("LIBRA_STATE_DIR", str(folder / "state"))

    def findings(self) -> tuple[int, list[dict[str, str]]]:
        result = CliRunner().invoke(doctor, [*self.arguments, "--json"])
        return result.exit_code, json.loads(result.stdout)

    def config(self, name: str, value: str) -> None:
        client = redis.Redis.from_url(self.services.redis_url, decode_responses=True)
        before: Any = client.config_get(name)
        client.config_set(name, value)
        self.undo += [lambda: client.config_set(name, before[name]), client.close]

    def sql(self, statement: str) -> None:
        with self.services.engine.begin() as connection:
            connection.execute(sa.text(statement))

    def announce(self, worker_id: str, **fields: Any) -> None:
        self.services.coordination.presence.announce(Announcement(id=worker_id, kind="worker", state="ready", **fields))


@pytest.fixture(scope="module")
def ground(servers: ServerUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Servers for the whole module, for migrating a ledger takes longer than a test; each test leaves them clean."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"), wait_for_servers_s=5)
    with fresh_database(servers) as database_url:
        found = Services(settings, servers.redis_url, database_url, embedded=True)
        yield found
        found.engine.dispose()


@pytest.fixture
def patient(ground: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Patient]:
    patient = Patient(ground, monkeypatch, tmp_path)
    yield patient
    for undo in patient.undo:
        undo()
    patient.sql("TRUNCATE runs, items, chunks, outbox")
    with redis.Redis.from_url(ground.redis_url) as client:
        client.flushdb()


def _let_commits_be_lost(patient: Patient) -> None:
    database = make_url(patient.services.database_url).database
    patient.sql(f"ALTER DATABASE {database} SET synchronous_commit = off")
    patient.undo.append(lambda: patient.sql(f"ALTER DATABASE {database} RESET synchronous_commit"))


def _leave_the_ledger_behind(patient: Patient) -> None:
    patient.sql("UPDATE alembic_version SET version_num = '0005'")
    back = f"UPDATE alembic_version SET version_num = '{HEAD}'"  # noqa: S608 - a constant of ours
    patient.undo.append(lambda: patient.sql(back))


def _set_the_clock_wrong(patient: Patient) -> None:
    ahead = partial(examination.check_clocks, clock=lambda: time.time() + 90)
    patient.patch.setattr(examination, "check_clocks", ahead)


def _cut_the_checkpoint_off(patient: Patient) -> None:
    copy = shutil.copytree(BUNDLED["libra-tiny"], patient.folder / "checkpoint")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    patient.arguments[1] = f"mine={copy}"


def _bring_a_small_gpu(patient: Patient) -> None:
    gpu = Device("0", "small GPU", 8 << 30, 8 << 30, gpu="0")
    patient.patch.setattr("libra_fleet.doctor.machine.list_devices", lambda: Listing((gpu,)))
    patient.patch.setattr("libra_fleet.doctor.machine.examine", lambda groups: [Examination()] * len(groups))
    patient.arguments[:] = ["--guard", "libra-guard-qwen2.5-14b-instruct", "--devices", "0"]


def _fill_the_disk(patient: Patient) -> None:
    nearly = partial(examination.check_disk, free_bytes=lambda _: 100 << 20)
    patient.patch.setattr(examination, "check_disk", nearly)


def _lower_the_file_limit(patient: Patient) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (900, limits[1]))
    patient.undo.append(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))


def _install_an_old_library(patient: Patient) -> None:
    old = partial(examination.check_versions, installed=lambda name: "5.3.1" if name == "celery" else None)
    patient.patch.setattr(examination, "check_versions", old)


def _let_workers_differ(patient: Patient) -> None:
    for number, digest in enumerate("ab"):
        patient.announce(f"w{number}", guard="fake", fingerprints={"score": digest * 16})


def _leave_work_undone(patient: Patient) -> None:
    run_id = intake.create_run(patient.services.engine, spec())
    intake.accept(patient.services.engine, run_id, spec(), [items(3)])


def _let_webhooks_pile_up(patient: Patient) -> None:
    patient.sql(
        "INSERT INTO outbox (id, tenant, callback_url, event, run_id, seq, body, next_at) "
        "VALUES ('msg_1', 't', 'https://x.example', 'item.judged', 'r', 0, '{}', now() - interval '1 hour')"
    )


PLANTED: dict[str, tuple[Callable[[Patient], object], str, str, str]] = {
    "Redis may evict": (
        lambda patient: patient.config("maxmemory-policy", "allkeys-lru"),
        "redis eviction",
        "error",
        "maxmemory-policy is allkeys-lru",
    ),
    "Redis forgets at a restart": (
        lambda patient: patient.config("appendonly", "no"),
        "redis persistence",
        "warning",
        "appendonly is off",
    ),
    "Redis is not there": (
        lambda patient: patient.patch.setenv("LIBRA_REDIS_URL", "redis://127.0.0.1:1/0"),
        "redis",
        "error",
        "cannot reach Redis at 127.0.0.1:1",
    ),
    "Postgres may lose commits": (_let_commits_be_lost, "postgres durability", "error", "synchronous_commit is off"),
    "ledger behind the code": (_leave_the_ledger_behind, "ledger revision", "error", "at revision 0005"),
    "only one URL": (
        lambda patient: patient.patch.delenv("LIBRA_DATABASE_URL"),
        "servers",
        "error",
        "LIBRA_DATABASE_URL is not set",
    ),
    "clock ahead": (_set_the_clock_wrong, "clocks", "error", "90.0 s ahead of Postgres's"),
    "checkpoint cut off": (_cut_the_checkpoint_off, "checkpoint", "error", "its header says"),
    "guard larger than the device": (
        _bring_a_small_gpu,
        "device memory",
        "error",
        "are 26.1 GiB by its name, up to 28.4 GiB in fact; device 0",
    ),
    "disk nearly full": (_fill_the_disk, "disk", "error", "0.1 GiB are free"),
    "few files": (_lower_the_file_limit, "files", "warning", "may open 900 files"),
    "old library": (_install_an_old_library, "versions", "error", "celery 5.3.1 is older than 5.7"),
    "redelivery within a batch": (
        lambda patient: patient.patch.setenv("LIBRA_VISIBILITY_TIMEOUT_S", "60"),
        "settings",
        "error",
        "LIBRA_VISIBILITY_TIMEOUT_S (60) is not above LIBRA_BATCH_DEADLINE_S (120)",
    ),
    "worker of another version": (
        lambda patient: patient.announce("old", guard="fake", version="0.0.1"),
        "fleet versions",
        "warning",
        "worker old runs version 0.0.1",
    ),
    "workers of another fingerprint": (_let_workers_differ, "fingerprints", "error", "the workers of fake differ"),
    "work and no worker": (_leave_work_undone, "lanes", "error", "fake, bulk: work is pending"),
    "work and no collector": (_leave_work_undone, "collector", "error", "no collector runs"),
    "webhooks and no sender": (
        _let_webhooks_pile_up,
        "webhooks",
        "error",
        "1 webhooks are due, the oldest for 3,6",
    ),
    "messages nobody can read": (
        lambda patient: patient.services.coordination.dead_letters.put("q", "newer", "{}"),
        "parked messages",
        "warning",
        "1 messages in the dead-letter queue",
    ),
}


def test_a_sound_fleet_has_nothing_wrong(patient: Patient) -> None:
    code, findings = patient.findings()

    wrong = [found for found in findings if found["level"] != "ok" and found["check"] not in OF_THE_MACHINE]
    assert wrong == []
    assert code == int(any(found["level"] == "error" for found in findings))
    checks = {"versions", "disk", "checkpoint", "redis", "postgres", "ledger", "clocks", "settings", "fleet"}
    assert checks <= {found["check"] for found in findings}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_named_with_its_reason_and_what_to_do(patient: Patient, name: str) -> None:
    plant, check, level, words = PLANTED[name]
    plant(patient)

    code, findings = patient.findings()

    named = [found for found in findings if found["check"] == check and found["level"] != "ok"]
    assert [found["level"] for found in named if words in found["what"]] == [level], findings
    assert all(found["why"] and found["do"] for found in named)
    if level == "error":
        assert code == (5 if check == "checkpoint" else 1)


def test_for_a_person_each_finding_has_its_reason_and_its_remedy(patient: Patient) -> None:
    patient.config("maxmemory-policy", "allkeys-lru")

    shown = CliRunner().invoke(doctor, patient.arguments)

    assert shown.exit_code == 1
    assert "✗ redis eviction: maxmemory-policy is allkeys-lru\n    why: a full Redis" in shown.stdout
    assert "    do:  redis-cli CONFIG SET maxmemory-policy noeviction" in shown.stdout

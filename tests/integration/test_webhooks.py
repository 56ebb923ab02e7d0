"""Webhooks over real HTTP: what happened arrives, signed, under one id, once the receiver is there; nowhere else."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qsl

import httpx2
import pytest
from click.testing import CliRunner
from standardwebhooks import Webhook

from infra.errors import UsageError
from infra.ledger import settlement, webhooks
from infra.ledger.webhooks import Sent
from infra.process import wait_until
from infra.servers.services import Services
from infra.settings import Settings
from libra_fleet.cli.commands import WEBHOOKS
from producer.webhooks.sender import Sender, _post
from schemas.webhooks import Event
from tests.support.fleet import Fleet
from tests.support.receiver import Receiver
from tests.support.submissions import judged, submitted

WAIT_S = 30


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Loopback may be told, and nothing takes long."""
    changes = {
        "webhook_allow": "127.0.0.1",
        "webhook_retry_s": (0.02,) * 200,
        "webhook_timeout_s": 5,
        "webhook_poll_s": 0.02,
    }
    return settings.model_copy(update=changes)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver().running() as running:
        yield running


@contextmanager
def sending(services: Services, **changes: object) -> Iterator[None]:
    """A sender at work."""
    stop = threading.Event()
    sender = Sender(services.engine, services.settings.model_copy(update=changes), services.coordination)
    thread = threading.Thread(target=sender.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def states(services: Services) -> list[str]:
    return [row.state for row in sent(services)]


def sent(services: Services) -> list[Sent]:
    return webhooks.sent(services.engine)


def until(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, timeout_s=WAIT_S)


def judge(services: Services, count: int = 1, *, callback_url: str | None = None, tenant: str = "forum") -> str:
    """Items that came in and got their verdicts; what is to be told is in the outbox."""
    chunk = submitted(services, count, callback_url=callback_url, tenant=tenant)
    settlement.settle(services.engine, judged(chunk, [0.9] * count))
    return chunk.run_id


def test_the_conventions_own_library_verifies_what_arrives(services: Services, receiver: Receiver) -> None:
    endpoint = webhooks.add_endpoint(services.engine, "forum", receiver.url)
    newer = webhooks.rotate_endpoint_secret(services.engine, endpoint.id)
    own = webhooks.rotate_tenant_secret(services.engine, "forum")
    judge(services, callback_url=f"{receiver.url}/of-the-item")

    with sending(services):
        until(lambda: states(services) == ["delivered"] * 2)

    by_path = {request.path: request for request in receiver.received}
    assert set(by_path) == {"/hook", "/hook/of-the-item"}
    for secret, path in ((endpoint.secrets[0], "/hook"), (newer, "/hook"), (own, "/hook/of-the-item")):
        content = Webhook(secret).verify(by_path[path].body.decode(), dict(by_path[path].headers))
        assert (content["type"], content["data"]["custom_id"]) == ("item.judged", "custom-0")
    assert b"text number" not in b"".join(request.body for request in receiver.received)


def test_an_endpoint_with_a_seed_gets_a_form_with_a_checksum_also_after_its_rotation(
    services: Services, receiver: Receiver
) -> None:
    endpoint = webhooks.add_endpoint(services.engine, "forum", receiver.url, form=webhooks.SEED)
    seed = webhooks.rotate_endpoint_secret(services.engine, endpoint.id)
    judge(services)

    with sending(services):
        until(lambda: states(services) == ["delivered"])

    (request,) = receiver.received
    form = dict(parse_qsl(request.body.decode()))
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert form["checksum"] == hashlib.sha256(f"{endpoint.id}{seed}{form['content']}".encode()).hexdigest()
    assert json.loads(form["content"])["suggestion"] == "block", "unsafe, and no policy applies"


def test_a_notice_of_settlement_wakes_the_sender_long_before_its_poll(services: Services, receiver: Receiver) -> None:
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    with sending(services, webhook_poll_s=3_600):
        chunk = submitted(services, 1, tenant="forum")
        verdicts = judged(chunk, [0.9])
        settlement.settle(services.engine, verdicts)

        def delivered() -> bool:
            services.coordination.notices.settled([verdicts])  # again and again: the sender may not listen yet
            return states(services) == ["delivered"]

        until(delivered)


def test_while_redis_is_away_what_is_due_leaves_by_the_poll(services: Services, receiver: Receiver) -> None:
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    pool = services.coordination_at_once.notices._redis.connection_pool
    pool.disconnect()
    pool.connection_kwargs["path"] = "/nowhere/valkey.sock"
    stop = threading.Event()
    sender = Sender(services.engine, services.settings, services.coordination_at_once)
    thread = threading.Thread(target=sender.run, args=(stop,))
    thread.start()
    judge(services, 2)
    until(lambda: states(services) == ["delivered"] * 2)
    judge(services, 1)

    assert wait_until(lambda: states(services) == ["delivered"] * 3, timeout_s=10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_receiver_that_is_down_is_told_once_it_is_up(services: Services) -> None:
    down = Receiver()
    port = down.port
    down._server.server_close()
    webhooks.add_endpoint(services.engine, "forum", down.url)
    judge(services, 3)

    with sending(services):
        until(lambda: sum(row.attempts for row in sent(services)) > 3)
        with Receiver(port).running() as up:
            until(lambda: states(services) == ["delivered"] * 3)

    assert sorted(up.ids) == sorted(row.id for row in sent(services))


@pytest.mark.parametrize("answer", [500, 503, 404, 301, 302, 400, 429])
def test_whatever_is_no_2xx_is_tried_again_under_the_same_id(
    services: Services, receiver: Receiver, answer: int
) -> None:
    receiver.answers = [(answer, {"location": f"{receiver.url}/elsewhere"})]
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    judge(services)

    with sending(services):
        until(lambda: states(services) == ["delivered"])

    (row,) = sent(services)
    assert receiver.ids == [row.id] * 2
    assert {request.path for request in receiver.received} == {"/hook"}
    assert (row.attempts, row.last_status) == (2, 204)


def test_a_receiver_is_left_alone_as_long_as_it_asks(services: Services, receiver: Receiver) -> None:
    receiver.answers = [(429, {"retry-after": "3600"})]
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    judge(services)

    with sending(services):
        until(lambda: sent(services)[0].last_status == 429)

    (row,) = sent(services)
    assert (row.next_at - row.created_at).total_seconds() > 3_500


def test_after_the_last_attempt_a_letter_has_failed_and_can_be_replayed(services: Services, receiver: Receiver) -> None:
    receiver.answers = [500, 500, 500]
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    judge(services)

    with sending(services, webhook_retry_s=(0.01, 0.01)):
        until(lambda: states(services) == ["failed"])
        failed = sent(services)[0]
        replayed = webhooks.replay(services.engine, state="failed")
        until(lambda: states(services) == ["delivered"])

    assert (failed.attempts, failed.last_error) == (3, "the receiver answered 500")
    assert replayed == 1
    assert len(set(receiver.ids)) == 1


def test_410_disables_the_endpoint_and_what_waits_for_it_fails(services: Services, receiver: Receiver) -> None:
    receiver.answers = [410]
    gone = webhooks.add_endpoint(services.engine, "forum", receiver.url)
    judge(services)
    with sending(services, webhook_connections=1):
        until(lambda: states(services) == ["failed"])
        judge(services)  # nobody is to be told of this
        (found,) = webhooks.endpoints(services.engine)
        told = len(receiver.received)
        webhooks.enable_endpoint(services.engine, gone.id)
        webhooks.replay(services.engine, endpoint_id=gone.id)
        until(lambda: states(services) == ["delivered"])

    assert found.disabled_at is not None
    assert found.reason == "the receiver answered 410"
    assert told == 1


def test_an_endpoint_is_told_only_of_its_tenants_events_that_it_wants(services: Services, receiver: Receiver) -> None:
    webhooks.add_endpoint(services.engine, "other", receiver.url)
    webhooks.add_endpoint(services.engine, "forum", receiver.url, [Event.REVIEWED])

    judge(services)

    assert sent(services) == []


def test_without_a_secret_nothing_is_sent_and_with_one_it_is(services: Services, receiver: Receiver) -> None:
    judge(services, callback_url=receiver.url)

    with sending(services):
        until(lambda: "no secret" in (sent(services)[0].last_error or ""))
        unsigned = len(receiver.received)
        webhooks.rotate_tenant_secret(services.engine, "forum")
        until(lambda: states(services) == ["delivered"])

    assert unsigned == 0


def test_an_inner_address_is_not_even_connected_to(services: Services, receiver: Receiver) -> None:
    webhooks.add_endpoint(services.engine, "forum", receiver.url.replace("127.0.0.1", "localhost"))
    webhooks.add_endpoint(services.engine, "forum", receiver.url.replace("127.0.0.1", "2130706433"))
    judge(services)

    with sending(services, webhook_allow=None, webhook_retry_s=()):
        until(lambda: states(services) == ["failed"] * 2)

    assert receiver.received == []
    assert all((row.last_error or "").startswith("refused: ") for row in sent(services))


def test_the_certificate_is_checked_for_the_name_although_the_address_is_connected_to(tmp_path: Path) -> None:
    """What makes it safe to resolve first and to connect to what was checked."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=hook.example",
        "-addext",
    ]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, "subjectAltName=DNS:hook.example", *files], check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def post(port: int, name: str) -> int | None:
        async with httpx2.AsyncClient(verify=trusting, trust_env=False) as http:
            url = f"https://{name}:{port}/hook"
            return (await _post(http, url, [ip_address("127.0.0.1")], {}, b"{}")).status

    with Receiver(tls=(certificate, key)).running() as receiver:
        assert asyncio.run(post(receiver.port, "hook.example")) == 204
        with pytest.raises(httpx2.ConnectError, match=r"other\.example"):
            asyncio.run(post(receiver.port, "other.example"))

    assert [request.headers["host"] for request in receiver.received] == [f"hook.example:{receiver.port}"]


def test_a_receiver_that_never_answers_is_given_up_at_the_deadline(services: Services) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        webhooks.add_endpoint(services.engine, "forum", url)
        judge(services)
        with sending(services, webhook_timeout_s=0.2, webhook_retry_s=()):
            until(lambda: states(services) == ["failed"])

    assert sent(services)[0].last_error == "no answer within 0.2 s"


def test_a_receiver_that_never_answers_delays_no_other_tenant(services: Services, receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        webhooks.add_endpoint(services.engine, "silent", url)
        webhooks.add_endpoint(services.engine, "forum", receiver.url)
        judge(services, 60, tenant="silent")
        judge(services, 6, tenant="forum")

        with sending(services, webhook_connections=8, webhook_timeout_s=5):
            until(lambda: [row.state for row in webhooks.sent(services.engine, tenant="forum")] == ["delivered"] * 6)
            of_silent = webhooks.sent(services.engine, tenant="silent", limit=None)

    assert any(row.attempts for row in of_silent), "they were taken first"
    assert not any(row.last_error for row in of_silent), "none of them has been given up yet"


def test_many_senders_send_each_letter_once(services: Services, receiver: Receiver) -> None:
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    judge(services, 40)

    with sending(services, webhook_connections=4), sending(services, webhook_connections=4):
        until(lambda: states(services) == ["delivered"] * 40)

    assert len(receiver.ids) == len(set(receiver.ids)) == 40


def test_what_a_killed_sender_had_taken_comes_back_under_its_id(services: Services, receiver: Receiver) -> None:
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    judge(services)
    (taken,) = webhooks.take_due(services.engine, limit=9, lease_s=0.5)
    meanwhile = webhooks.take_due(services.engine, limit=9, lease_s=0.5)

    with sending(services):
        until(lambda: states(services) == ["delivered"])

    assert meanwhile == []
    assert receiver.ids == [taken.id]
    webhooks.note_failed(services.engine, taken, "late", status=500, retry_s=0)
    assert states(services) == ["delivered"]


def test_a_collector_killed_after_its_commit_loses_no_letter(
    services: Services, fleet: Fleet, receiver: Receiver
) -> None:
    """The verdict's commit holds the letter; a real sender, started when the collector is dead, delivers it."""
    webhooks.add_endpoint(services.engine, "forum", receiver.url)
    collector = fleet.start_collector()
    chunk = submitted(services, 5)
    services.publisher.settle(judged(chunk, [0.9] * 5))
    fleet.wait(lambda: len(sent(services)) == 5)
    collector.kill()
    collector.wait()

    sender = fleet.start("webhooks", "send", LIBRA_WEBHOOK_ALLOW="127.0.0.1", LIBRA_WEBHOOK_POLL_S="0.05")
    fleet.wait(lambda: states(services) == ["delivered"] * 5)
    fleet.wait(lambda: fleet.is_ready(sender))
    sender.terminate()

    assert sender.wait(timeout=WAIT_S) == 0
    assert sorted(json.loads(request.body)["data"]["seq"] for request in receiver.received) == [0, 1, 2, 3, 4]


def test_endpoints_letters_and_secrets_are_managed_by_command(
    services: Services, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    services.engine  # noqa: B018 - migrated before a command asks

    def libra(*arguments: str) -> str:
        return CliRunner().invoke(WEBHOOKS, list(arguments), catch_exceptions=False).stdout

    made = json.loads(libra("endpoints", "add", "forum", "https://hook.example/", "--event", "item.judged", "--json"))
    judge(services)
    listed = json.loads(libra("list", "--json"))
    shown = libra("endpoints", "list", "--json")
    rotated = libra("endpoints", "rotate", made["id"]).strip()
    first, same = libra("secret", "forum").strip(), libra("secret", "forum").strip()
    other = libra("secret", "forum", "--rotate").strip()
    libra("endpoints", "remove", made["id"])
    after = json.loads(libra("list", "--state", "failed", "--json"))

    assert [row["destination"] for row in listed] == [made["id"]]
    assert made["secret"] not in shown
    assert rotated != made["secret"]
    assert (first, webhooks.tenant_secrets(services.engine, "forum")) == (same, (other, first))
    assert [row["last_error"] for row in after] == ["the endpoint was removed"]
    for arguments in (["endpoints", "add", "forum", "http://hook.example/"], ["replay"], ["endpoints", "remove", "x"]):
        assert isinstance(CliRunner().invoke(WEBHOOKS, arguments).exception, UsageError)

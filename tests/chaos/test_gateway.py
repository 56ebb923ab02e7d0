"""A gateway that is killed, and a sender of webhooks: what was accepted ends in a verdict and a webhook message."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable

import sqlalchemy as sa
from standardwebhooks import Webhook

from infra.ledger import feed, webhooks
from infra.servers.services import Services
from libra_fleet import Client, ItemRequest
from producer.gateway.api.items import ref_of
from tests.support.fleet import Fleet
from tests.support.gateway import free_port, new_key, start_gateway
from tests.support.receiver import Received, Receiver


class Caller:
    """Submits item after item through our client, which sends a failed request again, until told to stop."""

    def __init__(self, port: int, key: str, name: str) -> None:
        self.accepted: dict[str, str] = {}
        self._client = Client(f"http://127.0.0.1:{port}", key)
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                custom_id = f"{self._name}-{number}"
                (self.accepted[custom_id],) = self._client.submit(
                    [ItemRequest(text=f"text {number}", custom_id=custom_id)]
                )

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_everything_a_killed_gateway_accepted_ends_in_one_verdict_and_one_webhook(
    fleet: Fleet, services: Services
) -> None:
    fleet.start_collector()
    fleet.start_worker()
    port = free_port()
    gateway = start_gateway(fleet, port)
    key = new_key(services)
    with Receiver().running() as receiver:
        endpoint = webhooks.add_endpoint(services.engine, "acme", receiver.url)
        with Caller(port, key, "a") as one, Caller(port, key, "b") as other:
            _kill_a_sender_that_waits_for_an_answer(fleet, services, receiver)
            for _ in range(2):
                before = len(one.accepted) + len(other.accepted)
                fleet.wait(lambda before=before: len(one.accepted) + len(other.accepted) > before + 40)
                gateway.send_signal(signal.SIGKILL)
                gateway.wait()
                gateway = start_gateway(fleet, port)
            before = len(one.accepted)
            fleet.wait(lambda: len(one.accepted) > before + 5)
        accepted = one.accepted | other.accepted
        refs = [ref_of(name) for name in accepted.values()]
        fleet.wait(lambda: len(_settled(services, refs[0].run_id)) >= len(accepted))
        fleet.wait(lambda: {row.state for row in webhooks.sent(services.engine, limit=None)} == {"delivered"})

    settled = _settled(services, refs[0].run_id)
    assert set(accepted) <= set(settled)
    assert max(settled.values()) == 1, "a call that was sent again under its key was accepted twice"
    page = feed.feed_page(services.engine, "acme", after=0, limit=100_000)
    assert Counter(item.custom_id for _, item in page) == settled
    notified = _verified(receiver.received, endpoint.secrets[0])
    assert set(notified) == set(settled)
    assert max(map(len, notified.values())) == 1, "an item was sent under two ids"
    assert len(receiver.ids) > len(set(receiver.ids)), "what the killed sender had sent was not sent again"


def _kill_a_sender_that_waits_for_an_answer(fleet: Fleet, services: Services, receiver: Receiver) -> None:
    """What it has sent is received, yet nobody noted it; another sender starts once its leases are over."""
    receiver.answering.clear()
    sender = _start_sender(fleet)
    fleet.wait(lambda: bool(receiver.received))
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    receiver.answering.set()
    with services.engine.begin() as connection:  # as if the 45 s had passed
        connection.execute(sa.text("UPDATE outbox SET next_at = now() WHERE state = 'pending'"))
    _start_sender(fleet)


def _start_sender(fleet: Fleet) -> subprocess.Popen[bytes]:
    quick = {"LIBRA_WEBHOOK_POLL_S": "0.05", "LIBRA_WEBHOOK_RETRY_S": json.dumps([0.1] * 100)}
    return fleet.start("webhooks", "send", LIBRA_WEBHOOK_ALLOW="127.0.0.1", **quick)


def _verified(received: Iterable[Received], secret: str) -> dict[str, set[str]]:
    """By the item's custom id, the ids of its webhook messages, each with a signature that is right."""
    found = defaultdict(set)
    for request in received:
        content = Webhook(secret).verify(request.body.decode(), dict(request.headers))
        found[content["data"]["custom_id"]].add(request.headers["webhook-id"])
    return found


def _settled(services: Services, run_id: str) -> Counter[str]:
    statement = "SELECT s.custom_id FROM submissions s JOIN verdicts v USING (run_id, seq) WHERE s.run_id = :run_id"
    with services.engine.connect() as connection:
        return Counter(connection.scalars(sa.text(statement), {"run_id": run_id}))

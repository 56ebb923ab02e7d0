"""A gateway that is killed: what it has accepted ends in a verdict."""

from __future__ import annotations

import itertools
import signal
import threading
from collections import Counter

import sqlalchemy as sa

from infra.ledger import feed
from infra.services import Services
from producer.gateway.views import place_of
from producer.gateway_client import GatewayClient, NewItem
from tests.support.fleet import Fleet
from tests.support.gateway import free_port, new_key, start_gateway


class Caller:
    """Submits item after item through our client, which sends a failed request again, until told to stop."""

    def __init__(self, port: int, key: str, name: str) -> None:
        self.accepted: dict[str, str] = {}
        self._client = GatewayClient(f"http://127.0.0.1:{port}", key)
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                custom_id = f"{self._name}-{number}"
                (self.accepted[custom_id],) = self._client.submit([NewItem(f"text {number}", custom_id=custom_id)])

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_everything_a_killed_gateway_accepted_ends_in_one_verdict(fleet: Fleet, services: Services) -> None:
    fleet.start_collector()
    fleet.start_worker()
    port = free_port()
    gateway = start_gateway(fleet, port)
    key = new_key(services)
    with Caller(port, key, "a") as one, Caller(port, key, "b") as other:
        for _ in range(2):
            before = len(one.accepted) + len(other.accepted)
            fleet.wait(lambda before=before: len(one.accepted) + len(other.accepted) > before + 40)
            gateway.send_signal(signal.SIGKILL)
            gateway.wait()
            gateway = start_gateway(fleet, port)
        before = len(one.accepted)
        fleet.wait(lambda: len(one.accepted) > before + 5)
    accepted = one.accepted | other.accepted
    places = [place_of(name) for name in accepted.values()]
    fleet.wait(lambda: len(_settled(services, places[0].run_id)) >= len(accepted))

    settled = _settled(services, places[0].run_id)
    assert set(accepted) <= set(settled)
    assert max(settled.values()) == 1, "a call that was sent again under its key was accepted twice"
    page = feed.feed_page(services.engine, "acme", after=0, limit=100_000)
    assert Counter(item.custom_id for _, item in page) == settled


def _settled(services: Services, run_id: str) -> Counter[str]:
    statement = "SELECT s.custom_id FROM submissions s JOIN verdicts v USING (run_id, seq) WHERE s.run_id = :run_id"
    with services.engine.connect() as connection:
        return Counter(connection.scalars(sa.text(statement), {"run_id": run_id}))

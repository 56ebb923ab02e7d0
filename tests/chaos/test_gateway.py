"""A gateway that is killed: what it has accepted ends in a verdict."""

from __future__ import annotations

import signal
import threading
from collections import Counter

import httpx2
import sqlalchemy as sa

from infra.ledger import feed
from infra.services import Services
from producer.gateway.views import place_of
from tests.support.fleet import Fleet
from tests.support.gateway import free_port, new_key, start_gateway


class Caller:
    """Submits item after item, each under a key of its own, until told to stop; a failed call is sent again."""

    def __init__(self, port: int, key: str, name: str) -> None:
        self.accepted: dict[str, str] = {}
        self.broken_calls = 0
        self._url = f"http://127.0.0.1:{port}/v1/items"
        self._key = key
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        with httpx2.Client(timeout=5) as client:
            while not self._stop.is_set():
                custom_id = f"{self._name}-{number}"
                headers = {"Authorization": f"Bearer {self._key}", "Idempotency-Key": custom_id}
                body = {"items": [{"text": f"text {custom_id}", "custom_id": custom_id}]}
                try:
                    answer = client.post(self._url, headers=headers, json=body)
                except httpx2.TransportError:
                    self.broken_calls += 1
                    self._stop.wait(0.05)
                    continue
                if answer.status_code == 202:
                    self.accepted[custom_id] = answer.json()["data"][0]["id"]
                    number += 1

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
    assert one.broken_calls + other.broken_calls > 0
    assert set(accepted) <= set(settled)
    assert max(settled.values()) == 1, "a call that was sent again under its key was accepted twice"
    page = feed.feed_page(services.engine, "acme", after=0, limit=100_000)
    assert Counter(item.custom_id for _, item in page) == settled


def _settled(services: Services, run_id: str) -> Counter[str]:
    statement = "SELECT s.custom_id FROM submissions s JOIN verdicts v USING (run_id, seq) WHERE s.run_id = :run_id"
    with services.engine.connect() as connection:
        return Counter(connection.scalars(sa.text(statement), {"run_id": run_id}))

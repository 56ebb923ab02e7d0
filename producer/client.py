"""The Python client for live traffic: submit an item, or wait for its verdict.

with LiveClient.open(guard="libra-tiny") as client:
    verdict = client.judge("要审核的文本")
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from infra.errors import RunError
from infra.ledger import intake, settlement
from infra.services import Services, services
from infra.settings import Settings, load_settings
from producer.submit import cut_chunks
from schemas.guards import Mode
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec
from schemas.verdicts import Verdict

_LEDGER_POLL_S: Final = 1.0


class Ticket(NamedTuple):
    """An accepted live item: where its verdict will be."""

    run_id: str
    seq: int
    item_id: str


class LiveClient:
    """Live traffic of one tenant through one guard. Thread-safe."""

    def __init__(self, services: Services, *, guard: str, mode: Mode = Mode.SCORE, tenant: str = "default") -> None:
        self._services = services
        self._tenant = tenant
        self._spec = RunSpec(guard=guard, mode=mode, lane=Lane.LIVE, source=f"live:{tenant}", tenant=tenant)

    @classmethod
    @contextmanager
    def open(
        cls, *, guard: str, mode: Mode = Mode.SCORE, tenant: str = "default", settings: Settings | None = None
    ) -> Iterator[LiveClient]:
        """A client on the configured servers (or the embedded ones)."""
        with services(settings or load_settings()) as found:
            yield cls(found, guard=guard, mode=mode, tenant=tenant)

    def submit(self, items: Sequence[Item]) -> list[Ticket]:
        """Accept items into the ledger and put them on the live lane; a ticket for each, in the order given.

        Raises:
            DataError: an item id was used before in the day's run.
        """
        engine = self._services.engine
        run_id = intake.live_run(engine, self._spec, tenant=self._tenant)
        return self._enqueue(run_id, items)

    def _enqueue(self, run_id: str, items: Sequence[Item]) -> list[Ticket]:
        settings = self._services.settings
        groups = cut_chunks(items, max_items=settings.chunk_items, max_bytes=settings.chunk_bytes)
        chunks = intake.accept(self._services.engine, run_id, self._spec, groups)
        for chunk in chunks:
            self._services.publisher.judge(chunk)
        accepted = [item.id for group in groups for item in group]
        seqs = [wire.seq for chunk in chunks for wire in chunk.items]
        seq_of = dict(zip(accepted, seqs, strict=True))
        return [Ticket(run_id, seq_of[item.id], item.id) for item in items]

    def judge(self, response: str, *, question: str = "", timeout_s: float = 30) -> Verdict:
        """The settled verdict on one text (or on a response to a question).

        Raises:
            pydantic.ValidationError: the text is empty or too long.
            RunError: no verdict within the time-out; the item stays accepted and will settle.
        """
        item = Item(id=uuid.uuid4().hex, question=question, response=response)
        run_id = intake.live_run(self._services.engine, self._spec, tenant=self._tenant)
        with self._services.board.watching(run_id) as settled:
            (ticket,) = self._enqueue(run_id, [item])
            deadline = time.monotonic() + timeout_s
            while (left_s := deadline - time.monotonic()) > 0:
                message = settled.get_message(timeout=min(left_s, _LEDGER_POLL_S))
                if message is None or ticket.seq in json.loads(message["data"]):
                    verdict = self.verdict(ticket)
                    if verdict is not None:
                        return verdict
        raise RunError(f"no verdict within {timeout_s:g} s; item {item.id} in run {run_id} will still settle")

    def verdict(self, ticket: Ticket) -> Verdict | None:
        """The verdict of a submitted item, or None while it is pending."""
        return settlement.verdict_of(self._services.engine, ticket.run_id, [ticket.seq]).get(ticket.seq)

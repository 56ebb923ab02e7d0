"""Keeping a process of one kind on the board for as long as it works; `infra.coordination.health` asks for it there."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final, Literal

from infra.coordination.store import CoordinationStore
from infra.log import get_logger

_ANNOUNCE_EVERY_S: Final = 5.0

log = get_logger(__name__)


@contextmanager
def announced(coordination: CoordinationStore, kind: Literal["collector", "gateway", "webhooks"]) -> Iterator[str]:
    """Announce this process as ready while the context lasts; yields its id, `KIND-HOST-PID`."""
    worker_id = f"{kind}-{socket.gethostname()}-{os.getpid()}"
    facts = {"id": worker_id, "kind": kind, "state": "ready", "pid": os.getpid(), "version": version("libra-fleet")}
    stop = threading.Event()
    threading.Thread(target=_announce, args=(coordination, worker_id, facts, stop), daemon=True).start()
    try:
        yield worker_id
    finally:
        stop.set()
        coordination.withdraw_worker(worker_id)


def _announce(coordination: CoordinationStore, worker_id: str, facts: dict[str, object], stop: threading.Event) -> None:
    while True:
        try:
            coordination.announce_worker(worker_id, facts)
        except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away for a while
            log.warning("announce_failed", error=str(error))
        if stop.wait(_ANNOUNCE_EVERY_S):
            return

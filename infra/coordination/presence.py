"""Keep a process announced for as long as it works, and find one that is."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final, Literal

from infra.coordination.store import CoordinationStore
from infra.log import get_logger
from schemas.fleet import READY, Announcement, ProcessKind, ready

_ANNOUNCE_EVERY_S: Final = 5.0

log = get_logger(__name__)


@contextmanager
def announced(coordination: CoordinationStore, kind: Literal["collector", "gateway", "webhooks"]) -> Iterator[str]:
    """Announce this process as ready while the context lasts; yields its id, `KIND-HOST-PID`."""
    process = Announcement(
        id=f"{kind}-{socket.gethostname()}-{os.getpid()}",
        kind=kind,
        state=READY,
        pid=os.getpid(),
        version=version("libra-fleet"),
    )
    stop = threading.Event()
    threading.Thread(target=_announce, args=(coordination, process, stop), daemon=True).start()
    try:
        yield process.id
    finally:
        stop.set()
        coordination.withdraw(process.id)


def _announce(coordination: CoordinationStore, process: Announcement, stop: threading.Event) -> None:
    while True:
        try:
            coordination.announce(process)
        except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away for a while
            log.warning("announce_failed", error=str(error))
        if stop.wait(_ANNOUNCE_EVERY_S):
            return


def is_ready(announced: Iterable[Announcement], role: ProcessKind, host: str) -> bool:
    """Whether a process of this role is ready on this host; a host is known by the ids of its processes."""
    named = r"{}-\d+-\d+" if role == "worker" else role + r"-{}-\d+"
    return any(re.fullmatch(named.format(re.escape(host)), process.id) for process in ready(announced, role))

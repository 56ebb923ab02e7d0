"""Presence on Redis: every process that works announces itself, and vanishes from the list when it stops doing so."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Literal, cast

from infra.log import get_logger
from schemas.fleet import READY, Announcement, ProcessKind, ready

if TYPE_CHECKING:
    import redis  # loading it would double the time of `libra --help`

_ANNOUNCE_EVERY_S: Final = 5.0
_TTL_S: Final = 15

log = get_logger(__name__)


class Presence:
    """The processes of the fleet, by id."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._redis = client
        self._prefix = prefix

    def announce(self, process: Announcement) -> None:
        """Put a process on the list for some seconds; it repeats this for as long as it lives."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(f"{self._prefix}worker:{process.id}", process.to_wire(), ex=_TTL_S)
            pipe.sadd(f"{self._prefix}workers", process.id)
            pipe.expire(f"{self._prefix}workers", _TTL_S)
            pipe.execute()

    def withdraw(self, process_id: str) -> None:
        """Take a process off the list at once."""
        self._redis.delete(f"{self._prefix}worker:{process_id}")

    def announced(self) -> list[Announcement]:
        """Every process that is announced and alive; not those of a version that this one cannot read."""
        # A list of their names: a scan would walk over every key of a Redis that also holds a cache.
        names = sorted(cast("set[str]", self._redis.smembers(f"{self._prefix}workers")))
        keys = [f"{self._prefix}worker:{name}" for name in names]
        found = cast("list[str | None]", self._redis.mget(keys) if keys else [])
        gone = [name for name, announcement in zip(names, found, strict=True) if announcement is None]
        if gone:
            self._redis.srem(f"{self._prefix}workers", *gone)
        return [process for process in map(Announcement.from_wire, filter(None, found)) if process]


@contextmanager
def announced(presence: Presence, kind: Literal["collector", "gateway", "webhooks"]) -> Iterator[str]:
    """Announce this process as ready while the context lasts; yields its id, `KIND-HOST-PID`."""
    process = Announcement(
        id=f"{kind}-{socket.gethostname()}-{os.getpid()}",
        kind=kind,
        state=READY,
        pid=os.getpid(),
        version=version("libra-fleet"),
    )
    stop = threading.Event()

    def keep_announcing() -> None:
        while True:
            try:
                presence.announce(process)
            except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away for a while
                log.warning("announce_failed", error=str(error))
            if stop.wait(_ANNOUNCE_EVERY_S):
                return

    threading.Thread(target=keep_announcing, daemon=True).start()
    try:
        yield process.id
    finally:
        stop.set()
        presence.withdraw(process.id)


def is_ready(announced: Iterable[Announcement], role: ProcessKind, host: str) -> bool:
    """True if a process of this role is ready on this host; a host is known by the ids of its processes."""
    named = r"{}-\d+-\d+" if role == "worker" else role + r"-{}-\d+"
    return any(re.fullmatch(named.format(re.escape(host)), process.id) for process in ready(announced, role))

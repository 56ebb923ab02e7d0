"""Waiting for a server while it is away, starts, fails over or is full: who waits takes nothing more on meanwhile.

Own code and not a library (stamina, tenacity): it never gives up, it ends at a shutdown, and both fit on a page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import ExecAbortError, MasterDownError, OutOfMemoryError, ReadOnlyError

from infra.log import get_logger

FULL: Final = (OutOfMemoryError, ExecAbortError)
"""Answers of a Redis that is full (noeviction) to a write, alone or within a transaction."""

_REFUSES_WRITES: Final = ("MISCONF", "NOREPLICAS")
"""How a Redis begins its answer while its disk is full, or too few replicas follow it."""
_REDIS_AWAY: Final = (redis.ResponseError, redis.ConnectionError, redis.TimeoutError, OperationalError)
_FIRST_PAUSE_S: Final = 0.1

ResultT = TypeVar("ResultT")
log = get_logger(__name__)


def passes(error: Exception) -> bool:
    """Whether a Redis that answers so may answer otherwise later: not to a wrong password or a wrong command."""
    if isinstance(error, redis.ResponseError):
        return isinstance(error, (*FULL, ReadOnlyError, MasterDownError)) or str(error).startswith(_REFUSES_WRITES)
    return not isinstance(error, redis.AuthenticationError)


def retry(
    action: Callable[[], ResultT],
    *,
    errors: tuple[type[Exception], ...] = _REDIS_AWAY,
    is_transient: Callable[[Exception], bool] = passes,
    longest_pause_s: float = 2.0,
    event: str = "broker_waits",
) -> ResultT:
    """The result of an action that is done again, after ever longer pauses, until it works.

    Raises:
        Exception: one of another kind than `errors`, or one that waiting cannot help (a wrong password).
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except errors as error:
            if not is_transient(error):
                raise
            cause = getattr(error, "orig", error)  # SQLAlchemy's own text carries the statement
            log.warning(event, error=f"{type(cause).__name__}: {cause}".strip(), retry_s=pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_pause_s)


@contextmanager
def ignore_redis_errors(notice: str) -> Iterator[None]:
    """Go on without a notice that may be lost without harm."""
    try:
        yield
    except redis.RedisError as error:
        log.warning("notice_lost", notice=notice, error=f"{type(error).__name__}: {error}")

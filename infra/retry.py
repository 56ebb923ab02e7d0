"""Waiting for Redis while it is away, starts, fails over or is full: whoever waits takes nothing more on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import ExecAbortError, OutOfMemoryError, ReadOnlyError

from infra.log import get_logger

FULL: Final = (OutOfMemoryError, ExecAbortError)
"""What a Redis that is full (noeviction) answers to a write, alone or within a transaction."""

_TRANSIENT_ERRORS: Final = (*FULL, ReadOnlyError, redis.ConnectionError, redis.TimeoutError, OperationalError)
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0

ResultT = TypeVar("ResultT")
log = get_logger(__name__)


def retry(action: Callable[[], ResultT], *, errors: tuple[type[Exception], ...] = _TRANSIENT_ERRORS) -> ResultT:
    """Do something with Redis, again and again until it works.

    Raises:
        redis.RedisError: waiting cannot help (a wrong password, a wrong command).
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except redis.AuthenticationError:
            raise
        except errors as error:
            log.warning("broker_waits", error=f"{type(error).__name__}: {error}", retry_s=pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


@contextmanager
def ignore_redis_errors(what: str) -> Iterator[None]:
    """Go on without a notice on the board that may be lost without harm."""
    try:
        yield
    except redis.RedisError as error:
        log.warning("notice_lost", notice=what, error=f"{type(error).__name__}: {error}")

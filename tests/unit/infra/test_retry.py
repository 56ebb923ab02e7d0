"""What is waited out: the answers as redis-py reads them off the wire, from the errors of a real server."""

from __future__ import annotations

import pytest
import redis
from redis._parsers.base import BaseParser

from infra.retry import passes


@pytest.mark.parametrize(
    ("answer", "passing"),
    [
        ("MISCONF Errors writing to the AOF file: No space left on device", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("READONLY You can't write against a read only replica.", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("ERR unknown command 'X'", False),
        ("NOPERM this user has no permissions to run the 'set' command", False),
        ("WRONGPASS invalid username-password pair or user is disabled.", False),
    ],
)
def test_an_answer_is_waited_out_only_if_waiting_can_help(answer: str, *, passing: bool) -> None:
    assert passes(BaseParser.parse_error(answer)) is passing


def test_a_server_that_does_not_answer_is_waited_for() -> None:
    assert passes(redis.ConnectionError("refused"))
    assert passes(redis.TimeoutError("late"))

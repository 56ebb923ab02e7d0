"""What lies in kombu's keys on Redis: queued messages, and those that a consumer has but did not acknowledge.

Whatever is read here may have been written by anybody: nothing malformed breaks a caller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import redis

_MALFORMED: Final = (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError)

# A message is taken off the list of the unacknowledged and queued in one step, unless somebody else did so before.
_REQUEUE: Final = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('RPUSH', KEYS[3], ARGV[2])
    return 1
end
return 0
"""


def enqueued_at(message: str) -> float:
    """When a queued message was enqueued; 0 for one that nobody here wrote, so that it overtakes nothing."""
    try:
        at = float(json.loads(message)["headers"]["enqueued_at"])
    except _MALFORMED:
        return 0.0
    return at if math.isfinite(at) else 0.0


def task_of(message: str) -> str:
    """The task id of a queued message; empty for one that nobody here wrote."""
    try:
        return str(json.loads(message)["headers"]["id"])
    except _MALFORMED:
        return ""


def requeue(client: redis.Redis, prefix: str, queue: str, chunk_ids: Sequence[str]) -> int:
    """Put unacknowledged messages of these chunks back where they are delivered next; returns how many it was."""
    if not chunk_ids:
        return 0
    unacked, index = f"{prefix}unacked", f"{prefix}unacked_index"
    found = list(_unacknowledged(client, unacked, queue, frozenset(chunk_ids)))
    requeued = [client.eval(_REQUEUE, 3, unacked, index, prefix + queue, tag, message) for tag, message in found]
    return sum(map(int, cast("list[int]", requeued)))


def _unacknowledged(
    client: redis.Redis, unacked: str, queue: str, chunk_ids: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Delivery tag and message of what a queue has delivered of some chunks, marked as delivered before."""
    for tag, entry in client.hscan_iter(unacked, count=100):
        try:
            message, _, routing_key = json.loads(entry)
            chunk_id = str(message["headers"]["id"]).rpartition("/")[0]
            if routing_key == queue and chunk_id in chunk_ids:
                yield str(tag), _redelivered(message)
        except _MALFORMED:
            continue


def _redelivered(message: dict[str, Any]) -> str:
    message["headers"]["redelivered"] = True
    message["properties"]["delivery_info"]["redelivered"] = True
    return json.dumps(message)

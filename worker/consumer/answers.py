"""Answers that a device gave before, by what exactly was asked. Torch-free; knows no verdicts and no queues.

What is kept is what the device said (numbers or ids), not what a guard read in it: windows of one item are found
singly, and a guard that reads better tomorrow reads old answers better too. See docs/decisions/0008.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from infra.coordination.cache import Cache
from infra.errors import DeviceAwayError
from schemas.items import Retention
from schemas.verdicts import Fingerprint
from worker.device.client import DeviceClient
from worker.device.protocol import Answer, DeviceRequest, DeviceResult, Generated, Kind, Scored, pack_ints

_FORM: Final = "answers-1"
"""Changes with what `pack` writes, so that no version reads what another one wrote otherwise."""
_KEY_BYTES: Final = 24
"""An author may search for two texts of one key, a harmless one to be judged first: 2^96 hashes are out of reach."""


class Answered(NamedTuple):
    """Answers in the order of the prompts, which of them were known before, and what is worth keeping of the rest.

    `share_s` is the time that the device took for those that were not known.
    """

    answers: list[Answer]
    known: list[bool]
    fresh: Mapping[bytes, bytes]
    share_s: float = 0.0

    @classmethod
    def uncached(cls, result: DeviceResult) -> Answered:
        """Answers that were not looked up and are not to be kept."""
        return cls(result.answers, [False] * len(result.answers), {}, result.share_s)


class AnswerCache:
    """Asks the device for what is not in the cache. Thread-safe."""

    def __init__(self, cache: Cache, retention: Retention) -> None:
        self._cache = cache
        self._retention = retention

    def run(
        self,
        device: DeviceClient,
        request: DeviceRequest,
        fingerprint: Fingerprint,
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Answered:
        """Answer every prompt of a request without suspects.

        Raises:
            infra.errors.DeviceError: see `DeviceClient.run`; suspects are named by their place in the request.
        """
        # A generation is a text, a key is a hash of one.
        whole, some = self._retention is Retention.FULL, self._retention is not Retention.NONE
        if not (whole or (some and request.kind is not Kind.GENERATE)):
            return Answered.uncached(device.run(request, on_progress=on_progress))
        keys = keys_of(fingerprint, request)
        found = [unpack(value, request) for value in self._cache.get(keys)]
        missing = [at for at, answer in enumerate(found) if answer is None]
        asked = replace(request, prompts=[request.prompts[at] for at in missing])
        try:
            result = device.run(asked, on_progress=on_progress) if missing else DeviceResult([])
        except DeviceAwayError as error:
            suspects = {missing[index]: deaths for index, deaths in error.suspects.items()}
            raise DeviceAwayError(str(error), suspects) from error
        news = dict(zip(missing, result.answers, strict=True))
        packed = {keys[at]: pack(answer) for at, answer in news.items()}
        return Answered(
            answers=[news[at] if answer is None else answer for at, answer in enumerate(found)],
            known=[answer is not None for answer in found],
            fresh={key: value for key, value in packed.items() if value is not None},
            share_s=result.share_s,
        )


def keys_of(fingerprint: Fingerprint, request: DeviceRequest) -> list[bytes]:
    """A key per prompt: a hash over the guard's fingerprint, everything else that decides the answer, and the ids."""
    decides = (request.kind, request.labels, request.stop_ids, request.max_new_tokens, request.verdict_ids)
    base = hashlib.blake2b(json.dumps([_FORM, fingerprint.digest, *decides]).encode(), digest_size=_KEY_BYTES)
    keys = []
    for prompt in request.prompts:
        key = base.copy()
        key.update(b"\0" + pack_ints(prompt))
        keys.append(key.digest())
    return keys


def pack(answer: Answer) -> bytes | None:
    """An answer as little-endian float64 or int32; None for one that must not be kept (a death, NaN)."""
    if isinstance(answer, Scored) and all(map(math.isfinite, answer.logprobs)):
        return struct.pack(f"<{len(answer.logprobs)}d", *answer.logprobs)
    if isinstance(answer, Generated):
        return pack_ints(answer.ids)
    return None


def unpack(value: bytes | None, request: DeviceRequest) -> Answer | None:
    """The inverse of `pack`; None for what cannot be an answer to this request."""
    if value is None:
        return None
    generated = request.kind is Kind.GENERATE
    size = 4 if generated else 8
    if len(value) % size:
        return None
    numbers: Sequence[float] = struct.unpack(f"<{len(value) // size}{'i' if generated else 'd'}", value)
    if generated:
        fits = len(numbers) <= request.max_new_tokens and min(numbers, default=0) >= 0
        return Generated(tuple(map(int, numbers))) if fits else None
    wanted = len(request.labels) or len(numbers)
    fits = 0 < len(numbers) == wanted and all(map(math.isfinite, numbers))
    return Scored(tuple(numbers)) if fits else None

"""A deterministic engine without a model or torch: for tests, drills and benchmarks.

A prompt's first id may be a directive; any other prompt is unsafe iff the sum of its ids is divisible by three.

With an `error` it is a guard that is sometimes wrong and knows how sure it is: an item's share of doubt is drawn from
its ids, `error` on average and mostly near 0, and the verdict is wrong in that share of the cases.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final

from worker.device.engines.base import EngineInfo, OutOfMemory

DIRECTIVES: Final = {
    "safe": 256,
    "unsafe": 257,
    "unparseable": 258,
    "crash": 259,
    "hang": 260,
    "oom": 261,
    "raise-in-read": 262,
    "slow": 263,
}
"""First id of a prompt, from the fake guard. Ids below 256 are the bytes of the text, so that no text can spell one."""

CRASH_EXIT_CODE: Final = 70

SLOW_S: Final = 1.0
"""Cost of a prompt with the directive "slow", beside that of its batch."""

_LIKELY, _UNLIKELY, _NEITHER = math.log(0.9), math.log(0.1), math.log(0.01)
_TOO_LARGE: Final = 1_000.0
"""No log-probability, and more than exp takes: a guard that reads it raises."""
_NO_BYTE: Final = 256
_SCORES: Final = {
    "safe": (_LIKELY, _UNLIKELY),
    "unsafe": (_UNLIKELY, _LIKELY),
    "unparseable": (_NEITHER, _NEITHER),
    "raise-in-read": (_TOO_LARGE, _TOO_LARGE),
}
_TEXTS: Final = {
    "safe": tuple('{"答案": "安全"}'.encode()),
    "unsafe": tuple('{"答案": "不安全"}'.encode()),
    "unparseable": tuple("这个问题没有结论。".encode()),
    "raise-in-read": (_NO_BYTE,),
}
_LEAST_DOUBT: Final = 1e-6
_DIRECTIVE_NAMES: Final = {code: name for name, code in DIRECTIVES.items()}
_FIRST_DIRECTIVE: Final = min(_DIRECTIVE_NAMES)


class FakeEngine:
    """Answers by protocol after a simulated cost of `batch_s + items * item_s + tokens * token_s` seconds.

    Labels of `score` are given as (safe, unsafe). Tokens are those behind the first `prefix_tokens`. With `overlaps`
    it is like a CUDA device: `batch_s` is what a launch takes, and the rest is computed while others are launched.
    """

    def __init__(
        self,
        *,
        batch_s: float = 0.0,
        item_s: float = 0.0,
        token_s: float = 0.0,
        error: float = 0.0,
        prefix_tokens: int = 0,
        overlaps: bool = False,
        max_batch_tokens: int = 16_384,
        max_batch_items: int = 256,
        context_tokens: int = 1_000_000,
    ) -> None:
        self._batch_s = batch_s
        self._item_s = item_s
        self._token_s = token_s
        self._error = error
        self._free_at = 0.0
        self.info = EngineInfo(
            engine="fake",
            dtype="none",
            device="cpu",
            device_name="simulated",
            revision="fake-1",
            max_batch_tokens=max_batch_tokens,
            max_batch_items=max_batch_items,
            context_tokens=context_tokens,
            packs=token_s > 0,
            prefix_tokens=prefix_tokens,
            overlaps=overlaps,
        )

    def score(
        self,
        prompts: Sequence[array[int]],
        labels: Sequence[Sequence[int]],  # noqa: ARG002 - the protocol fixes them
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of (safe, unsafe) per prompt; `OutOfMemory` where one says so and is not alone."""
        time.sleep(self._batch_s + self._work_s(prompts))
        return self._rows(prompts)

    def launch(
        self,
        prompts: Sequence[array[int]],
        labels: Sequence[Sequence[int]],  # noqa: ARG002
    ) -> Callable[[], list[tuple[float, ...]]]:
        """Begin `score`: the device computes one batch after the other, from when it is launched."""
        time.sleep(self._batch_s)
        rows = self._rows(prompts)
        ends_at = self._free_at = max(self._free_at, time.monotonic()) + self._work_s(prompts)

        def read() -> list[tuple[float, ...]]:
            time.sleep(max(0.0, ends_at - time.monotonic()))
            return rows

        return read

    def _rows(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        said = [_verdict(prompt, alone=len(prompts) == 1) for prompt in prompts]
        if not self._error:
            return [_SCORES[verdict] for verdict in said]
        return [self._unsure(prompt, verdict) for prompt, verdict in zip(prompts, said, strict=True)]

    def generate(
        self,
        prompts: Sequence[array[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],  # noqa: ARG002 - the answers end by themselves
        verdict_ids: Sequence[Sequence[int]] = (),  # noqa: ARG002
    ) -> list[tuple[int, ...]]:
        """UTF-8 bytes of an answer per prompt; `OutOfMemory` as in `score`."""
        time.sleep(self._batch_s + self._work_s(prompts))
        return [_TEXTS[_verdict(prompt, alone=len(prompts) == 1)][:max_new_tokens] for prompt in prompts]

    def classify(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """Return the probabilities of `score`: (safe, unsafe)."""
        return self.score(prompts, ())

    def _unsure(self, prompt: array[int], verdict: str) -> tuple[float, ...]:
        if verdict not in ("safe", "unsafe"):
            return _SCORES[verdict]
        digest = hashlib.blake2b(prompt.tobytes(), digest_size=16, salt=repr(self._error).encode()[:16]).digest()
        doubt, luck = (int.from_bytes(part, "big") / 2**64 for part in (digest[:8], digest[8:]))
        p_wrong = max(_LEAST_DOUBT, 0.5 * doubt ** (0.5 / self._error - 1))  # its mean is `error`
        says_unsafe = (verdict == "unsafe") != (luck < p_wrong)
        p_unsafe = 1 - p_wrong if says_unsafe else p_wrong
        return math.log(1 - p_unsafe), math.log(p_unsafe)

    def _work_s(self, prompts: Sequence[array[int]]) -> float:
        prefix = self.info.prefix_tokens
        tokens = sum(max(1, len(prompt) - prefix) for prompt in prompts) if self._token_s else 0
        return len(prompts) * self._item_s + tokens * self._token_s


def _verdict(prompt: array[int], *, alone: bool) -> str:
    if prompt[0] < _FIRST_DIRECTIVE:
        # 2**32 leaves 1 when divided by 3, so the ids' bytes as one number leave what their sum leaves:
        # five times faster than summing them.
        return "safe" if int.from_bytes(prompt.tobytes(), "little") % 3 else "unsafe"
    directive = _DIRECTIVE_NAMES.get(prompt[0], "safe")
    if directive == "crash":
        os._exit(CRASH_EXIT_CODE)
    if directive == "hang":
        threading.Event().wait()
    if directive == "slow":
        time.sleep(SLOW_S)
    if directive == "oom" and not alone:
        raise OutOfMemory("the fake device is full")
    return directive if directive in _SCORES else "safe"

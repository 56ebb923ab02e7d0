"""Judging one chunk: decode, render, let the device judge, publish. Torch-free.

The message is acknowledged in the transaction that publishes the verdicts (`worker.consumer.deliveries`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

import structlog

from infra import tracing
from infra.errors import GuardError
from infra.log import get_logger
from schemas.guards import Mode
from schemas.messages import ChunkItem, JudgeChunk, VerdictChunk, decode_chunk
from schemas.verdicts import Fingerprint, Outcome, Spent, Timings, Verdict
from worker.consumer.answers import AnswerCache, Answered
from worker.consumer.deliveries import Deliveries
from worker.device.client import DeviceClient
from worker.device.protocol import Answer, Dead, DeviceRequest, DeviceResult, Generated, Kind, Scored
from worker.guards.base import Guard, PromptIds

ISOLATE_FROM_DELIVERY: Final = 3
"""A chunk delivered this often has seen workers die: its items run one by one."""

_EXAMPLE_SETS: Final = 8
"""Runs with worked examples at the same time for which a guard is kept prepared."""
_NO_NUMBER: Final = "the model's scores are not numbers (NaN): its arithmetic overflowed"

log = get_logger(__name__)


def _about(chunk: JudgeChunk) -> dict[str, str | int]:
    """Attributes of a chunk's spans."""
    return {"guard": chunk.guard, "lane": chunk.lane.value, "run_id": chunk.run_id, "items": len(chunk.items)}


class Judge:
    """Judges the chunks of one guard on one device. Thread-safe."""

    def __init__(
        self,
        *,
        guard: Guard,
        device: DeviceClient,
        deliveries: Deliveries,
        fingerprints: dict[Mode, Fingerprint],
        worker_id: str,
        cache: AnswerCache | None = None,
        device_name: str = "",
        devices: int = 1,
    ) -> None:
        self._guard = guard
        self._with_examples = lru_cache(maxsize=_EXAMPLE_SETS)(guard.with_examples)
        self._device = device
        self._deliveries = deliveries
        self._fingerprints = fingerprints
        self._cache = cache
        self._device_name = device_name
        self._devices = devices
        self._worker_id = worker_id

    def __call__(self, body: str, tag: str | None = None) -> None:
        """Judge one chunk and publish its verdicts; `tag` is the delivery tag of its message.

        Raises:
            schemas.messages.MessageError: the body is no chunk this version can read.
            infra.errors.DeviceError: the device process did not come back in time; nothing was published.
        """
        taken_at = time.time()
        chunk = decode_chunk(JudgeChunk, body)
        about = _about(chunk)
        tracing.record("libra.chunk.wait", start_s=chunk.enqueued_at, end_s=taken_at, **about)
        with (
            structlog.contextvars.bound_contextvars(run=chunk.run_id, chunk=chunk.chunk_no),
            tracing.span("libra.judge", **about),
            self._deliveries.in_hand(chunk, tag) as delivery,
        ):
            if delivery.settled or delivery.cancelled:
                log.info("chunk_skipped", settled=delivery.settled, cancelled=delivery.cancelled)
                return
            isolate = delivery.deliveries >= ISOLATE_FROM_DELIVERY
            verdicts, fresh = self._judge(chunk, queue_s=max(0.0, taken_at - chunk.enqueued_at), isolate=isolate)
            with tracing.span("libra.publish", **about):
                self._deliveries.finish(verdicts, tag, fresh)

    def _judge(self, chunk: JudgeChunk, *, queue_s: float, isolate: bool) -> tuple[VerdictChunk, Mapping[bytes, bytes]]:
        """The chunk's verdicts, and what the cache may keep of the device's answers."""
        started = time.perf_counter()
        about = _about(chunk)
        with tracing.span("libra.render", **about):
            windows, refused, fingerprint = self._render(chunk)
        rendered = time.perf_counter()
        prompts = [prompt for item_prompts in windows for prompt in item_prompts]
        with tracing.span("libra.device", **about, tokens=sum(map(len, prompts))):
            answered = self._ask(chunk, prompts, fingerprint, isolate=isolate)
        answers = iter(zip(answered.answers, answered.known, strict=True))
        verdicts = tuple(
            self._read(item, item_prompts, [next(answers) for _ in item_prompts])
            if item_prompts
            else Verdict(seq=item.seq, outcome=Outcome.DEAD, reason=refused[item.seq])
            for item, item_prompts in zip(chunk.items, windows, strict=True)
        )
        device_s = time.perf_counter() - rendered
        asked = [at for at, known in enumerate(answered.known) if not known]  # what was known before cost nothing
        written = (answered.answers[at] for at in asked)
        judged = VerdictChunk(
            run_id=chunk.run_id,
            chunk_no=chunk.chunk_no,
            iteration=chunk.iteration,
            attempt=chunk.attempt,
            worker=self._worker_id,
            fingerprint=fingerprint,
            timings=Timings(queue_s=queue_s, render_s=rendered - started, device_s=device_s),
            verdicts=verdicts,
            spent=Spent(
                device=self._device_name,
                device_s=answered.share_s * self._devices,
                prompt_tokens=sum(len(prompts[at]) for at in asked),
                new_tokens=sum(len(answer.ids) for answer in written if isinstance(answer, Generated)),
            ),
            nonce=chunk.nonce,
        )
        return judged, answered.fresh

    def _ask(self, chunk: JudgeChunk, prompts: list[PromptIds], fingerprint: Fingerprint, *, isolate: bool) -> Answered:
        if not prompts:
            return Answered.uncached(DeviceResult([]))
        guard = self._guard
        request = DeviceRequest(Kind(chunk.mode.value), chunk.lane, prompts, iteration=chunk.iteration, isolate=isolate)
        if chunk.mode is Mode.SCORE:
            request = replace(request, labels=guard.label_ids)
        elif chunk.mode is not Mode.CLASSIFY:
            verdict_ids = guard.verdict_ids if chunk.verdict_only else ()
            request = replace(
                request, stop_ids=guard.stop_ids, max_new_tokens=guard.max_new_tokens, verdict_ids=verdict_ids
            )
        if chunk.cache and self._cache is not None:
            return self._cache.run(self._device, request, fingerprint)
        return Answered.uncached(self._device.run(request))

    def _render(self, chunk: JudgeChunk) -> tuple[list[list[PromptIds]], dict[int, str], Fingerprint]:
        """Prompts per item, why an item has none, and by which guard exactly they are asked.

        One item that cannot be asked must not cost its neighbours.
        """
        guard, fingerprint = self._guard, self._fingerprints[chunk.mode]
        if chunk.examples:
            try:
                guard = self._with_examples(chunk.examples)
            except GuardError as error:
                log.warning("examples_refused", reason=str(error))
                return [[] for _ in chunk.items], {item.seq: str(error) for item in chunk.items}, fingerprint
            fingerprint = fingerprint.model_copy(update={"prompt": guard.prompt_digest})
        try:
            return guard.render(chunk.items, chunk.mode), {}, fingerprint
        except GuardError as error:
            log.warning("chunk_rendered_singly", reason=str(error))
        windows: list[list[PromptIds]] = []
        refused: dict[int, str] = {}
        for item in chunk.items:
            try:
                windows += guard.render([item], chunk.mode)
            except GuardError as error:
                windows.append([])
                refused[item.seq] = str(error)
        return windows, refused, fingerprint

    def _read(self, item: ChunkItem, prompts: Sequence[PromptIds], answered: Sequence[tuple[Answer, bool]]) -> Verdict:
        """An item's verdict from its prompts' answers, each with whether it was known before."""
        answers = [answer for answer, _ in answered]
        tokens = sum(map(len, prompts))
        scores = [answer.logprobs for answer in answers if isinstance(answer, Scored)]
        reason = next((answer.reason for answer in answers if isinstance(answer, Dead)), None)
        if any(map(math.isnan, itertools.chain.from_iterable(scores))):
            reason = reason or _NO_NUMBER
        if reason is not None:
            return Verdict(
                seq=item.seq, outcome=Outcome.DEAD, reason=reason, prompt_tokens=tokens, windows=len(prompts)
            )
        ids = [answer.ids for answer in answers if isinstance(answer, Generated)]
        single = not item.question
        if scores:
            verdict = self._guard.read_scores(item.seq, scores, single=single)
        else:
            verdict = self._guard.read_ids(item.seq, ids, single=single)
        cached = all(known for _, known in answered)
        return verdict.model_copy(update={"prompt_tokens": tokens, "windows": len(prompts), "cached": cached})

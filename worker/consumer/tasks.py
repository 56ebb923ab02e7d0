"""Judging one chunk: decode, render, let the device judge, publish. Torch-free.

The message is acknowledged in the transaction that publishes the verdicts (`worker.consumer.deliveries`).
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Final

import redis
import structlog

from infra import normal_form, tracing
from infra.coordination.leases import Delivery
from infra.errors import DeviceAwayError, DeviceChangedError, DeviceProtocolError, LibraError
from infra.log import get_logger
from schemas.guards import Mode, TextForm
from schemas.items import Label
from schemas.messages import ChunkItem, JudgeChunk, Lane, VerdictChunk, decode_chunk
from schemas.verdicts import Fingerprint, Outcome, Spent, Timings, Verdict
from worker.consumer.answers import AnswerCache, Answered
from worker.consumer.deliveries import Deliveries
from worker.consumer.pins import Pins
from worker.consumer.reading import GuardClock, Reader, failure, read_items
from worker.device.client import DeviceClient
from worker.device.protocol import Answer, Dead, DeviceRequest, DeviceResult, Generated, Kind, Scored
from worker.guards.base import Guard, PromptIds, pass_of

APART_FROM_DELIVERY: Final = 2
"""A chunk delivered this often has seen a consumer die: its items are read in a process of their own."""
ISOLATE_FROM_DELIVERY: Final = 3
"""A chunk delivered this often has seen workers die: its prompts run in batches of one."""
ONE_BY_ONE_FROM_DELIVERY: Final = 4
"""A chunk delivered this often has seen whole workers die: it is noted which item is judged, and each is alone."""
ONE_BY_ONE_FROM_RETURN: Final = 3
"""A chunk given back this often because of an error: an item that fails alone as well dies of its own error."""
MOST_TRIES: Final = 3
"""Workers that ended while they judged an item alone; the first ones may have been chance."""

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
        reader: Reader | None = None,
        apart: bool = False,
        clock: GuardClock | None = None,
        cache: AnswerCache | None = None,
        device_name: str = "",
        devices: int = 1,
        category_lanes: Collection[Lane] = (),
        pins: Pins | None = None,
    ) -> None:
        """`apart`: every item is read by the `reader`, not only those of chunks that saw a consumer die.

        `category_lanes`: where mode score asks for the category of an unsafe item, if its guard has such a question.
        `pins`: passes on what this worker would judge in vain.
        """
        self._guard = guard
        self._with_examples = lru_cache(maxsize=_EXAMPLE_SETS)(guard.with_examples)
        self._device = device
        self._deliveries = deliveries
        self._fingerprints = fingerprints
        self._reader = reader
        self._apart = apart
        self._clock = clock or GuardClock()
        self._cache = cache
        self._device_name = device_name
        self._pins = pins
        self._category_lanes = category_lanes if guard.category_question else ()
        self._devices = devices
        self._worker_id = worker_id
        self._one_by_one = threading.Lock()

    def __call__(self, body: str, tag: str | None = None) -> None:
        """Judge one chunk and publish its verdicts; `tag` is the delivery tag of its message.

        Raises:
            schemas.messages.MessageError: the body is no chunk this version can read.
            infra.errors.DeviceError: nothing was published, because the device process did not come back in time
                (DeviceAwayError, which names items by `seq`), holds another model (DeviceChangedError), or gave
                no answer.
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
            queue_s = max(0.0, taken_at - chunk.enqueued_at)
            if self._passes_on(chunk, delivery, tag, queue_s):
                return
            try:
                if delivery.deliveries >= ONE_BY_ONE_FROM_DELIVERY or delivery.returns >= ONE_BY_ONE_FROM_RETURN:
                    verdicts, fresh = self._judge_one_by_one(chunk, delivery, queue_s)
                else:
                    verdicts, fresh = self._judge(chunk, delivery, queue_s)
            except DeviceAwayError as error:
                self._deliveries.give_back(chunk, error.suspects)
                raise
            except (DeviceProtocolError, DeviceChangedError):
                raise
            except Exception:
                self._deliveries.note_return(chunk)
                raise
            with tracing.span("libra.publish", **about):
                self._deliveries.finish(verdicts, tag, fresh)

    def _asked(self, chunk: JudgeChunk) -> tuple[Guard, Fingerprint]:
        """The guard that judges a chunk, which may show examples, and its fingerprint. Raises what a guard raises."""
        guard, fingerprint = self._guard, self._fingerprints[chunk.mode]
        if chunk.examples:
            guard = self._with_examples(chunk.examples)
            fingerprint = fingerprint.model_copy(update={"prompt": guard.prompt_digest})
        if chunk.form is not TextForm.AS_IS:
            prompt = f"{fingerprint.prompt} of texts {chunk.form}, normal form {normal_form.VERSION}"
            fingerprint = fingerprint.model_copy(update={"prompt": prompt})
        return guard, fingerprint

    def _passes_on(self, chunk: JudgeChunk, delivery: Delivery, tag: str | None, queue_s: float) -> bool:
        """True where the run keeps another fingerprint: the chunk went elsewhere, or has ended for want of a worker."""
        mine = self._other_fingerprint(chunk) if self._pins else None
        if self._pins is None or mine is None:
            if delivery.passed_on:
                self._deliveries.take_over(chunk)
            return False
        reason = self._pins.pass_on(chunk, tag, mine)
        if reason is not None:
            log.error("chunk_fits_no_worker", reason=reason)
            self._deliveries.finish(self._dead(chunk, queue_s, reason), tag, {})
        return True

    def _other_fingerprint(self, chunk: JudgeChunk) -> Fingerprint | None:
        """This worker's fingerprint where the chunk's run keeps another one, so that a verdict from here is in vain."""
        if not chunk.pin:
            return None
        try:
            with self._clock.running():
                _, mine = self._asked(chunk)
        except Exception:  # noqa: BLE001 - a guard refuses the examples: rendering says so of each item
            return None
        return None if mine.digest == chunk.pin else mine

    def _judge_one_by_one(
        self, chunk: JudgeChunk, delivery: Delivery, queue_s: float
    ) -> tuple[VerdictChunk, Mapping[bytes, bytes]]:
        """Judge each item as a chunk of its own: what it does to a worker or raises is its own, and it alone dies."""
        parts: list[VerdictChunk] = []
        survived: int | None = None
        with self._one_by_one:  # one such chunk at a time, or two items would be tried when the worker ends
            for item in chunk.items:
                alone = chunk.model_copy(update={"items": (item,)})
                if delivery.tries.get(item.seq, 0) >= MOST_TRIES:
                    reason = f"the worker ended {MOST_TRIES} times while it judged this item"
                    parts.append(self._dead(alone, queue_s, reason))
                    continue
                self._deliveries.begin_try(chunk, item.seq, survived)
                try:
                    parts.append(self._judge(alone, delivery, queue_s)[0])
                except (DeviceAwayError, DeviceProtocolError, DeviceChangedError, redis.RedisError):
                    self._deliveries.end_try(chunk, item.seq)
                    raise
                except Exception as error:  # noqa: BLE001 - the edge of one item, which is alone here
                    message = f": {error}" if isinstance(error, LibraError) else ""
                    reason = f"the item could not be judged: {type(error).__name__}{message}"
                    parts.append(self._dead(alone, queue_s, reason))
                survived = item.seq
        verdicts = tuple(itertools.chain.from_iterable(part.verdicts for part in parts))
        fingerprint = next((part.fingerprint for part in parts if part.fingerprint), None)
        return _whole(parts, fingerprint, verdicts), {}

    def _dead(self, chunk: JudgeChunk, queue_s: float, reason: str) -> VerdictChunk:
        """A verdict on each item of a chunk that was not judged."""
        return VerdictChunk(
            run_id=chunk.run_id,
            chunk_no=chunk.chunk_no,
            iteration=chunk.iteration,
            attempt=chunk.attempt,
            worker=self._worker_id,
            fingerprint=None,
            timings=Timings(queue_s=queue_s, render_s=0.0, device_s=0.0),
            verdicts=tuple(Verdict(seq=item.seq, outcome=Outcome.DEAD, reason=reason) for item in chunk.items),
            nonce=chunk.nonce,
        )

    def _judge(
        self, chunk: JudgeChunk, delivery: Delivery, queue_s: float
    ) -> tuple[VerdictChunk, Mapping[bytes, bytes]]:
        """The chunk's verdicts, and what the cache may keep of the device's answers."""
        started = time.perf_counter()
        about = _about(chunk)
        with tracing.span("libra.render", **about):
            windows, refused, fingerprint = self._render(chunk, apart=delivery.deliveries >= APART_FROM_DELIVERY)
        rendered = time.perf_counter()
        prompts = [prompt for item_prompts in windows for prompt in item_prompts]
        owners = [item.seq for item, own in zip(chunk.items, windows, strict=True) for _ in own]
        with tracing.span("libra.device", **about, tokens=sum(map(len, prompts))):
            answered = self._ask(chunk, prompts, owners, fingerprint, delivery)
        answers = iter(zip(answered.answers, answered.known, strict=True))
        of_items = [[next(answers) for _ in item_prompts] for item_prompts in windows]
        verdicts = tuple(
            self._read(item, item_prompts, item_answers)
            if item_prompts
            else Verdict(seq=item.seq, outcome=Outcome.DEAD, reason=refused[item.seq])
            for item, item_prompts, item_answers in zip(chunk.items, windows, of_items, strict=True)
        )
        passes = [(prompts, answered)]
        if chunk.mode is Mode.SCORE and chunk.lane in self._category_lanes:
            asked = {
                item.seq: self._category_prompt(item, verdict, item_prompts, item_answers)
                for item, verdict, item_prompts, item_answers in zip(
                    chunk.items, verdicts, windows, of_items, strict=True
                )
            }
            follow_up = {seq: prompt for seq, prompt in asked.items() if prompt is not None}
            second = list(follow_up.values())
            found = self._ask(chunk, second, list(follow_up), fingerprint, delivery, category=True)
            named = dict(zip(follow_up, found.answers, strict=True))
            verdicts = tuple(self._named(verdict, named.get(verdict.seq)) for verdict in verdicts)
            passes.append((second, found))
        device_s = time.perf_counter() - rendered
        judged = VerdictChunk(
            run_id=chunk.run_id,
            chunk_no=chunk.chunk_no,
            iteration=chunk.iteration,
            attempt=chunk.attempt,
            worker=self._worker_id,
            fingerprint=fingerprint,
            timings=Timings(queue_s=queue_s, render_s=rendered - started, device_s=device_s),
            verdicts=verdicts,
            spent=self._spent(passes),
            nonce=chunk.nonce,
        )
        fresh = {key: value for _, done in passes for key, value in done.fresh.items()}
        return judged, fresh

    def _spent(self, passes: Sequence[tuple[list[PromptIds], Answered]]) -> Spent:
        """The cost of a chunk's prompts with their answers; what was known before cost nothing."""
        asked = [
            (prompt, answer)
            for prompts, done in passes
            for prompt, answer, known in zip(prompts, done.answers, done.known, strict=True)
            if not known
        ]
        return Spent(
            device=self._device_name,
            device_s=sum(done.share_s for _, done in passes) * self._devices,
            prompt_tokens=sum(len(prompt) for prompt, _ in asked),
            new_tokens=sum(len(answer.ids) for _, answer in asked if isinstance(answer, Generated)),
        )

    def _category_prompt(
        self,
        item: ChunkItem,
        verdict: Verdict,
        prompts: Sequence[PromptIds],
        answered: Sequence[tuple[Answer, bool]],
    ) -> PromptIds | None:
        """The prompt that asks for the category of an item that is unsafe; None for any other."""
        if verdict.label is not Label.UNSAFE:
            return None
        scores = [answer.logprobs for answer, _ in answered if isinstance(answer, Scored)]
        try:
            with self._clock.running():
                return self._guard.category_prompt(prompts, scores, single=item.single)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as for reading: the label stands without a category
            log.warning("category_not_asked", seq=item.seq, reason=failure(self._guard.name, error))
            return None

    def _named(self, verdict: Verdict, answer: Answer | None) -> Verdict:
        """The verdict with its category; without one where the device had no answer: the label stands by itself."""
        question = self._guard.category_question
        if question is None or not isinstance(answer, Scored) or any(map(math.isnan, answer.logprobs)):
            return verdict
        return question.named(verdict, answer.logprobs)

    def _ask(
        self,
        chunk: JudgeChunk,
        prompts: list[PromptIds],
        owners: Sequence[int],
        fingerprint: Fingerprint,
        delivery: Delivery,
        *,
        category: bool = False,
    ) -> Answered:
        """The device's answers; `owners` says by `seq` whose prompts they are. `category`: to the second question."""
        if not prompts:
            return Answered.uncached(DeviceResult([]))
        guard = self._guard
        asked = pass_of(guard, chunk.mode)
        deaths = delivery.device_deaths
        request = DeviceRequest(
            Kind(asked.value),
            chunk.lane,
            prompts,
            iteration=chunk.iteration,
            isolate=delivery.deliveries >= ISOLATE_FROM_DELIVERY,
            suspects={index: deaths[seq] for index, seq in enumerate(owners) if seq in deaths},
        )
        if category and guard.category_question is not None:
            request = replace(request, labels=guard.category_question.label_ids)
        elif asked is Mode.SCORE:
            request = replace(request, labels=guard.label_ids)
        elif asked is not Mode.CLASSIFY:
            verdict_ids = guard.verdict_ids if chunk.verdict_only else ()
            request = replace(
                request, stop_ids=guard.stop_ids, max_new_tokens=guard.max_new_tokens, verdict_ids=verdict_ids
            )
        on_progress = partial(self._deliveries.note_progress, chunk.chunk_id)
        try:
            # What the cache knows would shift the suspects' places, and a chunk with suspects is rare.
            if chunk.cache and self._cache is not None and not request.suspects:
                return self._cache.run(self._device, request, fingerprint, on_progress=on_progress)
            return Answered.uncached(self._device.run(request, on_progress=on_progress))
        except DeviceAwayError as error:
            by_seq: dict[int, int] = {}
            for index, count in error.suspects.items():
                by_seq[owners[index]] = max(count, by_seq.get(owners[index], 0))
            raise DeviceAwayError(str(error), by_seq) from error

    def _render(self, chunk: JudgeChunk, *, apart: bool) -> tuple[list[list[PromptIds]], dict[int, str], Fingerprint]:
        """Prompts per item, why an item has none, and by which guard exactly they are asked.

        One item that cannot be asked must not cost its neighbours. `apart`: in another process, as a consumer died
        with this chunk in hand.
        """
        with self._clock.running():
            try:
                guard, fingerprint = self._asked(chunk)
            except Exception as error:  # noqa: BLE001 - whatever a guard raises, the items get a verdict
                reason = failure(self._guard.name, error)
                log.warning("examples_refused", reason=reason)
                refused = {item.seq: reason for item in chunk.items}
                return [[] for _ in chunk.items], refused, self._fingerprints[chunk.mode]
            if not (apart or self._apart) or self._reader is None:
                return *read_items(guard, chunk.items, chunk.mode, chunk.form), fingerprint
        on_progress = partial(self._deliveries.note_progress, chunk.chunk_id)
        read = self._reader.read(chunk.items, chunk.mode, chunk.examples, form=chunk.form, on_progress=on_progress)
        return *read, fingerprint

    def _read(self, item: ChunkItem, prompts: Sequence[PromptIds], answered: Sequence[tuple[Answer, bool]]) -> Verdict:
        """An item's verdict from its prompts' answers, each with whether it was known before."""
        try:
            with self._clock.running():
                return self._read_answers(item, prompts, answered)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as for rendering: the guard's failure is this item's alone
            reason = failure(self._guard.name, error)
            log.warning("answer_unread", seq=item.seq, reason=reason)
            tokens = sum(map(len, prompts))
            return Verdict(
                seq=item.seq, outcome=Outcome.DEAD, reason=reason, prompt_tokens=tokens, windows=len(prompts)
            )

    def _read_answers(
        self, item: ChunkItem, prompts: Sequence[PromptIds], answered: Sequence[tuple[Answer, bool]]
    ) -> Verdict:
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
        if scores:
            verdict = self._guard.read_scores(item.seq, scores, single=item.single)
        else:
            verdict = self._guard.read_ids(item.seq, ids, single=item.single)
        cached = all(known for _, known in answered)
        return verdict.model_copy(update={"prompt_tokens": tokens, "windows": len(prompts), "cached": cached})


def _whole(
    parts: Sequence[VerdictChunk], fingerprint: Fingerprint | None, verdicts: tuple[Verdict, ...]
) -> VerdictChunk:
    """One message from those of a chunk's items."""
    timings = [part.timings for part in parts]
    spent = [part.spent for part in parts if part.spent]
    return parts[0].model_copy(
        update={
            "fingerprint": fingerprint,
            "verdicts": verdicts,
            "timings": Timings(
                queue_s=timings[0].queue_s,
                render_s=sum(one.render_s for one in timings),
                device_s=sum(one.device_s for one in timings),
            ),
            "spent": Spent(
                device=spent[0].device,
                device_s=sum(one.device_s for one in spent),
                prompt_tokens=sum(one.prompt_tokens for one in spent),
                new_tokens=sum(one.new_tokens for one in spent),
            )
            if spent
            else None,
        }
    )
